//! Taking everything back.

use std::fmt;

use crate::attach;
use crate::netns::Place;
use crate::network::{Config, Error, our_links};
use crate::peers::VXLAN_LINK;
use crate::wireguard::WIREGUARD_LINK;
use crate::{announce, nft, peers};

/// Something of ours that is still there after [`reset`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A link.
    Link(String),
    /// An nftables table of family inet or bridge.
    Table(String),
    /// The directory with addresses and attachments.
    StateDir(std::path::PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Table(name) => write!(f, "nftables table {name}"),
            Self::StateDir(path) => write!(f, "directory {}", path.display()),
        }
    }
}

/// Removes links, addresses, routes, the nftables table and the state directory, then looks again and reports
/// what is left: nothing, unless someone else holds on to it. Addresses and routes go with the bridge. Kernel
/// settings stay: another program may rely on forwarding by now.
pub async fn reset(config: &Config) -> Result<Vec<Leftover>, Error> {
    let place = match Place::open(config.netns.as_deref()) {
        Ok(place) => place,
        Err(e) if e.is_not_found() => return Ok(remove_state(config)),
        Err(e) => {
            return Err(Error::Netns { path: config.netns.clone().unwrap_or_default(), source: e });
        }
    };
    let conn = place.route().map_err(Error::link("open a socket for", &config.bridge))?;
    let nft = nft::open(&place)?;
    let bridge = config.bridge.as_str();
    for address in announce::announced(&conn).await? {
        announce::withdraw(&conn, address).await?;
    }
    if let Some(link) = conn.get_link_by_name(bridge).await.map_err(Error::link("look up", bridge))?
        && link.kind() == Some("bridge")
    {
        for name in our_links(&conn, link.ifindex()).await? {
            attach::disconnect(&conn, &name).await?;
        }
        attach::disconnect(&conn, bridge).await?;
    }
    // its routes and entries go with it; routes by links of the host are found by their mark
    for link in [VXLAN_LINK, WIREGUARD_LINK] {
        attach::disconnect(&conn, link).await?;
    }
    peers::remove_routes(&conn).await?;
    nft.delete_table(&config.table).await?;

    let mut left = remove_state(config);
    if conn.get_link_by_name(bridge).await.map_err(Error::link("look up", bridge))?.is_some() {
        left.push(Leftover::Link(bridge.to_owned()));
    }
    for link in [VXLAN_LINK, WIREGUARD_LINK] {
        if conn.get_link_by_name(link).await.map_err(Error::link("look up", link))?.is_some() {
            left.push(Leftover::Link(link.to_owned()));
        }
    }
    if nft.tables().await?.contains(&config.table) {
        left.push(Leftover::Table(config.table.clone()));
    }
    Ok(left)
}

fn remove_state(config: &Config) -> Vec<Leftover> {
    // what cannot be removed shows up as left
    let _ = std::fs::remove_dir_all(&config.state_dir);
    if config.state_dir.exists() { vec![Leftover::StateDir(config.state_dir.clone())] } else { Vec::new() }
}
