//! Encrypted packets between nodes: the kernel's WireGuard.
//!
//! A node makes its key once and keeps it; others learn the public half. Each peer is a node with its address, UDP port 51820
//! and pod CIDRs: by them the kernel finds for whom to encrypt, and drops what comes out of the tunnel with other sources.
//! The link takes all of the cluster's range, so that packets for pods whose node is not known yet, or has no key, are refused
//! and never leave in the clear by another route.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use nlink::netlink::genl::wireguard::{AllowedIp, PrivateKey, PublicKey, WgDevice};
use nlink::netlink::link::WireguardLink;
use nlink::netlink::{Connection, Route, Wireguard};

use crate::bridge::set_address;
use crate::cidr::Cidr;
use crate::netns::Place;
use crate::network::{Config, Error};
use crate::peers::Peer;

/// The WireGuard link.
pub const WIREGUARD_LINK: &str = "navarch-wg";
/// Bytes that WireGuard adds to a packet between nodes with IPv4 addresses: IP, UDP, its own header and its tag.
pub const WIREGUARD_OVERHEAD: u32 = 60;
const PORT: u16 = 51820;
/// The file of the private key, in the form that `wg genkey` writes.
const KEY_FILE: &str = "wireguard.key";

/// The public half of a node's key; as text in base64, as `wg` writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PublicKey::from_bytes(self.0).fmt(f)
    }
}

impl FromStr for Key {
    type Err = nlink::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse::<PublicKey>()?.into()))
    }
}

/// The link and its peers.
pub(crate) struct Tunnel {
    conn: Connection<Wireguard>,
    pub(crate) link: u32,
    pub(crate) key: Key,
}

impl Tunnel {
    /// Makes the link, unless it stands, and gives it this node's key.
    pub(crate) async fn open(
        route: &Connection<Route>,
        place: &Place,
        config: &Config,
        mtu: u32,
    ) -> Result<Self, Error> {
        let private = private_key(&config.state_dir)?;
        let find = || async {
            route.get_link_by_name(WIREGUARD_LINK).await.map_err(Error::link("look up", WIREGUARD_LINK))
        };
        let link = match find().await? {
            Some(link) => link,
            None => {
                match route.add_link(WireguardLink::new(WIREGUARD_LINK).mtu(mtu)).await {
                    Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => return Err(Error::NoWireguard),
                    made => made.map_err(Error::link("create", WIREGUARD_LINK))?,
                }
                find().await?.ok_or_else(|| Error::Gone { what: WIREGUARD_LINK.to_owned() })?
            }
        };
        let index = link.ifindex();
        if link.mtu() != Some(mtu) {
            let set = route.set_link_mtu_by_index(index, mtu).await;
            set.map_err(Error::link("set the MTU of", WIREGUARD_LINK))?;
        }
        let conn = place.wireguard().await.map_err(Error::link("open a socket for", WIREGUARD_LINK))?;
        let set = conn.set_device(WIREGUARD_LINK, |d| d.private_key(private.into()).listen_port(PORT)).await;
        set.map_err(Error::link("give a key to", WIREGUARD_LINK))?;
        let key =
            device(&conn).await?.public_key.ok_or(Error::Different("the tunnel has no key".to_owned()))?;
        route.set_link_up_by_index(index).await.map_err(Error::link("bring up", WIREGUARD_LINK))?;
        // the source of what the node itself sends to pods elsewhere, of the range that the other side expects from here
        for cidr in &config.pod_cidrs {
            let len = if cidr.is_ipv6() { 128 } else { 32 };
            let set = set_address(route, index, cidr.base(), len).await;
            set.map_err(Error::link("address", WIREGUARD_LINK))?;
        }
        Ok(Self { conn, link: index, key: Key(key) })
    }

    /// Brings the peers of the link to these; those that stay keep their sessions. Nodes without a key are left out.
    pub(crate) async fn set(&self, peers: &[Peer]) -> Result<(), Error> {
        let wanted: BTreeMap<Key, &Peer> = peers.iter().filter_map(|peer| Some((peer.key?, peer))).collect();
        let known = device(&self.conn).await?.peers;
        for gone in known.iter().filter(|peer| !wanted.contains_key(&Key(peer.public_key))) {
            let removed = self.conn.del_peer(WIREGUARD_LINK, gone.public_key).await;
            removed.map_err(Error::link("remove a node from", WIREGUARD_LINK))?;
        }
        for (key, peer) in wanted {
            let allowed: Vec<AllowedIp> = peer.pod_cidrs.iter().map(allowed).collect();
            let endpoint = SocketAddr::new(peer.address, PORT);
            let set = self.conn.set_peer(WIREGUARD_LINK, key.0, |p| {
                p.endpoint(endpoint).replace_allowed_ips().allowed_ips(allowed)
            });
            set.await.map_err(Error::link("add a node to", WIREGUARD_LINK))?;
        }
        Ok(())
    }
}

async fn device(conn: &Connection<Wireguard>) -> Result<WgDevice, Error> {
    conn.get_device(WIREGUARD_LINK).await.map_err(Error::link("read the settings of", WIREGUARD_LINK))
}

fn allowed(cidr: &Cidr) -> AllowedIp {
    match cidr.base() {
        IpAddr::V4(base) => AllowedIp::v4(base, cidr.prefix_len()),
        IpAddr::V6(base) => AllowedIp::v6(base, cidr.prefix_len()),
    }
}

/// This node's key of the folder `dir`, made where there is none. A file that holds none is an error: another key in its place
/// would end all sessions.
fn private_key(dir: &Path) -> Result<PrivateKey, Error> {
    let path = dir.join(KEY_FILE);
    let failed = |source| Error::Key { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let wrong =
                |_| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "is no WireGuard key"));
            return text.trim().parse().map_err(wrong);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let make = || {
        let mut bytes = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let key = PrivateKey::from_bytes(bytes);
        // whole or not at all, and never readable by others
        let aside = dir.join(format!("{KEY_FILE}.new"));
        let mut file =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(format!("{key}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)?;
        Ok(key)
    };
    make().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = private_key(dir.path()).unwrap();
        assert_eq!(private_key(dir.path()).unwrap(), key);
        let path = dir.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "garbage").unwrap();
        let error = private_key(dir.path()).unwrap_err();
        assert!(error.to_string().contains("wireguard.key"), "{error}");
        assert!(!error.to_string().contains("garbage"));
    }

    #[test]
    fn a_public_key_reads_as_it_is_written() {
        let text = "fE/wpxQ6/M6OmF5j4dvbY3FbCEXc3KlBL2QqAYjE0WI=";
        assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        assert!("short".parse::<Key>().is_err());
    }
}
