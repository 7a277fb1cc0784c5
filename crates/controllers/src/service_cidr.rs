//! ServiceCIDRs: each says whether it is ready, and one that is being deleted stays while an address that is given needs it.
//!
//! Rule: Kubernetes documentation, "Extend Service IP Ranges". An address needs a range when no other range that stays
//! contains it.
use std::net::IpAddr;
use std::time::Duration;

use client::{Cache, Change};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::finalizers;
use crate::ip_range::Range;
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// So long after its deletion nobody gives addresses of a range any more.
const GRACE: Duration = Duration::from_secs(10);

struct Controller {
    context: Context,
    ranges: Cache<ServiceCIDR>,
    addresses: Cache<IPAddress>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (ranges, addresses) = (caches.of::<ServiceCIDR>(), caches.of::<IPAddress>());
    let controller =
        Controller { context: context.clone(), ranges: ranges.clone(), addresses: addresses.clone() };
    Runner::new(&context, controller)
        .on(&ranges, |c: &Controller, change| {
            // What overlaps may go, or may not, because of this one.
            let mut keys = c.going();
            if !matches!(change, Change::Deleted(_)) {
                keys.push(name(&change.object().metadata).to_owned());
            }
            keys
        })
        .on(&addresses, |c: &Controller, _| c.going())
        .run(1)
        .await;
}

fn ranges(cidr: &ServiceCIDR) -> Vec<Range> {
    let texts = cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
    texts.filter_map(|t| Range::parse(t)).collect()
}

/// Whether an address would be without a range if `going` went.
fn is_needed(going: &[Range], others: &[Range], addresses: impl IntoIterator<Item = IpAddr>) -> bool {
    let within = |ranges: &[Range], ip: IpAddr| ranges.iter().any(|r| r.contains(ip));
    addresses.into_iter().any(|ip| within(going, ip) && !within(others, ip))
}

fn is_going(cidr: &ServiceCIDR) -> bool {
    cidr.metadata.deletion_timestamp.is_some()
}

impl Controller {
    fn going(&self) -> Vec<String> {
        let going = self.ranges.list().into_iter().filter(|r| is_going(r));
        going.map(|r| name(&r.metadata).to_owned()).collect()
    }

    async fn say(&self, cidr: &ServiceCIDR, ready: bool) -> Result<(), Failure> {
        let (status, reason, message) = if ready {
            ("True", "", "Kubernetes Service CIDR is ready")
        } else {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            ("False", "Terminating", why)
        };
        let conditions = cidr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Ready" && c.status == status && c.reason == reason) {
            return Ok(());
        }
        let mut next = cidr.clone();
        let list = next.status.get_or_insert_default().conditions.get_or_insert_default();
        list.retain(|c| c.type_ != "Ready");
        list.push(Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(self.context.clock.now()),
            observed_generation: None,
        });
        self.context.client.update_status("", &next).await?;
        Ok(())
    }
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(cidr) = self.ranges.get("", key) else { return Ok(Outcome::Settled) };
        let client = &self.context.client;
        let Some(since) = cidr.metadata.deletion_timestamp.as_ref() else {
            if !finalizers::has(&cidr.metadata, FINALIZER) {
                // The change brings the key back.
                finalizers::add(client, &*cidr, FINALIZER).await?;
                return Ok(Outcome::Settled);
            }
            self.say(&cidr, true).await?;
            return Ok(Outcome::Settled);
        };
        if !finalizers::has(&cidr.metadata, FINALIZER) {
            return Ok(Outcome::Settled);
        }
        let others: Vec<Range> =
            self.ranges.list().iter().filter(|r| !is_going(r)).flat_map(|r| ranges(r)).collect();
        let addresses = self.addresses.list();
        let given = addresses.iter().filter_map(|a| name(&a.metadata).parse().ok());
        if is_needed(&ranges(&cidr), &others, given) {
            self.say(&cidr, false).await?;
            return Ok(Outcome::Settled);
        }
        let gone =
            self.context.clock.now().duration_since(since.0).max(jiff::SignedDuration::ZERO).unsigned_abs();
        if gone < GRACE {
            return Ok(Outcome::After(GRACE - gone));
        }
        finalizers::remove(client, &*cidr, FINALIZER).await?;
        Ok(Outcome::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_needed_by_addresses_that_no_other_range_has() {
        let range = |text: &str| Range::parse(text).expect("range");
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let small = [range("10.96.0.0/24")];
        assert!(is_needed(&small, &[], [ip("10.96.0.7")]));
        assert!(!is_needed(&small, &[range("10.96.0.0/16")], [ip("10.96.0.7")]));
        assert!(!is_needed(&small, &[], [ip("10.96.1.7"), ip("fd00::1")]));
        assert!(is_needed(&[range("fd00::/108")], &small, [ip("fd00::f:1")]));
        assert!(range("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert_eq!(Range::parse("10.0.0.0/33"), None);
    }
}
