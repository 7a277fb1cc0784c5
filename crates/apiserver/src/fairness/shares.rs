//! How the server's seats are divided: by shares first, then, now and then, by what levels were asked for.
//!
//! Rule: KEP-1040, "Dispatching" and "Borrowing"; Kubernetes documentation, "API Priority and Fairness".

/// What a level's specification says about seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// `nominalConcurrencyShares`.
    pub shares: u32,
    /// `lendablePercent`.
    pub lendable: u32,
    /// `borrowingLimitPercent`; none for no limit.
    pub borrowing: Option<u32>,
}

/// A level's seats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seats {
    /// By shares.
    pub nominal: u32,
    /// What it keeps whatever others need.
    pub least: u32,
    /// What it may have with what others lend.
    pub most: u32,
}

/// Divides the server's seats by shares.
pub fn divide(total: u32, levels: &[Shares]) -> Vec<Seats> {
    let sum: u64 = levels.iter().map(|l| u64::from(l.shares)).sum();
    let percent = |of: u32, percent: u32| (f64::from(of) * f64::from(percent) / 100.0).round() as u32;
    levels
        .iter()
        .map(|level| {
            let nominal = (u64::from(total) * u64::from(level.shares)).div_ceil(sum.max(1)) as u32;
            let borrowed = level.borrowing.map_or(total, |limit| percent(nominal, limit));
            let least = nominal.saturating_sub(percent(nominal, level.lendable));
            Seats { nominal, least, most: nominal.saturating_add(borrowed) }
        })
        .collect()
}

/// How much weight the past has in [`Need::smoothed`], for each adjustment.
const SMOOTHING: f64 = 0.977;

/// What a level was asked for, as adjustments see it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Need {
    /// The last span.
    pub last: super::demand::Observed,
    /// Rises at once, falls slowly.
    pub smoothed: f64,
}

impl Need {
    /// Takes in a span.
    pub fn update(&mut self, observed: super::demand::Observed) {
        self.last = observed;
        let envelope = observed.average + observed.deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
    }
}

/// One level in an adjustment.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Its bounds.
    pub seats: Seats,
    /// What it was asked for.
    pub need: Need,
    /// It is never held back; what it takes is missing for the others.
    pub is_exempt: bool,
}

impl Claim {
    /// What it needs at least: what it was asked for, up to what is its own.
    fn least(&self) -> f64 {
        let asked = self.need.last.most.min(f64::from(self.seats.nominal));
        asked.max(f64::from(self.seats.least))
    }
}

/// Each level's seats for the next span, and the share of its target that every unbounded level gets.
pub fn adjust(claims: &[Claim]) -> (Vec<u32>, f64) {
    let all: f64 = claims.iter().map(|c| f64::from(c.seats.nominal)).sum();
    let limited = || claims.iter().filter(|c| !c.is_exempt);
    let total = all - claims.iter().filter(|c| c.is_exempt).map(Claim::least).sum::<f64>();
    let guaranteed: f64 = limited().map(|c| f64::from(c.seats.least)).sum();
    let needed: f64 = limited().map(Claim::least).sum();
    let (fraction, of) = if total <= guaranteed {
        (0.0, Division::Guaranteed)
    } else if total <= needed {
        ((total - guaranteed) / (needed - guaranteed), Division::TowardsNeed)
    } else {
        (fair_fraction(total, claims), Division::Fair)
    };
    let seats = claims
        .iter()
        .map(|claim| {
            let (least, need) = (f64::from(claim.seats.least), claim.least());
            let seats = match of {
                _ if claim.is_exempt => need,
                Division::Guaranteed => least,
                Division::TowardsNeed => least + (need - least) * fraction,
                Division::Fair => claim.at(fraction),
            };
            seats.round() as u32
        })
        .collect();
    (seats, fraction)
}

enum Division {
    Guaranteed,
    TowardsNeed,
    Fair,
}

/// Targets are at least this: nobody's share is nothing.
const LEAST_TARGET: f64 = 0.001;
/// Halvings in the search for the fair fraction: more than a seat's share of it needs.
const HALVINGS: usize = 100;

impl Claim {
    fn target(&self) -> f64 {
        self.least().max(self.need.smoothed).max(LEAST_TARGET)
    }

    /// Its seats at a fraction of its target, within its bounds.
    fn at(&self, fraction: f64) -> f64 {
        (fraction * self.target()).min(f64::from(self.seats.most)).max(self.least())
    }
}

/// The fraction at which the seats of all limited levels sum up to `total`. The sum grows with the fraction.
fn fair_fraction(total: f64, claims: &[Claim]) -> f64 {
    let limited = || claims.iter().filter(|c| !c.is_exempt);
    let mut high = limited().map(|c| f64::from(c.seats.most) / c.target()).fold(1.0, f64::max);
    let mut low = 0.0;
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if limited().map(|c| c.at(middle)).sum::<f64>() < total { low = middle } else { high = middle }
    }
    high
}
