//! Services of type LoadBalancer get an address of the pool that the cluster was given. The nodes announce it.
//!
//! Rule: Kubernetes documentation, "type: LoadBalancer", for what a cloud's controller does: a service with a
//! `loadBalancerClass` is somebody else's, `loadBalancerIP` names the wanted address, one address of each of the service's
//! families. What is given stands in the services' status and nowhere else; a service keeps its address while the pool has it,
//! and of two with the same one the older keeps it.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use client::events::{EventType, reference};
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use parking_lot::Mutex;

use crate::ip_range::Range;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// The condition by which nodes know that they are to answer for a service's addresses, and not another's announcers.
const FROM_POOL: &str = "navarch.dev/LoadBalancerPool";

struct Controller {
    context: Context,
    pool: Vec<Range>,
    services: Cache<Service>,
    /// What was written and is perhaps not in the cache yet; what stands there wins.
    given: Mutex<BTreeMap<ObjectKey, (Option<String>, Vec<IpAddr>)>>,
}

pub(crate) async fn run(context: Context, pool: Vec<Range>) {
    let services = context.reader.caches().of::<Service>();
    let given = Mutex::default();
    let controller = Controller { context: context.clone(), pool, services: services.clone(), given };
    Runner::new(&context, controller)
        .on(&services, |c: &Controller, change| {
            let mut keys = vec![ObjectKey::of(&change.object().metadata)];
            // an address that may have become free
            if matches!(change, Change::Deleted(_)) || !is_ours(change.object()) {
                keys.extend(c.waiting());
            }
            keys
        })
        // one after the other: no two are given the same address
        .run(1)
        .await;
}

/// Parses the pool: CIDRs with commas between them; the one that is none where it cannot.
pub(crate) fn parse(text: &str) -> Result<Vec<Range>, String> {
    let texts = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    texts.map(|t| Range::parse(t).ok_or_else(|| t.to_owned())).collect()
}

/// Whether a service wants an address of a pool without a name.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
        && service.metadata.deletion_timestamp.is_none()
}

/// The addresses that its status says.
fn has(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|s| s.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect()
}

/// Whether its addresses are the pool's.
fn is_marked(service: &Service) -> bool {
    let conditions = service.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == FROM_POOL)
}

/// The families that a service is to have, IPv6?; of one that does not say, IPv4.
fn families(service: &Service) -> Vec<bool> {
    let said = service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).filter(|f| !f.is_empty());
    said.map_or_else(|| vec![false], |all| all.iter().map(|family| family == "IPv6").collect())
}

/// Why a service stays without an address.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// `loadBalancerIP` is no address.
    NoAddress(String),
    /// It is not in the pool.
    Outside(IpAddr),
    /// Another service has it.
    Taken(IpAddr),
    /// The pool has none left.
    Exhausted,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAddress(text) => write!(f, "loadBalancerIP {text:?} is not an IP address"),
            Self::Outside(ip) => write!(f, "loadBalancerIP {ip} is not in the load balancer pool"),
            Self::Taken(ip) => write!(f, "loadBalancerIP {ip} is already allocated to another service"),
            Self::Exhausted => f.write_str("the load balancer pool has no free address left"),
        }
    }
}

/// The addresses of a service, given those that others have.
fn plan(service: &Service, pool: &[Range], taken: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, Refused> {
    let free = |ip: &IpAddr| pool.iter().any(|r| r.contains(*ip)) && !taken.contains(ip);
    let asked = service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref()).filter(|t| !t.is_empty());
    let asked = match asked.map(str::parse::<IpAddr>) {
        Some(Err(_)) => return Err(Refused::NoAddress(asked.unwrap_or_default().to_owned())),
        Some(Ok(ip)) if !pool.iter().any(|r| r.contains(ip)) => return Err(Refused::Outside(ip)),
        Some(Ok(ip)) if taken.contains(&ip) => return Err(Refused::Taken(ip)),
        Some(Ok(ip)) => Some(ip),
        None => None,
    };
    let kept = has(service);
    let mut planned = Vec::new();
    for v6 in families(service) {
        let of_family = |ip: &IpAddr| ip.is_ipv6() == v6;
        let wanted = asked.filter(of_family).or_else(|| {
            let kept = kept.iter().copied().filter(|ip| of_family(ip) && asked.is_none()).find(free);
            kept.or_else(|| pool.iter().filter(|r| r.is_ipv6() == v6).flat_map(Range::addresses).find(free))
        });
        planned.extend(wanted);
    }
    if planned.is_empty() { Err(Refused::Exhausted) } else { Ok(planned) }
}

impl Controller {
    /// Services that want an address and have none.
    fn waiting(&self) -> Vec<ObjectKey> {
        let services = self.services.list().into_iter().filter(|s| is_ours(s) && has(s).is_empty());
        services.map(|s| ObjectKey::of(&s.metadata)).collect()
    }

    /// What services other than this one have; of a double address the older is the holder.
    fn taken(&self, own: &Service) -> BTreeSet<IpAddr> {
        let key = ObjectKey::of(&own.metadata);
        let age =
            |s: &Service| (s.metadata.creation_timestamp.clone().map(|t| t.0), ObjectKey::of(&s.metadata));
        let kept = has(own);
        let mut given = self.given.lock();
        let mut taken = BTreeSet::new();
        let services = self.services.list();
        let of = |key: &ObjectKey| services.iter().find(|s| ObjectKey::of(&s.metadata) == *key);
        // what the cache shows, or will never show, needs no remembering
        given.retain(|key, (uid, ips)| of(key).is_some_and(|s| s.metadata.uid == *uid && has(s) != *ips));
        for service in services.iter().filter(|s| is_ours(s) && ObjectKey::of(&s.metadata) != key) {
            let older = age(service) < age(own);
            taken.extend(has(service).into_iter().filter(|ip| older || !kept.contains(ip)));
        }
        taken.extend(given.iter().filter(|(k, _)| **k != key).flat_map(|(_, (_, ips))| ips.clone()));
        taken
    }

    async fn write(&self, service: &Service, addresses: &[IpAddr]) -> Result<(), Failure> {
        let mut next = service.clone();
        let ingress = addresses.iter().map(|ip| LoadBalancerIngress {
            ip: Some(ip.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..Default::default()
        });
        let status = next.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default().ingress =
            (!addresses.is_empty()).then(|| ingress.collect());
        let conditions = status.conditions.get_or_insert_default();
        let since = conditions.iter().find(|c| c.type_ == FROM_POOL).map(|c| c.last_transition_time.clone());
        conditions.retain(|c| c.type_ != FROM_POOL);
        if !addresses.is_empty() {
            conditions.push(Condition {
                type_: FROM_POOL.to_owned(),
                status: "True".to_owned(),
                reason: "Assigned".to_owned(),
                message: String::new(),
                last_transition_time: since.unwrap_or_else(|| Time(self.context.clock.now())),
                observed_generation: None,
            });
        }
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        self.context.client.update_status(namespace, &next).await?;
        let note = (service.metadata.uid.clone(), addresses.to_vec());
        self.given.lock().insert(ObjectKey::of(&service.metadata), note);
        Ok(())
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(service) = self.services.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let current = has(&service);
        if !is_ours(&service) {
            // what others said is not ours to remove
            if is_marked(&service) && service.metadata.deletion_timestamp.is_none() {
                self.write(&service, &[]).await?;
            }
            return Ok(Outcome::Settled);
        }
        let (kind, reason, message, addresses) = match plan(&service, &self.pool, &self.taken(&service)) {
            Ok(planned) if planned == current && is_marked(&service) => return Ok(Outcome::Settled),
            Ok(planned) => {
                let texts: Vec<String> = planned.iter().map(ToString::to_string).collect();
                let message = format!("Assigned {}", texts.join(", "));
                (EventType::Normal, "EnsuredLoadBalancer", message, planned)
            }
            Err(refused) => (EventType::Warning, "SyncLoadBalancerFailed", refused.to_string(), Vec::new()),
        };
        if addresses != current || is_marked(&service) == addresses.is_empty() {
            self.write(&service, &addresses).await?;
        }
        self.context.recorder.event(&reference(&*service), kind, reason, message);
        Ok(Outcome::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, status: &[&str], taken: &[&str], expect: &str) {
        let ingress: Vec<_> = status.iter().map(|ip| json!({"ip": ip})).collect();
        let service = json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
        let service: Service = serde_json::from_value(service).unwrap();
        let pool = parse("192.0.2.200/30, fd00::/126").unwrap();
        let taken = taken.iter().map(|t| t.parse().unwrap()).collect();
        let text = match plan(&service, &pool, &taken) {
            Ok(planned) => planned.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(refused) => refused.to_string(),
        };
        assert_eq!(text, expect);
    }

    #[test]
    fn a_service_gets_the_lowest_free_address_of_each_of_its_families() {
        let v4 = json!({"ipFamilies": ["IPv4"]});
        check(v4.clone(), &[], &[], "192.0.2.200");
        check(v4.clone(), &[], &["192.0.2.200"], "192.0.2.201");
        check(json!({"ipFamilies": ["IPv6", "IPv4"]}), &[], &["fd00::"], "fd00::1 192.0.2.200");
        let all = ["192.0.2.200", "192.0.2.201", "192.0.2.202", "192.0.2.203"];
        check(v4, &[], &all, "the load balancer pool has no free address left");
    }

    #[test]
    fn an_address_is_kept_while_the_pool_has_it_and_nobody_older_does() {
        check(json!({}), &["192.0.2.203"], &[], "192.0.2.203");
        check(json!({}), &["192.0.2.203"], &["192.0.2.203"], "192.0.2.200");
        check(json!({}), &["198.51.100.1"], &[], "192.0.2.200");
    }

    #[test]
    fn the_wanted_address_or_none() {
        let asks = |ip: &str| json!({"loadBalancerIP": ip});
        check(asks("192.0.2.202"), &["192.0.2.200"], &[], "192.0.2.202");
        check(
            asks("192.0.2.202"),
            &[],
            &["192.0.2.202"],
            "loadBalancerIP 192.0.2.202 is already allocated to another service",
        );
        check(asks("192.0.2.1"), &[], &[], "loadBalancerIP 192.0.2.1 is not in the load balancer pool");
        check(asks("x"), &[], &[], "loadBalancerIP \"x\" is not an IP address");
    }

    #[test]
    fn a_class_is_somebody_elses() {
        let of = |spec| is_ours(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert!(of(json!({"type": "LoadBalancer"})));
        assert!(!of(json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/x"})));
        assert!(!of(json!({"type": "NodePort"})));
    }
}
