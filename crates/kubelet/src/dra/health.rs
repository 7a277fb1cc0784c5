//! How devices are, as their drivers report it. A report counts for a time; then nobody knows.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::messages::{DeviceHealth, HealthStatus};

/// So long a report counts that does not say how long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No report counts longer.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bytes of a message, at most.
const MESSAGE: usize = 1024;
/// A device of which nothing is known.
const UNKNOWN: &str = "Unknown";

#[derive(Debug, Clone)]
struct Known {
    health: &'static str,
    message: String,
    until: Instant,
}

/// What one socket of a driver reported.
#[derive(Debug)]
struct Reported {
    session: u64,
    /// By pool and name.
    devices: BTreeMap<(String, String), Known>,
}

/// By driver. Where several sockets of a driver report, the newest counts.
#[derive(Debug, Default)]
pub(super) struct Health(BTreeMap<String, Reported>);

impl Health {
    /// Takes in a report; whether anything is other than it was. What it leaves out is known until its time has come.
    pub(super) fn report(
        &mut self,
        driver: &str,
        session: u64,
        devices: Vec<DeviceHealth>,
        now: Instant,
    ) -> bool {
        let fresh = || Reported { session, devices: BTreeMap::new() };
        let known = self.0.entry(driver.to_owned()).or_insert_with(fresh);
        if known.session > session {
            return false;
        }
        known.session = session;
        let mut changed = false;
        for device in devices {
            let health = match device.health() {
                HealthStatus::Healthy => "Healthy",
                HealthStatus::Unhealthy => "Unhealthy",
                HealthStatus::Unknown => UNKNOWN,
            };
            let seconds = u64::try_from(device.health_check_timeout_seconds).unwrap_or(0);
            let timeout = if seconds == 0 { TIMEOUT } else { Duration::from_secs(seconds).min(LONGEST) };
            let new = Known { health, message: shortened(device.message), until: now + timeout };
            let id = device.device.unwrap_or_default();
            let old = known.devices.insert((id.pool_name, id.device_name), new.clone());
            changed |= old.is_none_or(|old| (old.health, old.message) != (new.health, new.message));
        }
        changed
    }

    /// When the next report of the socket is too old.
    pub(super) fn next(&self, driver: &str, session: u64) -> Option<Instant> {
        let reported = self.0.get(driver).filter(|reported| reported.session == session)?;
        reported.devices.values().map(|known| known.until).min()
    }

    /// Forgets what is too old; whether there was anything.
    pub(super) fn expire(&mut self, driver: &str, session: u64, now: Instant) -> bool {
        let reported = self.0.get_mut(driver).filter(|reported| reported.session == session);
        reported.is_some_and(|reported| {
            let before = reported.devices.len();
            reported.devices.retain(|_, known| known.until > now);
            reported.devices.len() < before
        })
    }

    /// The socket reports no longer; whether it did.
    pub(super) fn forget(&mut self, driver: &str, session: u64) -> bool {
        let is_it = self.0.get(driver).is_some_and(|reported| reported.session == session);
        is_it && self.0.remove(driver).is_some()
    }

    /// `Healthy`, `Unhealthy` or `Unknown`, and what the driver has to say of it.
    pub(super) fn of(&self, driver: &str, pool: &str, device: &str) -> (&'static str, Option<String>) {
        let key = (pool.to_owned(), device.to_owned());
        let known = self.0.get(driver).and_then(|reported| reported.devices.get(&key));
        known.map_or((UNKNOWN, None), |known| {
            (known.health, Some(known.message.clone()).filter(|message| !message.is_empty()))
        })
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE {
        let mut end = MESSAGE - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::super::messages::DeviceIdentifier;
    use super::*;

    fn device(name: &str, health: HealthStatus, seconds: i64, message: &str) -> DeviceHealth {
        let device = DeviceIdentifier { pool_name: "p".to_owned(), device_name: name.to_owned() };
        DeviceHealth {
            device: Some(device),
            health: health.into(),
            last_updated_time: 0,
            health_check_timeout_seconds: seconds,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_report_counts_until_it_is_too_old() {
        let (mut health, now) = (Health::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let both = vec![
            device("a", HealthStatus::Healthy, 0, ""),
            device("b", HealthStatus::Unhealthy, 60, "too hot"),
        ];
        assert!(health.report("d", 1, both.clone(), now));
        assert!(!health.report("d", 1, both, now), "nothing new");
        assert_eq!(health.of("d", "p", "a"), ("Healthy", None));
        assert_eq!(health.of("d", "p", "b"), ("Unhealthy", Some("too hot".to_owned())));
        assert_eq!(health.of("d", "p", "c"), ("Unknown", None));
        assert_eq!(health.next("d", 1), Some(after(30)));
        assert!(!health.expire("d", 1, after(29)));
        assert!(health.expire("d", 1, after(30)));
        assert_eq!(health.of("d", "p", "a"), ("Unknown", None));
        assert_eq!(health.next("d", 1), Some(after(60)));
        assert!(health.forget("d", 1));
        assert_eq!(health.of("d", "p", "b"), ("Unknown", None));
    }

    #[test]
    fn the_newest_socket_of_a_driver_counts() {
        let (mut health, now) = (Health::default(), Instant::now());
        let one = |status| vec![device("a", status, 0, "")];
        assert!(health.report("d", 2, one(HealthStatus::Healthy), now));
        assert!(!health.report("d", 1, one(HealthStatus::Unhealthy), now));
        assert!(!health.forget("d", 1));
        assert_eq!(health.of("d", "p", "a").0, "Healthy");
        assert!(health.report("d", 3, one(HealthStatus::Unhealthy), now));
        assert_eq!(health.of("d", "p", "a").0, "Unhealthy");
    }

    #[test]
    fn long_messages_are_cut_between_letters() {
        assert_eq!(shortened("x".repeat(1024)).len(), 1024);
        let cut = shortened("é".repeat(600));
        assert!(cut.len() <= 1024 && cut.ends_with("é..."), "{}", cut.len());
    }
}
