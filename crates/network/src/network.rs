//! The operations of CNI on one node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nlink::netlink::{Connection, Route};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::attach::{self, LINK_PREFIX};
use crate::bridge;
use crate::cidr::Cidr;
use crate::cni::{AddRequest, Attachment, CniResult};
use crate::host::host_mtu;
use crate::host_ports::{self, HostPort};
use crate::ipam::{Ipam, IpamError, Record};
use crate::netns::Place;
use crate::nft::{self, NftError, Removals};
use crate::sysctl::{self, SysctlError};

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
    /// ADD, DEL and GC take turns: they touch the same files and the same link names.
    turn: Mutex<()>,
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
            None => host_mtu(&place).await,
        };
        let conn = place.route().map_err(Error::link("open a socket for", &config.bridge))?;
        let bridge = bridge::ensure(&conn, &config, mtu).await?;
        let before = sysctl::set(&place, &bridge::settings(&config))?;
        for (name, old) in &before {
            tracing::info!(setting = name, old, "kernel setting changed");
        }
        let nft = nft::open(&place)?;
        bridge::ensure_egress(&*nft, &config).await?;
        host_ports::ensure(&*nft, &config.table, &ipam.records()?).await?;
        Ok(Self { config, conn, ipam, bridge, mtu, place, turn: Mutex::new(()) })
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
        let _turn = self.turn.lock().await;
        let earlier = self.ipam.record(attachment)?;
        if let Some(record) = &earlier {
            if record.netns == request.netns
                && let Some(result) = &record.result
                && attach::verify(&self.conn, self.bridge, record).await?.is_ok()
            {
                return Ok(result.clone());
            }
            attach::disconnect(&self.conn, &record.host_link).await?;
        }
        let (addresses, ports) = match earlier {
            Some(record) => (record.addresses, record.ports),
            None => (self.ipam.allocate(attachment)?, Vec::new()),
        };
        let mut record = Record {
            attachment: attachment.clone(),
            host_link: attach::host_link(attachment),
            addresses,
            netns: request.netns.clone(),
            args: request.args.clone(),
            ports,
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
        record.result = Some(result.clone());
        self.ipam.save(record)?;
        Ok(result)
    }

    /// Has ports of the node lead to an attachment that ADD made, until DEL. Repeated with the same ports it changes nothing.
    pub async fn publish(&self, attachment: &Attachment, ports: &[HostPort]) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
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

    /// DEL: takes the interface away and frees its addresses. What is gone already is no error.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        if !attachment.is_valid() {
            return Err(Error::InvalidAttachment(attachment.clone()));
        }
        let _turn = self.turn.lock().await;
        match self.ipam.record(attachment)? {
            Some(record) => self.remove(&record).await,
            None => attach::disconnect(&self.conn, &attach::host_link(attachment)).await.map(|_| ()),
        }
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        host_ports::withdraw(&*nft::open(&self.place)?, &self.config.table, &self.place, record).await?;
        attach::disconnect(&self.conn, &record.host_link).await?;
        self.ipam.release(&record.addresses)?;
        Ok(self.ipam.forget(&record.attachment)?)
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

    /// Puts the egress chain back whenever someone else removes our table, until `stop`. Events, no polling.
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
                host_ports::ensure(&*nft, &self.config.table, &self.ipam.records()?).await?;
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
        let _turn = self.turn.lock().await;
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

/// Host ends of our pairs on the bridge.
pub(crate) async fn our_links(conn: &Connection<Route>, bridge: u32) -> Result<Vec<String>, Error> {
    let links = conn.get_links().await.map_err(Error::link("list", "links"))?;
    let ours = links.iter().filter(|l| l.master() == Some(bridge) && l.kind() == Some("veth"));
    Ok(ours.filter_map(|l| l.name()).filter(|n| n.starts_with(LINK_PREFIX)).map(str::to_owned).collect())
}
