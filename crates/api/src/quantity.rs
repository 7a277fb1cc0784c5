//! Quantities: numbers with a suffix (`250m`, `1Gi`, `5e3`), parsed, compared, added and printed as Kubernetes does.
//!
//! Rules (the documentation of `resource.Quantity`): three suffix families, decimal (`n u m k M G T P E`), binary
//! (`Ki` … `Ei`) and decimal exponent (`e3`); nothing finer than a nano, rounded away from zero; values that need more than 18
//! digits are capped at 2^63-1; the canonical form has no fraction and the largest suffix that allows it, in the family the
//! quantity was given in. Work is bounded whatever the exponent: `1e9999999` is a mantissa and a scale, never a long number.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The family of suffixes a quantity is printed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`, `e-3`, ….
    DecimalExponent,
}

/// Why a text is no quantity; the words are the API's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with letters behind it.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// No known suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Not a number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

/// An amount: `mantissa` × 10^`scale`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
}

const NANO: i32 = -9;
/// Digits that are kept as given; longer numbers go through the capped path.
const EXACT_DIGITS: usize = 18;
const CAP: i128 = i64::MAX as i128;
const NANOS: i128 = 1_000_000_000;

impl Quantity {
    /// Zero in the decimal family.
    pub const ZERO: Quantity = Quantity { mantissa: 0, scale: 0, format: Format::DecimalSi };

    /// A whole number in a family.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self { mantissa: i128::from(value), scale: 0, format }
    }

    /// A number of thousandths, in the decimal family.
    pub fn from_millis(millis: i64) -> Self {
        Self { mantissa: i128::from(millis), scale: -3, format: Format::DecimalSi }
    }

    /// The family it is printed in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The amount in units, rounded away from zero, within the range of i64.
    pub fn value(&self) -> i64 {
        self.in_scale(0)
    }

    /// The amount in thousandths, rounded away from zero, within the range of i64.
    pub fn millis(&self) -> i64 {
        self.in_scale(-3)
    }

    /// The nearest floating point number.
    pub fn to_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// The sum, in this quantity's family (in the other's where this is zero).
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let format = if self.mantissa == 0 { other.format } else { self.format };
        let (a, b) = (self.nanos(), other.nanos());
        Quantity { mantissa: a.saturating_add(b), scale: NANO, format }
    }

    /// The difference, in this quantity's family (in the other's where this is zero).
    pub fn minus(&self, other: &Quantity) -> Quantity {
        self.plus(&Quantity { mantissa: -other.mantissa, ..*other })
    }

    /// The canonical text of a quantity given as text; saves the caller two steps.
    pub fn canonicalize(text: &str) -> Result<String, QuantityError> {
        Ok(text.parse::<Quantity>()?.to_string())
    }

    fn in_scale(&self, scale: i32) -> i64 {
        let shift = i64::from(self.scale) - i64::from(scale);
        let clamp = |v: i128| v.clamp(i128::from(i64::MIN), CAP) as i64;
        if self.mantissa == 0 {
            0
        } else if shift > 19 {
            clamp(self.mantissa.signum() * i128::MAX)
        } else if shift >= 0 {
            clamp(self.mantissa.saturating_mul(pow10(shift)))
        } else if shift < -38 {
            self.signum().into()
        } else {
            let divisor = pow10(-shift);
            let (whole, rest) = (self.mantissa / divisor, self.mantissa % divisor);
            clamp(whole + rest.signum())
        }
    }

    /// Nanos, saturated at what i128 holds.
    fn nanos(&self) -> i128 {
        let shift = i64::from(self.scale) - i64::from(NANO);
        match shift {
            _ if self.mantissa == 0 => 0,
            0..=38 => self.mantissa.saturating_mul(pow10(shift)),
            39.. => self.mantissa.signum().saturating_mul(i128::MAX),
            _ => self.mantissa / pow10((-shift).min(38)),
        }
    }
}

fn pow10(exponent: i64) -> i128 {
    10i128.pow(exponent as u32)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(QuantityError::Format),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) || !is_suffix_like(suffix) {
            return Err(QuantityError::Format);
        }
        let (base, exponent, format) = parse_suffix(suffix)?;
        let whole = whole.trim_start_matches('0');
        let digits = whole.len() + fraction.len();
        let sign = if negative { -1 } else { 1 };

        if let Some(mantissa) = exact(whole, fraction, base, exponent)
            && let scale = if base == 10 { exponent.saturating_sub(fraction.len() as i32) } else { 0 }
            && scale >= NANO
            && digits <= EXACT_DIGITS
        {
            return Ok(Quantity { mantissa: sign * mantissa, scale, format });
        }
        let nanos = capped_nanos(whole, fraction, base, exponent);
        let below_one = nanos > 0 && nanos < NANOS;
        let format = if format == Format::BinarySi && below_one { Format::DecimalSi } else { format };
        Ok(Quantity { mantissa: sign * nanos, scale: NANO, format })
    }
}

/// What the API's pattern lets stand behind the number.
fn is_suffix_like(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(['e', 'E', 'i', 'n', 'u', 'm', 'k', 'K', 'M', 'G', 'T', 'P']);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|b| b.is_ascii_digit())
}

fn parse_suffix(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    let decimal = |exponent| Ok((10, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((2, exponent, Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent: i64 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            let bounded = exponent.clamp(i64::from(i32::MIN / 2), i64::from(i32::MAX / 2));
            Ok((10, bounded as i32, Format::DecimalExponent))
        }
    }
}

/// The digits as one whole number, times the binary suffix; none where they do not fit or a binary suffix follows a
/// fraction.
fn exact(whole: &str, fraction: &str, base: u32, exponent: i32) -> Option<i128> {
    if whole.len() + fraction.len() > EXACT_DIGITS {
        return None;
    }
    let digits = whole
        .bytes()
        .chain(fraction.bytes())
        .fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    if base == 10 {
        return Some(digits);
    }
    (fraction.is_empty()).then(|| digits << exponent).filter(|value| *value <= CAP)
}

/// Nanos of a long number, rounded up and capped at 2^63-1 units.
fn capped_nanos(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let is_zero = whole.bytes().chain(fraction.bytes()).all(|d| d == b'0');
    if is_zero {
        return 0;
    }
    let (shift, multiplier) = if base == 10 { (i64::from(exponent), 1) } else { (0, 1i128 << exponent) };
    // Where the decimal point stands among all digits.
    let point = whole.len() as i64 + shift;
    let digits = || whole.bytes().chain(fraction.bytes()).map(|d| i128::from(d - b'0'));
    let leading_zeros =
        if whole.is_empty() { fraction.bytes().take_while(|d| *d == b'0').count() } else { 0 };
    if point - leading_zeros as i64 > 20 {
        return CAP * NANOS;
    }
    let take = point.max(0) as usize;
    let have = whole.len() + fraction.len();
    let mut units = digits().take(take).fold(0, |value, digit| value * 10 + digit);
    units *= pow10(take.saturating_sub(have) as i64);
    if units > CAP / multiplier {
        return CAP * NANOS;
    }
    // 19 digits of the fraction; any more only matter for rounding up.
    let zeros = (-point).max(0) as usize;
    let kept = 19usize.saturating_sub(zeros);
    let mut part = digits().skip(take).take(kept).fold(0, |value, digit| value * 10 + digit);
    part *= pow10(kept.saturating_sub(have.saturating_sub(take)).min(19) as i64);
    let rest = digits().skip(take).skip(kept).any(|digit| digit != 0);
    let unit = pow10(19);
    let scaled = part * multiplier;
    let (carry, remainder) = (scaled / unit, scaled % unit);
    let fine = remainder * NANOS;
    let rounded_up = i128::from(fine % unit != 0 || rest);
    ((units * multiplier + carry) * NANOS + fine / unit + rounded_up).min(CAP * NANOS)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && let Some(whole) = self.whole()
            && whole.abs() >= 1024
        {
            let (mut value, mut power) = (whole, 0);
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut value, mut exponent) = (self.mantissa, i64::from(self.scale));
        while value % 10 == 0 {
            value /= 10;
            exponent += 1;
        }
        while exponent.rem_euclid(3) != 0 {
            value = value.saturating_mul(10);
            exponent -= 1;
        }
        let suffix = match exponent {
            0 => Some(""),
            _ if self.format == Format::DecimalExponent => None,
            -9 => Some("n"),
            -6 => Some("u"),
            -3 => Some("m"),
            3 => Some("k"),
            6 => Some("M"),
            9 => Some("G"),
            12 => Some("T"),
            15 => Some("P"),
            18 => Some("E"),
            _ => None,
        };
        match suffix {
            Some(suffix) => write!(f, "{value}{suffix}"),
            None => write!(f, "{value}e{exponent}"),
        }
    }
}

impl Quantity {
    fn whole(&self) -> Option<i128> {
        match self.scale {
            0..=18 => self.mantissa.checked_mul(pow10(self.scale.into())),
            -38..0 => {
                let divisor = pow10((-self.scale).into());
                (self.mantissa % divisor == 0).then(|| self.mantissa / divisor)
            }
            _ => None,
        }
    }

    /// Decimal digits before the point (negative for leading zeros behind it): the order of magnitude.
    fn magnitude(&self) -> i64 {
        let digits = self.mantissa.unsigned_abs().checked_ilog10().map_or(0, |log| i64::from(log) + 1);
        digits + i64::from(self.scale)
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if by_sign != Ordering::Equal || self.mantissa == 0 {
            return by_sign;
        }
        let by_magnitude = self.magnitude().cmp(&other.magnitude());
        let absolute = by_magnitude.then_with(|| {
            // Of the same magnitude: the scales differ by no more than the mantissas have digits.
            let shift = i64::from(self.scale) - i64::from(other.scale);
            let (a, b) = (self.mantissa.unsigned_abs(), other.mantissa.unsigned_abs());
            let scaled = |value: u128, by: i64| value.saturating_mul(10u128.pow(by as u32));
            if shift >= 0 { scaled(a, shift).cmp(&b) } else { a.cmp(&scaled(b, -shift)) }
        });
        if self.mantissa < 0 { absolute.reverse() } else { absolute }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_forms() {
        for (given, canonical) in [
            ("0.25", "250m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1024Ki", "1Mi"),
            ("100.5", "100500m"),
            ("1500000000.0", "1500M"),
            ("0", "0"),
            ("0Ki", "0"),
            ("-0.5", "-500m"),
            ("1023Ki", "1023Ki"),
            ("1000", "1k"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("12e3", "12e3"),
            ("1.5e9", "1500e6"),
            ("0.0001", "100u"),
            ("0.0000000001", "1n"),
            ("1.1n", "2n"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            (".5", "500m"),
            ("5.", "5"),
            ("9223372036854775808", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("100E", "100E"),
            ("1e9999999", "1e9999999"),
            ("1111111111111111111111e9999999", "9223372036854775807"),
            ("1111111111111111111111e-9999999", "1e-9"),
            ("+1", "1"),
            ("001", "1"),
        ] {
            assert_eq!(Quantity::canonicalize(given).as_deref(), Ok(canonical), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in
            ["", "a", "1e3k", "1 Gi", "1.2.3", "-", "+", ".", "1kk", "1Kib", "1e", "1e1.5", "0x1", "1K"]
        {
            assert!(Quantity::canonicalize(text).is_err(), "{text}");
        }
        assert_eq!("1e3k".parse::<Quantity>(), Err(QuantityError::Format));
        assert_eq!("1K".parse::<Quantity>(), Err(QuantityError::Suffix));
    }

    #[test]
    fn order_ignores_family_and_is_cheap_for_huge_exponents() {
        assert_eq!(q("1"), q("1000m"));
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1Gi") > q("1G"));
        assert!(q("-1") < q("1m"));
        assert!(q("-2") < q("-1"));
        assert!(q("1e9999999") > q("9223372036854775807"));
        assert!(q("0") < q("1n"));
    }

    #[test]
    fn sums_keep_the_first_family() {
        assert_eq!(q("100m").plus(&q("0.9")).to_string(), "1");
        assert_eq!(q("1Gi").plus(&q("1Gi")).to_string(), "2Gi");
        assert_eq!(q("0").plus(&q("1Ki")).to_string(), "1Ki");
        assert_eq!(q("1").minus(&q("1")).to_string(), "0");
        assert_eq!(q("1Gi").minus(&q("1")).to_string(), "1073741823");
        assert_eq!(q("1e9999999").plus(&q("1")).signum(), 1);
    }

    #[test]
    fn values_round_away_from_zero() {
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("1.5").millis(), 1500);
        assert_eq!(q("0.0001").millis(), 1);
        assert_eq!(q("-1.5").value(), -2);
        assert_eq!(q("1e9999999").value(), i64::MAX);
    }
}
