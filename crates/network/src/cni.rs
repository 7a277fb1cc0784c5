//! The data of the CNI specification 1.1 (<https://www.cni.dev/docs/spec/>): requests, result, error codes.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the specification that results carry.
pub const CNI_VERSION: &str = "1.1.0";

/// The identity of an attachment: a container has at most one interface of a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the sandbox's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`, for example `eth0`.
    pub ifname: String,
}

impl Attachment {
    /// Checks both names as the specification asks; they become file names and link names.
    pub fn is_valid(&self) -> bool {
        let id = &self.container_id;
        let id_ok = id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && id.len() <= 200
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        let name = &self.ifname;
        let name_ok = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':'));
        id_ok && name_ok
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

/// The result of ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// Version of the specification.
    pub cni_version: String,
    /// Bridge, the host's end and the container's end, in this order.
    pub interfaces: Vec<Interface>,
    /// The addresses of the container's end.
    pub ips: Vec<Ip>,
    /// The routes in the container.
    pub routes: Vec<Route>,
}

impl CniResult {
    /// The pod's addresses, in the order of the pod CIDRs.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok()).collect()
    }
}

/// A link that takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The link's name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace's path; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ip {
    /// Address with prefix length.
    pub address: String,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination in CIDR notation.
    pub dst: String,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        let ok = |id: &str, ifname: &str| {
            Attachment { container_id: id.to_owned(), ifname: ifname.to_owned() }.is_valid()
        };
        assert!(ok("a1-b_c.d", "eth0"));
        assert!(!ok("../x", "eth0"));
        assert!(!ok("a/b", "eth0"));
        assert!(!ok("", "eth0"));
        assert!(!ok("a", "et/h0"));
        assert!(!ok("a", ".."));
        assert!(!ok("a", "sixteen-letters-"));
    }
}
