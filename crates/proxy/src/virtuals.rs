//! From what IPVS holds to what it should hold, as steps; pure.
//!
//! A frontend is one virtual service, a node port one per address of the node. An endpoint that goes keeps its connections: its
//! weight becomes 0, and it is removed when it has none left; with UDP, which knows no end, at once. A service without endpoints
//! stays as long as there are such.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use network::ipvs::{Real, Scheduler, Settings, Virtual};

use crate::plan::{Frontend, Protocol, Target};

/// Every endpoint has the same share.
const WEIGHT: u32 = 1;

/// A change of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes a service.
    Add(Virtual, Settings),
    /// Changes a service.
    Edit(Virtual, Settings),
    /// Removes a service.
    Remove(Virtual),
    /// Adds an endpoint, of weight 1.
    AddReal(Virtual, SocketAddr),
    /// Gives an endpoint that weight.
    Weigh(Virtual, SocketAddr, u32),
    /// Removes an endpoint.
    RemoveReal(Virtual, SocketAddr),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stay = |settings: &Settings| settings.persistence.map_or(String::new(), |s| format!(" stay {s}"));
        match self {
            Self::Add(service, settings) => write!(f, "+ {service} {}{}", settings.scheduler, stay(settings)),
            Self::Edit(service, settings) => {
                write!(f, "= {service} {}{}", settings.scheduler, stay(settings))
            }
            Self::Remove(service) => write!(f, "- {service}"),
            Self::AddReal(service, real) => write!(f, "+ {service} at {real}"),
            Self::Weigh(service, real, weight) => write!(f, "= {service} at {real} weight {weight}"),
            Self::RemoveReal(service, real) => write!(f, "- {service} at {real}"),
        }
    }
}

/// Changes of IPVS that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// Before packets are led there.
    pub first: Vec<Step>,
    /// When no packet is led any more to what goes.
    pub last: Vec<Step>,
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.iter().chain(&self.last).try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A virtual service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    settings: Settings,
    /// Endpoints with their weights.
    reals: BTreeMap<SocketAddr, u32>,
}

/// What IPVS holds of ours.
#[derive(Debug, Clone, Default)]
pub struct Virtuals {
    scheduler: Scheduler,
    /// Where node ports are served.
    addresses: BTreeSet<IpAddr>,
    held: HashMap<Frontend, BTreeMap<IpAddr, Held>>,
}

impl Virtuals {
    /// Nothing; services will have this scheduler, node ports these addresses.
    pub fn new(scheduler: Scheduler, addresses: BTreeSet<IpAddr>) -> Self {
        Self { scheduler, addresses, held: HashMap::new() }
    }

    /// Notes a service of `frontend` that was read.
    pub fn hold(&mut self, frontend: Frontend, addr: IpAddr, settings: Settings, reals: &[Real]) {
        let reals = reals.iter().map(|real| (real.addr, real.weight)).collect();
        self.held.entry(frontend).or_default().insert(addr, Held { settings, reals });
    }

    /// Where node ports are to be served from now on; whether that is news.
    pub fn serve_node_ports_at(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        std::mem::replace(&mut self.addresses, addresses.clone()) != addresses
    }

    /// Frontends that have a service.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.held.keys()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = Virtual> + '_ {
        self.held.iter().flat_map(|(frontend, at)| at.keys().map(|addr| virtual_at(frontend, *addr)))
    }

    /// Services with endpoints that have connections, and get no more.
    pub fn draining(&self) -> Vec<(Frontend, IpAddr)> {
        let drains = |held: &Held| held.reals.values().any(|weight| *weight == 0);
        let all = self.held.iter().flat_map(|(frontend, at)| at.iter().map(move |at| (frontend, at)));
        all.filter(|(_, (_, held))| drains(held)).map(|(frontend, (addr, _))| (*frontend, *addr)).collect()
    }

    /// The steps that bring `frontend` to where it leads now. `self` is then as if they were done.
    pub fn update(&mut self, frontend: &Frontend, target: Option<&Target>, steps: &mut Steps) {
        let mut old = self.held.remove(frontend).unwrap_or_default();
        let mut new = BTreeMap::new();
        for addr in self.addresses_of(frontend) {
            let Some(target) = target else { break };
            let held = old.remove(&addr);
            if held.is_none() && target.backends.is_empty() {
                continue;
            }
            let service = virtual_at(frontend, addr);
            let held = self.update_service(service, held, target, steps);
            if held.reals.is_empty() {
                steps.last.push(Step::Remove(service));
            } else {
                new.insert(addr, held);
            }
        }
        steps.last.extend(old.keys().map(|addr| Step::Remove(virtual_at(frontend, *addr))));
        if !new.is_empty() {
            self.held.insert(*frontend, new);
        }
    }

    fn update_service(
        &self,
        service: Virtual,
        held: Option<Held>,
        target: &Target,
        steps: &mut Steps,
    ) -> Held {
        let settings = Settings { scheduler: self.scheduler.name().to_owned(), persistence: target.affinity };
        let mut held = held.unwrap_or_else(|| {
            steps.first.push(Step::Add(service, settings.clone()));
            Held { settings: settings.clone(), reals: BTreeMap::new() }
        });
        if held.settings != settings {
            steps.first.push(Step::Edit(service, settings.clone()));
            held.settings = settings;
        }
        for real in &target.backends {
            match held.reals.insert(*real, WEIGHT) {
                None => steps.first.push(Step::AddReal(service, *real)),
                Some(WEIGHT) => {}
                Some(_) => steps.first.push(Step::Weigh(service, *real, WEIGHT)),
            }
        }
        let wanted: BTreeSet<&SocketAddr> = target.backends.iter().collect();
        held.reals.retain(|real, weight| {
            if wanted.contains(real) {
                return true;
            }
            if service.protocol == Protocol::Udp {
                steps.last.push(Step::RemoveReal(service, *real));
                return false;
            }
            if *weight != 0 {
                steps.last.push(Step::Weigh(service, *real, 0));
                *weight = 0;
            }
            true
        });
        held
    }

    /// The steps that remove endpoints of a service that get no connections and, as `reals` says, have none.
    pub fn drained(&mut self, frontend: &Frontend, addr: IpAddr, reals: &[Real], steps: &mut Steps) {
        let Some(at) = self.held.get_mut(frontend) else { return };
        let Some(held) = at.get_mut(&addr) else { return };
        let service = virtual_at(frontend, addr);
        for real in reals.iter().filter(|real| real.connections == 0) {
            if held.reals.get(&real.addr) == Some(&0) {
                held.reals.remove(&real.addr);
                steps.last.push(Step::RemoveReal(service, real.addr));
            }
        }
        if held.reals.is_empty() {
            steps.last.push(Step::Remove(service));
            at.remove(&addr);
        }
        if at.is_empty() {
            self.held.remove(frontend);
        }
    }

    fn addresses_of(&self, frontend: &Frontend) -> Vec<IpAddr> {
        if !frontend.is_node_port() {
            return vec![frontend.addr];
        }
        self.addresses.iter().copied().filter(|addr| addr.is_ipv6() == frontend.addr.is_ipv6()).collect()
    }
}

fn virtual_at(frontend: &Frontend, addr: IpAddr) -> Virtual {
    Virtual { addr, protocol: frontend.protocol, port: frontend.port }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use network::Protocol;

    use super::*;
    use crate::plan::Refusal;

    fn frontend(protocol: Protocol, addr: &str, port: u16) -> Frontend {
        Frontend { addr: addr.parse().unwrap(), protocol, port }
    }

    fn target(backends: &[&str]) -> Target {
        Target {
            backends: backends.iter().map(|addr| addr.parse().unwrap()).collect(),
            inside: None,
            sources: None,
            masquerade: false,
            affinity: None,
            refusal: Refusal::Reject,
        }
    }

    fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
        all.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    fn check(virtuals: &mut Virtuals, frontend: Frontend, target: Option<Target>, expect: Expect) {
        let mut steps = Steps::default();
        virtuals.update(&frontend, target.as_ref(), &mut steps);
        expect.assert_eq(&steps.to_string());
        let mut again = Steps::default();
        virtuals.update(&frontend, target.as_ref(), &mut again);
        assert_eq!(again, Steps::default(), "done means done");
    }

    #[test]
    fn endpoints_come_before_and_go_after_packets() {
        let mut virtuals = Virtuals::new(Scheduler::LeastConnection, BTreeSet::new());
        let web = frontend(Protocol::Tcp, "10.96.0.1", 80);
        check(
            &mut virtuals,
            web,
            Some(target(&["10.0.0.1:80", "10.0.0.2:80"])),
            expect![[r#"
            + tcp 10.96.0.1:80 lc
            + tcp 10.96.0.1:80 at 10.0.0.1:80
            + tcp 10.96.0.1:80 at 10.0.0.2:80
        "#]],
        );
        // one goes and keeps its connections, another one comes
        check(
            &mut virtuals,
            web,
            Some(target(&["10.0.0.2:80", "10.0.0.3:80"])),
            expect![[r#"
            + tcp 10.96.0.1:80 at 10.0.0.3:80
            = tcp 10.96.0.1:80 at 10.0.0.1:80 weight 0
        "#]],
        );
        // it comes back
        check(
            &mut virtuals,
            web,
            Some(target(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])),
            expect![[r#"
            = tcp 10.96.0.1:80 at 10.0.0.1:80 weight 1
        "#]],
        );
        // nobody is left; the service stays until the last connection ends
        check(
            &mut virtuals,
            web,
            Some(target(&[])),
            expect![[r#"
            = tcp 10.96.0.1:80 at 10.0.0.1:80 weight 0
            = tcp 10.96.0.1:80 at 10.0.0.2:80 weight 0
            = tcp 10.96.0.1:80 at 10.0.0.3:80 weight 0
        "#]],
        );
        check(
            &mut virtuals,
            web,
            None,
            expect![[r#"
            - tcp 10.96.0.1:80
        "#]],
        );
    }

    #[test]
    fn udp_endpoints_go_at_once_and_their_service_with_the_last() {
        let mut virtuals = Virtuals::new(Scheduler::RoundRobin, BTreeSet::new());
        let dns = frontend(Protocol::Udp, "fd00::a", 53);
        check(
            &mut virtuals,
            dns,
            Some(target(&["[fd01::1]:53", "[fd01::2]:53"])),
            expect![[r#"
            + udp [fd00::a]:53 rr
            + udp [fd00::a]:53 at [fd01::1]:53
            + udp [fd00::a]:53 at [fd01::2]:53
        "#]],
        );
        check(
            &mut virtuals,
            dns,
            Some(target(&["[fd01::2]:53"])),
            expect![[r#"
            - udp [fd00::a]:53 at [fd01::1]:53
        "#]],
        );
        check(
            &mut virtuals,
            dns,
            Some(target(&[])),
            expect![[r#"
            - udp [fd00::a]:53 at [fd01::2]:53
            - udp [fd00::a]:53
        "#]],
        );
        assert_eq!(virtuals.services().count(), 0);
    }

    #[test]
    fn affinity_is_a_setting_of_the_service() {
        let mut virtuals = Virtuals::new(Scheduler::RoundRobin, BTreeSet::new());
        let web = frontend(Protocol::Tcp, "10.96.0.1", 80);
        check(
            &mut virtuals,
            web,
            Some(target(&["10.0.0.1:80"])),
            expect![[r#"
            + tcp 10.96.0.1:80 rr
            + tcp 10.96.0.1:80 at 10.0.0.1:80
        "#]],
        );
        let stay = Target { affinity: Some(10800), ..target(&["10.0.0.1:80"]) };
        check(
            &mut virtuals,
            web,
            Some(stay),
            expect![[r#"
            = tcp 10.96.0.1:80 rr stay 10800
        "#]],
        );
    }

    #[test]
    fn a_node_port_is_served_at_each_address_of_its_family() {
        let mut virtuals =
            Virtuals::new(Scheduler::RoundRobin, addresses(&["192.0.2.1", "10.244.0.1", "fd00::1"]));
        let port = frontend(Protocol::Sctp, "0.0.0.0", 30080);
        check(
            &mut virtuals,
            port,
            Some(target(&["10.0.0.1:80"])),
            expect![[r#"
            + sctp 10.244.0.1:30080 rr
            + sctp 10.244.0.1:30080 at 10.0.0.1:80
            + sctp 192.0.2.1:30080 rr
            + sctp 192.0.2.1:30080 at 10.0.0.1:80
        "#]],
        );
        assert!(virtuals.serve_node_ports_at(addresses(&["192.0.2.1", "192.0.2.7"])));
        assert!(!virtuals.serve_node_ports_at(addresses(&["192.0.2.1", "192.0.2.7"])));
        check(
            &mut virtuals,
            port,
            Some(target(&["10.0.0.1:80"])),
            expect![[r#"
            + sctp 192.0.2.7:30080 rr
            + sctp 192.0.2.7:30080 at 10.0.0.1:80
            - sctp 10.244.0.1:30080
        "#]],
        );
    }

    #[test]
    fn what_was_read_is_changed_only_where_it_differs() {
        let mut virtuals = Virtuals::new(Scheduler::RoundRobin, addresses(&["192.0.2.1"]));
        let web = frontend(Protocol::Tcp, "10.96.0.1", 80);
        let real =
            |addr: &str, weight, connections| Real { addr: addr.parse().unwrap(), weight, connections };
        let settings = Settings { scheduler: "sh".to_owned(), persistence: None };
        let reals = [real("10.0.0.1:80", 1, 3), real("10.0.0.2:80", 0, 1), real("10.0.0.3:80", 7, 0)];
        virtuals.hold(web, web.addr, settings, &reals);
        assert_eq!(virtuals.draining(), [(web, web.addr)]);
        check(
            &mut virtuals,
            web,
            Some(target(&["10.0.0.1:80", "10.0.0.3:80"])),
            expect![[r#"
            = tcp 10.96.0.1:80 rr
            = tcp 10.96.0.1:80 at 10.0.0.3:80 weight 1
        "#]],
        );
    }

    #[test]
    fn an_endpoint_that_goes_is_removed_when_its_connections_have_ended() {
        let mut virtuals = Virtuals::new(Scheduler::RoundRobin, BTreeSet::new());
        let web = frontend(Protocol::Tcp, "10.96.0.1", 80);
        let mut steps = Steps::default();
        virtuals.update(&web, Some(&target(&["10.0.0.1:80", "10.0.0.2:80"])), &mut steps);
        virtuals.update(&web, Some(&target(&[])), &mut steps);
        let mut drained = |connections: [u64; 2]| {
            let reals: Vec<Real> = [1, 2]
                .map(|n| Real {
                    addr: format!("10.0.0.{n}:80").parse().unwrap(),
                    weight: 0,
                    connections: connections[n - 1],
                })
                .into();
            let mut steps = Steps::default();
            virtuals.drained(&web, web.addr, &reals, &mut steps);
            steps.to_string()
        };
        assert_eq!(drained([1, 1]), "");
        assert_eq!(drained([0, 1]), "- tcp 10.96.0.1:80 at 10.0.0.1:80\n");
        assert_eq!(drained([0, 0]), "- tcp 10.96.0.1:80 at 10.0.0.2:80\n- tcp 10.96.0.1:80\n");
        assert!(virtuals.draining().is_empty());
    }
}
