//! The kernel's load balancer, IPVS: virtual services and the real servers behind them, by generic netlink, and how packets for
//! them reach it.
//!
//! IPVS looks at packets that are for this host, or come from it. Others bring a service's packets to it by giving the host every
//! service's address; here a packet that was found to be for a service carries the bit [`LED`] in its mark, and a rule leads
//! those, and no others, to a routing table where everything is local. So no address is added: nothing answers for one in the
//! name of other nodes, no port of the node's own programs opens under one, and the node calls services with its own address.
//! IPVS sends what it translated on as if it came from here; whoever sees it there must clear the bit before it is routed again.
//!
//! Rejected: a dummy link with the address of every service (all of the above, and [`announce`](crate::announce) could no
//! longer say which node answers for a load balancer's address).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::rule::RuleBuilder;
use nlink::netlink::types::route::{RouteProtocol, RouteScope, RouteType};
use nlink::netlink::{Connection, Generic, Route};

use crate::Protocol;
use crate::ipvs_wire::{self as wire, Command};
use crate::netns::Place;
use crate::sysctl::{self, SysctlError};

/// Packets with this bit in their mark are led to IPVS.
pub const LED: u32 = 0x2000;
/// The routing table where everything is local, and the place of the rule that leads to it.
const TABLE: u32 = 28_278;
const PRIORITY: u32 = 100;
/// Marks our route and rule; of the range that no routing daemon has.
const PROTOCOL: u8 = 145;
/// The mark of the service that is made, and removed, to see whether there is a scheduler.
const PROBE: u32 = 0x6e76_7072;
/// What masquerade needs (conntrack), and that connections to a server that went are looked at anew.
const SETTINGS: [&str; 3] = ["conntrack", "expire_nodest_conn", "expire_quiescent_template"];

/// How IPVS chooses among real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Scheduler {
    /// One after the other.
    #[default]
    RoundRobin,
    /// One after the other, by weight.
    WeightedRoundRobin,
    /// The one with the fewest connections.
    LeastConnection,
    /// The one with the fewest connections, by weight.
    WeightedLeastConnection,
    /// By destination, the one with the fewest connections.
    LocalityBasedLeastConnection,
    /// By destination, a set of them.
    LocalityBasedLeastConnectionReplicated,
    /// By the destination's hash.
    DestinationHashing,
    /// By the client's hash.
    SourceHashing,
    /// The one with the shortest expected delay.
    ShortestExpectedDelay,
    /// An idle one, else the one with the shortest expected delay.
    NeverQueue,
    /// The one with the highest weight.
    WeightedFailover,
    /// The one with the highest weight that has fewer connections than that.
    WeightedOverflow,
    /// By Google's Maglev hash of the client.
    MaglevHashing,
    /// The better of two drawn by weight.
    PowerOfTwo,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
        Self::LocalityBasedLeastConnection,
        Self::LocalityBasedLeastConnectionReplicated,
        Self::DestinationHashing,
        Self::SourceHashing,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::WeightedFailover,
        Self::WeightedOverflow,
        Self::MaglevHashing,
        Self::PowerOfTwo,
    ];

    /// The kernel's name for it; its module is `ip_vs_NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
            Self::LocalityBasedLeastConnection => "lblc",
            Self::LocalityBasedLeastConnectionReplicated => "lblcr",
            Self::DestinationHashing => "dh",
            Self::SourceHashing => "sh",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::WeightedFailover => "fo",
            Self::WeightedOverflow => "ovf",
            Self::MaglevHashing => "mh",
            Self::PowerOfTwo => "twos",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No scheduler has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scheduler of IPVS: {known}", known = Scheduler::ALL.map(Scheduler::name).join(", "))]
pub struct UnknownScheduler(String);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, UnknownScheduler> {
        let found = Self::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

/// What clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Virtual {
    /// Its address.
    pub addr: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.addr, self.port))
    }
}

/// How a virtual service treats its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's name of the scheduler: another program's may be one that we do not know.
    pub scheduler: String,
    /// For so many seconds a client stays with its real server.
    pub persistence: Option<u32>,
}

/// A real server of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Real {
    /// Where it is.
    pub addr: SocketAddr,
    /// Its share; none with 0, where connections go on that exist.
    pub weight: u32,
    /// Connections, those about to end among them.
    pub connections: u64,
}

/// Why IPVS does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has none.
    #[error("this node's kernel has no IPVS: load its module, ip_vs, or choose the proxy mode nftables")]
    Missing,
    /// The kernel has none of this name.
    #[error(
        "this node's kernel has no IPVS scheduler {0}: load its module, ip_vs_{0}, or choose another one"
    )]
    NoScheduler(Scheduler),
    /// The kernel refused.
    #[error("IPVS: cannot {what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: nlink::Error,
    },
    /// Its settings cannot be changed.
    #[error("IPVS: cannot change its settings")]
    Settings(#[from] SysctlError),
}

fn kernel(what: impl fmt::Display) -> impl FnOnce(nlink::Error) -> IpvsError {
    let what = what.to_string();
    move |source| IpvsError::Kernel { what, source }
}

/// A connection to the IPVS of a network namespace.
pub struct Ipvs {
    conn: Connection<Generic>,
    family: u16,
    place: Place,
}

impl Ipvs {
    /// In the namespace of `place`; fails where the kernel has no IPVS. Changes nothing.
    pub async fn open(place: &Place) -> Result<Self, IpvsError> {
        let conn = place.generic().map_err(kernel("open a netlink socket"))?;
        match conn.get_family_id(wire::FAMILY).await {
            Ok(family) => Ok(Self { conn, family, place: place.clone() }),
            Err(error) if error.is_not_found() => Err(IpvsError::Missing),
            Err(error) => Err(kernel("look for it")(error)),
        }
    }

    /// Fails where the kernel has no such scheduler.
    pub async fn has(&self, scheduler: Scheduler) -> Result<(), IpvsError> {
        let settings = Settings { scheduler: scheduler.name().to_owned(), persistence: None };
        let service = wire::marked(PROBE, &settings);
        match self.command(Command::NewService, &service, &[]).await {
            Ok(()) => {}
            // of a process that ended in between
            Err(error) if error.is_already_exists() => {}
            Err(error) if error.is_not_found() => return Err(IpvsError::NoScheduler(scheduler)),
            Err(error) => return Err(kernel(format!("look for the scheduler {scheduler}"))(error)),
        }
        let removed = self.command(Command::DelService, &service, &[]).await;
        removed.map_err(kernel("remove the service of a test"))
    }

    /// Has packets whose mark has the bit [`LED`] come here, of these families (IPv6 or not), and IPVS fit for masquerade.
    pub async fn lead(&self, families: &[bool]) -> Result<(), IpvsError> {
        let settings: Vec<(String, &str)> =
            SETTINGS.iter().map(|name| (format!("net/ipv4/vs/{name}"), "1")).collect();
        sysctl::set(&self.place, &settings)?;
        let failed = || kernel("lead packets to it");
        let conn = self.place.route().map_err(failed())?;
        for v6 in families {
            let routed = if *v6 {
                conn.replace_route(everywhere_6()).await
            } else {
                conn.replace_route(everywhere_4()).await
            };
            routed.map_err(failed())?;
            match conn.add_rule(rule(*v6)).await {
                Err(error) if !error.is_already_exists() => return Err(failed()(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// All virtual services that are told by address and port, of whomever.
    pub async fn services(&self) -> Result<Vec<(Virtual, Settings)>, IpvsError> {
        let dump = self.conn.dump_command(self.family, Command::GetService as u8, wire::VERSION, |_| ());
        let found = dump.await.map_err(kernel("list services"))?;
        Ok(found.iter().filter_map(|message| wire::read_service(message)).collect())
    }

    /// The real servers of a service.
    pub async fn reals(&self, service: &Virtual) -> Result<Vec<Real>, IpvsError> {
        let bytes = wire::service(service, None);
        let dump = self.conn.dump_command(self.family, Command::GetDest as u8, wire::VERSION, |message| {
            message.append_bytes(&bytes);
        });
        let found = dump.await.map_err(kernel(format!("list the servers of {service}")))?;
        Ok(found.iter().filter_map(|message| wire::read_real(message, service.addr.is_ipv6())).collect())
    }

    /// Makes a service; one that is there is changed.
    pub async fn add(&self, service: &Virtual, settings: &Settings) -> Result<(), IpvsError> {
        let bytes = wire::service(service, Some(settings));
        match self.command(Command::NewService, &bytes, &[]).await {
            Err(error) if error.is_already_exists() => self.edit(service, settings).await,
            made => made.map_err(kernel(format!("make the service {service}"))),
        }
    }

    /// Changes a service.
    pub async fn edit(&self, service: &Virtual, settings: &Settings) -> Result<(), IpvsError> {
        let bytes = wire::service(service, Some(settings));
        let changed = self.command(Command::SetService, &bytes, &[]).await;
        changed.map_err(kernel(format!("change the service {service}")))
    }

    /// Removes a service with its servers; it may be gone.
    pub async fn remove(&self, service: &Virtual) -> Result<(), IpvsError> {
        let removed = self.command(Command::DelService, &wire::service(service, None), &[]).await;
        gone(removed).map_err(kernel(format!("remove the service {service}")))
    }

    /// Adds a server; one that is there is given the weight.
    pub async fn add_real(&self, service: &Virtual, real: SocketAddr, weight: u32) -> Result<(), IpvsError> {
        let (to, server) = (wire::service(service, None), wire::real(real, Some(weight)));
        match self.command(Command::NewDest, &to, &server).await {
            Err(error) if error.is_already_exists() => self.weigh(service, real, weight).await,
            made => made.map_err(kernel(format!("add {real} to {service}"))),
        }
    }

    /// Gives a server another weight.
    pub async fn weigh(&self, service: &Virtual, real: SocketAddr, weight: u32) -> Result<(), IpvsError> {
        let (of, server) = (wire::service(service, None), wire::real(real, Some(weight)));
        let changed = self.command(Command::SetDest, &of, &server).await;
        changed.map_err(kernel(format!("change the weight of {real} in {service}")))
    }

    /// Removes a server, which may be gone: packets of its connections go elsewhere.
    pub async fn remove_real(&self, service: &Virtual, real: SocketAddr) -> Result<(), IpvsError> {
        let (of, server) = (wire::service(service, None), wire::real(real, None));
        gone(self.command(Command::DelDest, &of, &server).await)
            .map_err(kernel(format!("remove {real} from {service}")))
    }

    async fn command(&self, command: Command, service: &[u8], real: &[u8]) -> Result<(), nlink::Error> {
        let sent = self.conn.command(self.family, command as u8, wire::VERSION, |message| {
            message.append_bytes(service);
            message.append_bytes(real);
        });
        sent.await.map(drop)
    }
}

fn gone(removed: Result<(), nlink::Error>) -> Result<(), nlink::Error> {
    match removed {
        // no service; no server
        Err(error) if error.is_not_found() || error.errno() == Some(libc::ESRCH) => Ok(()),
        removed => removed,
    }
}

fn everywhere_4() -> Ipv4Route {
    Ipv4Route::from_addr(Ipv4Addr::UNSPECIFIED, 0)
        .dev("lo")
        .route_type(RouteType::Local)
        .scope(RouteScope::Host)
        .table(TABLE)
        .protocol(RouteProtocol::Other(PROTOCOL))
}

fn everywhere_6() -> Ipv6Route {
    Ipv6Route::from_addr(Ipv6Addr::UNSPECIFIED, 0)
        .dev("lo")
        .route_type(RouteType::Local)
        .table(TABLE)
        .protocol(RouteProtocol::Other(PROTOCOL))
}

fn rule(v6: bool) -> RuleBuilder {
    let rule = if v6 { RuleBuilder::v6() } else { RuleBuilder::v4() };
    rule.priority(PRIORITY).fwmark_mask(LED, LED).table(TABLE).protocol(PROTOCOL)
}

/// Whether packets are led to IPVS: an earlier process of ours did so.
pub async fn is_led(place: &Place) -> Result<bool, IpvsError> {
    let failed = || kernel("look for our rules");
    let conn = place.route().map_err(failed())?;
    led(&conn).await.map_err(failed())
}

pub(crate) async fn led(conn: &Connection<Route>) -> Result<bool, nlink::Error> {
    Ok(conn
        .get_rules()
        .await?
        .iter()
        .any(|rule| rule.protocol() == Some(PROTOCOL) && rule.table_id() == TABLE))
}

/// Leads packets to IPVS no longer. Its services, and its settings, stay.
pub async fn lead_no_longer(place: &Place) -> Result<(), IpvsError> {
    let failed = || kernel("take our rules back");
    let conn = place.route().map_err(failed())?;
    if !led(&conn).await.map_err(failed())? {
        return Ok(());
    }
    for v6 in [false, true] {
        conn.del_rule_if_exists(rule(v6)).await.map_err(failed())?;
    }
    conn.del_route_if_exists(everywhere_4()).await.map_err(failed())?;
    conn.del_route_if_exists(everywhere_6()).await.map_err(failed())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_are_known_by_the_kernels_names() {
        for scheduler in Scheduler::ALL {
            assert_eq!(scheduler.name().parse(), Ok(scheduler));
        }
        let error = "random".parse::<Scheduler>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"random\" is no scheduler of IPVS: rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos"
        );
    }
}
