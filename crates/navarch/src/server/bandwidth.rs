//! Bandwidth that a pod's annotations ask for.
//!
//! Rule: Kubernetes documentation, "Support traffic shaping"; the bounds are those of its runtimes.

use api::quantity::Quantity;
use network::Limits;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// 1 kbit/s.
const LEAST: i64 = 1_000;
/// 1 Pbit/s.
const MOST: i64 = 1_000_000_000_000_000;

/// What a pod may receive and send.
pub fn of_annotations(annotations: &[(String, String)]) -> Result<Limits, String> {
    let find = |key: &str| annotations.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    Ok(Limits { ingress: find(INGRESS).map(rate).transpose()?, egress: find(EGRESS).map(rate).transpose()? })
}

/// Bits per second.
fn rate(text: &str) -> Result<u64, String> {
    let quantity: Quantity = text.parse().map_err(|error: api::quantity::QuantityError| error.to_string())?;
    match quantity.value() {
        value if value < LEAST => Err("resource is unreasonably small (< 1kbit)".to_owned()),
        value if value > MOST => Err("resource is unreasonably large (> 1Pbit)".to_owned()),
        value => Ok(value.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_quantities_within_reason() {
        let of = |key: &str, value: &str| of_annotations(&[(key.to_owned(), value.to_owned())]);
        assert_eq!(of(INGRESS, "10M"), Ok(Limits { ingress: Some(10_000_000), egress: None }));
        assert_eq!(of(EGRESS, "1Ki"), Ok(Limits { ingress: None, egress: Some(1024) }));
        assert_eq!(of("else", "x"), Ok(Limits::default()));
        assert_eq!(of(EGRESS, "999").unwrap_err(), "resource is unreasonably small (< 1kbit)");
        assert_eq!(of(EGRESS, "-1M").unwrap_err(), "resource is unreasonably small (< 1kbit)");
        assert_eq!(of(INGRESS, "2P").unwrap_err(), "resource is unreasonably large (> 1Pbit)");
        assert!(of(INGRESS, "10 M").unwrap_err().starts_with("quantities must match"));
    }
}
