//! The operations of CNI on one node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::{Attachment, CniResult};
use nlink::netlink::{Connection, Route};
use tokio_util::sync::CancellationToken;

use crate::antispoof;
use crate::attach::{self, LINK_PREFIX};
use crate::bandwidth::{self, Limits};
use crate::bridge;
use crate::cidr::Cidr;
use crate::host::host_mtu;
use crate::host_ports::{self, HostPort};
use crate::ipam::{Ipam, IpamError, Record};
use crate::netns::Place;
use crate::nft::{self, NftError, Removals};
use crate::sysctl::{self, SysctlError};
use crate::turns::{Turn, Turns};

/// How the node's network is laid out.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// Name of the nftables table (family inet), shared with `proxy`.
    pub table: String,
    /// This node's pod networks, at most one per family. The first address of each is the gateway.
    pub pod_cidrs: Vec<Cidr>,
    /// All pods of the cluster: traffic there is never masqueraded. May be empty on a single node.
    pub cluster_cidrs: Vec<Cidr>,
    /// The service networks; the node gets a route for each.
    pub service_cidrs: Vec<Cidr>,
    /// Further addresses on the bridge, for example the cluster DNS address that `dns` binds.
    pub extra_addresses: Vec<IpAddr>,
    /// MTU of pod links in bytes; `None` takes that of the link of the default route.
    pub mtu: Option<u32>,
    /// Where addresses and attachments are written down.
    pub state_dir: PathBuf,
    /// The namespace that acts as the node; `None` is the process's own.
    pub netns: Option<PathBuf>,
}

impl Config {
    /// The defaults of a node that is alone: 10.244.0.0/24, services 10.96.0.0/16, cluster DNS 10.96.0.10.
    pub fn single_node(state_dir: PathBuf) -> Self {
        let v4 = |a: [u8; 4], len| Cidr::new(IpAddr::from(a), len);
        Self {
            bridge: "navarch0".to_owned(),
            table: "navarch".to_owned(),
            pod_cidrs: v4([10, 244, 0, 0], 24).into_iter().collect(),
            cluster_cidrs: v4([10, 244, 0, 0], 16).into_iter().collect(),
            service_cidrs: v4([10, 96, 0, 0], 16).into_iter().collect(),
            extra_addresses: vec![IpAddr::from([10, 96, 0, 10])],
            mtu: None,
            state_dir,
            netns: None,
        }
    }

    /// The gateway of each pod network.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.pod_cidrs.iter().filter_map(|c| c.nth(1))
    }
}

/// What ADD is asked.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// Who gets the interface.
    pub attachment: Attachment,
    /// `CNI_NETNS`: the path of the network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS` as key and value; kept with the attachment for diagnosis (`K8S_POD_NAMESPACE`, …).
    pub args: Vec<(String, String)>,
}

/// Why an operation failed. Operations may be repeated after any error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Container id or interface name break the rules of CNI.
    #[error("invalid attachment {0:?}")]
    InvalidAttachment(Attachment),
    /// The configuration cannot work.
    #[error("invalid network configuration: {0}")]
    InvalidConfig(&'static str),
    /// A link of the bridge's name exists and is none.
    #[error("link {0} exists and is not a bridge")]
    NotABridge(String),
    /// The pod has an interface of this name that we did not make.
    #[error("{} already has a link {name}", .netns.display())]
    LinkExists {
        /// The interface.
        name: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// Something vanished while we worked on it.
    #[error("{what} vanished")]
    Gone {
        /// What.
        what: String,
    },
    /// CHECK found a difference.
    #[error("attachment is not as it was made: {0}")]
    Different(String),
    /// A link operation failed.
    #[error("cannot {what} {link}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// On which link.
        link: String,
        /// The kernel's answer.
        #[source]
        source: nlink::Error,
    },
    /// WireGuard is asked for, and the kernel has none.
    #[error("this node's kernel has no WireGuard (module wireguard)")]
    NoWireguard,
    /// The node's key for WireGuard.
    #[error("the key of WireGuard, {}", .path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why it cannot be read or made.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be announced.
    #[error("cannot announce an address on {link}")]
    Announce {
        /// On which link.
        link: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The namespace cannot be used.
    #[error("cannot enter network namespace {}", .path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: nlink::Error,
    },
    /// Addresses or their files.
    #[error("address management")]
    Ipam(#[from] IpamError),
    /// Masquerading.
    #[error("pod egress")]
    Nft(#[from] NftError),
    /// Kernel settings.
    #[error("kernel settings")]
    Sysctl(#[from] SysctlError),
}

impl Error {
    pub(crate) fn link<'a>(what: &'static str, link: &'a str) -> impl FnOnce(nlink::Error) -> Self + 'a {
        move |source| Self::Link { what, link: link.to_owned(), source }
    }

    pub(crate) fn netns(path: &Path) -> impl FnOnce(nlink::Error) -> Self + '_ {
        move |source| Self::Netns { path: path.to_owned(), source }
    }
}

/// The pod network of a node.
pub struct Network {
    config: Config,
    conn: Connection<Route>,
    ipam: Ipam,
    bridge: u32,
    mtu: u32,
    place: Place,
    /// Operations take turns, within this process and with others (`navarch cni`): they touch the same files and links.
    turns: Turns,
}

impl Network {
    /// Brings the node's side (bridge, addresses, settings, egress chain) to the state of `config`; links and
    /// addresses of earlier runs are adopted as they are.
    pub async fn open(config: Config) -> Result<Self, Error> {
        if config.pod_cidrs.is_empty() {
            return Err(Error::InvalidConfig("no pod CIDR"));
        }
        if config.pod_cidrs.iter().any(|c| c.usable().is_empty()) {
            return Err(Error::InvalidConfig("a pod CIDR has no room for pods"));
        }
        let families: BTreeSet<bool> = config.pod_cidrs.iter().map(Cidr::is_ipv6).collect();
        if families.len() != config.pod_cidrs.len() {
            return Err(Error::InvalidConfig("more than one pod CIDR of a family"));
        }
        let place = Place::open(config.netns.as_deref())
            .map_err(Error::netns(config.netns.as_deref().unwrap_or(Path::new("(own)"))))?;
        let reserved = config.gateways().chain(config.extra_addresses.iter().copied()).collect();
        let ipam = Ipam::open(&config.state_dir, config.pod_cidrs.clone(), reserved)?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => host_mtu(&place, &[]).await,
        };
        let turns = Turns::open(&config.state_dir);
        let turn = turns.take().await?;
        let conn = place.route().map_err(Error::link("open a socket for", &config.bridge))?;
        let bridge = bridge::ensure(&conn, &config, mtu, &[]).await?;
        let before = sysctl::set(&place, &bridge::settings(&config))?;
        for (name, old) in &before {
            tracing::info!(setting = name, old, "kernel setting changed");
        }
        let nft = nft::open(&place)?;
        bridge::ensure_egress(&*nft, &config).await?;
        let records = ipam.records()?;
        host_ports::ensure(&*nft, &place, &config.table, (&config.bridge, bridge), &records).await?;
        antispoof::ensure(&*nft, &conn, &config.table, &records).await?;
        drop(turn);
        Ok(Self { config, conn, ipam, bridge, mtu, place, turns })
    }

    async fn turn(&self) -> Result<Turn, Error> {
        Ok(self.turns.take().await?)
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The MTU of pods' links in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// ADD: gives the container an interface. Repeated for an attachment that stands, it returns the same
    /// result; for one that is damaged (a reboot, a crash half-way) it makes it anew with the same addresses.
    pub async fn add(&self, request: &AddRequest) -> Result<CniResult, Error> {
        let attachment = &request.attachment;
        if !attachment.is_valid() {
            return Err(Error::InvalidAttachment(attachment.clone()));
        }
        let _turn = self.turn().await?;
        let earlier = self.ipam.record(attachment)?;
        if let Some(record) = &earlier {
            if record.netns == request.netns
                && let Some(result) = &record.result
                && attach::verify(&self.conn, self.bridge, record).await?.is_ok()
            {
                return Ok(result.clone());
            }
            self.disconnect(record).await?;
        }
        let (addresses, ports, limits) = match earlier {
            Some(record) => (record.addresses, record.ports, record.limits),
            None => (self.ipam.allocate(attachment)?, Vec::new(), Limits::default()),
        };
        let mut record = Record {
            attachment: attachment.clone(),
            host_link: attach::host_link(attachment),
            addresses,
            netns: request.netns.clone(),
            args: request.args.clone(),
            ports,
            limits,
            result: None,
        };
        match self.connect(&mut record).await {
            Ok(result) => Ok(result),
            Err(error) => {
                if let Err(cleanup) = self.remove(&record).await {
                    tracing::warn!(error = &cleanup as &dyn std::error::Error, "cleanup after a failed ADD");
                }
                Err(error)
            }
        }
    }

    async fn connect(&self, record: &mut Record) -> Result<CniResult, Error> {
        // written first: whatever happens from here on, DEL and GC know what to take back
        self.ipam.save(record)?;
        let result = attach::connect(&self.conn, &self.config, self.bridge, self.mtu, record).await?;
        antispoof::admit(&*nft::open(&self.place)?, &self.conn, &self.config.table, record).await?;
        if record.limits != Limits::default() {
            bandwidth::apply(&self.conn, record).await?;
        }
        record.result = Some(result.clone());
        self.ipam.save(record)?;
        Ok(result)
    }

    /// Has ports of the node lead to an attachment that ADD made, until DEL. Repeated with the same ports it changes nothing.
    pub async fn publish(&self, attachment: &Attachment, ports: &[HostPort]) -> Result<(), Error> {
        let _turn = self.turn().await?;
        let Some(mut record) = self.ipam.record(attachment)? else {
            return Err(Error::Different("it was never made".to_owned()));
        };
        if record.ports == ports {
            return Ok(());
        }
        let nft = nft::open(&self.place)?;
        host_ports::withdraw(&*nft, &self.config.table, &self.place, &record).await?;
        record.ports = ports.to_vec();
        host_ports::publish(&*nft, &self.config.table, &self.place, &record).await?;
        Ok(self.ipam.save(&record)?)
    }

    /// Limits what an attachment that ADD made receives and sends, until DEL.
    pub async fn limit(&self, attachment: &Attachment, limits: Limits) -> Result<(), Error> {
        let _turn = self.turn().await?;
        let Some(mut record) = self.ipam.record(attachment)? else {
            return Err(Error::Different("it was never made".to_owned()));
        };
        if record.limits == limits {
            return Ok(());
        }
        record.limits = limits;
        bandwidth::apply(&self.conn, &record).await?;
        Ok(self.ipam.save(&record)?)
    }

    /// DEL: takes the interface away and frees its addresses. What is gone already is no error.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        if !attachment.is_valid() {
            return Err(Error::InvalidAttachment(attachment.clone()));
        }
        let _turn = self.turn().await?;
        match self.ipam.record(attachment)? {
            Some(record) => self.remove(&record).await,
            None => attach::disconnect(&self.conn, &attach::host_link(attachment)).await.map(|_| ()),
        }
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        host_ports::withdraw(&*nft::open(&self.place)?, &self.config.table, &self.place, record).await?;
        self.disconnect(record).await?;
        self.ipam.release(&record.addresses)?;
        Ok(self.ipam.forget(&record.attachment)?)
    }

    /// Removes the pair and what the bridge knows of it.
    async fn disconnect(&self, record: &Record) -> Result<(), Error> {
        antispoof::forget(&*nft::open(&self.place)?, &self.conn, &self.config.table, record).await?;
        attach::disconnect(&self.conn, &record.host_link).await.map(|_| ())
    }

    /// CHECK: the attachment stands as ADD made it.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        let Some(record) = self.ipam.record(attachment)? else {
            return Err(Error::Different("it was never made".to_owned()));
        };
        let taken = self.ipam.taken()?;
        if let Some(addr) = record.addresses.iter().find(|a| !taken.contains(a)) {
            return Err(Error::Different(format!("address {addr} is not reserved")));
        }
        attach::verify(&self.conn, self.bridge, &record).await?.map_err(Error::Different)
    }

    /// The result of an earlier ADD.
    pub fn result(&self, attachment: &Attachment) -> Result<Option<CniResult>, Error> {
        Ok(self.ipam.record(attachment)?.and_then(|r| r.result))
    }

    /// Puts our rules back whenever someone else removes our table, until `stop`. Events, no polling.
    pub async fn guard(&self, stop: CancellationToken) -> Result<(), Error> {
        let nft = nft::open(&self.place)?;
        let mut removals = Removals::open(&self.place, &self.config.table).await?;
        loop {
            if !nft.chains(&self.config.table).await?.iter().any(|c| c == bridge::EGRESS_CHAIN) {
                tracing::warn!(
                    table = self.config.table,
                    "someone removed the table; putting pod egress back"
                );
                bridge::ensure_egress(&*nft, &self.config).await?;
                let bridge = (self.config.bridge.as_str(), self.bridge);
                let records = self.ipam.records()?;
                host_ports::ensure(&*nft, &self.place, &self.config.table, bridge, &records).await?;
            }
            if !nft.has_bridge_table(&self.config.table).await? {
                let _turn = self.turn().await?;
                antispoof::ensure(&*nft, &self.conn, &self.config.table, &self.ipam.records()?).await?;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                gone = removals.next() => gone?,
            }
        }
    }

    /// GC: removes every attachment that is not in `valid`, addresses without an attachment, and our links
    /// that belong to none. Returns the attachments removed.
    pub async fn gc(&self, valid: &[Attachment]) -> Result<Vec<Attachment>, Error> {
        let _turn = self.turn().await?;
        let (mut kept, mut removed) = (Vec::new(), Vec::new());
        for record in self.ipam.records()? {
            if valid.contains(&record.attachment) {
                kept.push(record);
            } else {
                self.remove(&record).await?;
                removed.push(record.attachment);
            }
        }
        let held: BTreeSet<IpAddr> = kept.iter().flat_map(|r| r.addresses.iter().copied()).collect();
        let leaked: Vec<IpAddr> = self.ipam.taken()?.into_iter().filter(|a| !held.contains(a)).collect();
        self.ipam.release(&leaked)?;
        for name in our_links(&self.conn, self.bridge).await? {
            if !kept.iter().any(|r| r.host_link == name) {
                attach::disconnect(&self.conn, &name).await?;
            }
        }
        Ok(removed)
    }

    /// STATUS: whether ADD can succeed.
    pub async fn status(&self) -> Result<(), Error> {
        let name = &self.config.bridge;
        let link = self.conn.get_link_by_name(name.as_str()).await.map_err(Error::link("look up", name))?;
        if !link.is_some_and(|l| l.ifindex() == self.bridge && l.is_up()) {
            return Err(Error::Different(format!("bridge {name} is missing or down")));
        }
        let chains = nft::open(&self.place)?.chains(&self.config.table).await?;
        if !chains.iter().any(|c| c == bridge::EGRESS_CHAIN) {
            return Err(Error::Different(format!("chain {} is missing", bridge::EGRESS_CHAIN)));
        }
        match self.ipam.exhausted()? {
            Some(cidr) => Err(Error::Ipam(IpamError::Exhausted(cidr))),
            None => Ok(()),
        }
    }
}

/// The node's side where other plugins connect the pods: the bridge, without ports, holds the extra addresses and the routes
/// to services, which the node calls from `sources`, its own addresses.
pub async fn open_services(config: &Config, sources: &[IpAddr]) -> Result<(), Error> {
    let place = Place::open(config.netns.as_deref())
        .map_err(Error::netns(config.netns.as_deref().unwrap_or(Path::new("(own)"))))?;
    let conn = place.route().map_err(Error::link("open a socket for", &config.bridge))?;
    let config = Config { pod_cidrs: Vec::new(), ..config.clone() };
    let mtu = config.mtu.unwrap_or(host_mtu(&place, sources).await);
    bridge::ensure(&conn, &config, mtu, sources).await?;
    sysctl::set(&place, &bridge::settings(&config))?;
    // plugins put pods on bridges of their own, and what crosses one must be translated
    for family in ["iptables", "ip6tables"] {
        let set = sysctl::set(&place, &[(format!("net/bridge/bridge-nf-call-{family}"), "1")]);
        if let Err(error) = set {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "calls of a pod to services with endpoints on its own bridge may fail");
        }
    }
    Ok(())
}

/// Brings up the loopback link of a pod's namespace.
pub async fn loopback_up(netns: &Path) -> Result<(), Error> {
    let inside = attach::enter(netns)?.route().map_err(Error::netns(netns))?;
    attach::loopback_up(&inside).await
}

/// Host ends of our pairs on the bridge.
pub(crate) async fn our_links(conn: &Connection<Route>, bridge: u32) -> Result<Vec<String>, Error> {
    let links = conn.get_links().await.map_err(Error::link("list", "links"))?;
    let ours = links.iter().filter(|l| l.master() == Some(bridge) && l.kind() == Some("veth"));
    Ok(ours.filter_map(|l| l.name()).filter(|n| n.starts_with(LINK_PREFIX)).map(str::to_owned).collect())
}
