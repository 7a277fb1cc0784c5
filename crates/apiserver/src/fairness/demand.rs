//! How many seats a level was asked for over time: average, deviation and maximum.

/// A quantity over time.
#[derive(Debug)]
pub struct Demand {
    since: f64,
    changed: f64,
    value: f64,
    integral: f64,
    integral_of_squares: f64,
    most: f64,
}

/// What a quantity was over a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observed {
    /// Seconds of the span.
    pub seconds: f64,
    /// Over time.
    pub average: f64,
    /// Standard deviation over time.
    pub deviation: f64,
    /// The maximum.
    pub most: f64,
}

impl Demand {
    /// Zero from now on.
    pub fn new(now: f64) -> Self {
        Self { since: now, changed: now, value: 0.0, integral: 0.0, integral_of_squares: 0.0, most: 0.0 }
    }

    /// The quantity changes.
    pub fn set(&mut self, now: f64, value: u32) {
        self.advance(now);
        self.value = f64::from(value);
        self.most = self.most.max(self.value);
    }

    fn advance(&mut self, now: f64) {
        let passed = (now - self.changed).max(0.0);
        self.changed = self.changed.max(now);
        self.integral += self.value * passed;
        self.integral_of_squares += self.value * self.value * passed;
    }

    /// What it was since the last call; a new span begins.
    pub fn take(&mut self, now: f64) -> Observed {
        self.advance(now);
        let seconds = self.changed - self.since;
        let (average, deviation) = if seconds > 0.0 {
            let average = self.integral / seconds;
            (average, (self.integral_of_squares / seconds - average * average).max(0.0).sqrt())
        } else {
            (self.value, 0.0)
        };
        let observed = Observed { seconds, average, deviation, most: self.most };
        let value = self.value;
        *self = Self { value, most: value, ..Self::new(self.changed) };
        observed
    }
}
