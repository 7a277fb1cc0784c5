//! The result of ADD, in the form of 1.1; other versions are read and written from it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{CniError, code};
use crate::version::Version;

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
        id.len() <= 200 && is_identifier(id) && is_link_name(&self.ifname)
    }
}

/// Ids of containers and names of networks: begins with a letter or digit, then also `_`, `.` and `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// What the kernel takes as a link's name.
pub(crate) fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':'))
}

/// The result of ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// Version of the specification.
    pub cni_version: String,
    /// The links that were made; ours: bridge, the host's end and the container's end, in this order.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The container's addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// The routes in the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// How names are resolved.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

impl CniResult {
    /// The container's addresses, in their order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok()).collect()
    }

    /// Reads a result of any version we speak.
    pub fn read(value: &Value) -> Result<Self, CniError> {
        serde_json::from_value(value.clone()).map_err(|error| {
            CniError::new(code::DECODING_FAILURE, format!("could not parse prevResult: {error}"))
        })
    }

    /// The result as `version` has it.
    pub fn write(&self, version: Version) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["cniVersion"] = version.text().into();
        let each = |value: &mut Value, list: &str, edit: &dyn Fn(&mut Map<String, Value>)| {
            let items = value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            items.filter_map(Value::as_object_mut).for_each(edit);
        };
        if version < Version::V1_1_0 {
            each(&mut value, "interfaces", &|interface| {
                interface.retain(|key, _| matches!(key.as_str(), "name" | "mac" | "sandbox"));
            });
            each(&mut value, "routes", &|route| {
                route.retain(|key, _| matches!(key.as_str(), "dst" | "gw"));
            });
        }
        if version < Version::V1_0_0 {
            each(&mut value, "ips", &|ip| {
                let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
                ip.insert("version".to_owned(), if v6 { "6" } else { "4" }.into());
            });
        }
        value
    }

    /// Adds what another plugin made to what was there before it.
    pub fn append(mut self, other: Self) -> Self {
        let shift = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        let moved = other.ips.into_iter().map(|ip| Ip { interface: ip.interface.map(|n| n + shift), ..ip });
        self.ips.extend(moved);
        self.routes.extend(other.routes);
        if self.dns.is_empty() {
            self.dns = other.dns;
        }
        self
    }
}

/// A link that takes part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A socket, of plugins whose packets pass by one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// A device on the PCI bus.
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination in CIDR notation.
    pub dst: String,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU, `advmss`, priority, table and scope, which we hand on.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// How names are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "br0", "mtu": 1450},
                {"name": "eth0", "mac": "0a:58:0a:f4:00:02", "mtu": 1450, "sandbox": "/run/netns/a", "pciID": "0000:01:00.0"},
            ],
            "ips": [{"address": "10.244.0.2/32", "gateway": "10.244.0.1", "interface": 1}, {"address": "fd00::2/128"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1", "mtu": 1400}],
            "dns": {"nameservers": ["10.96.0.10"]},
        })
    }

    #[test]
    fn a_result_is_written_as_each_version_has_it() {
        let result = CniResult::read(&full()).unwrap();
        assert_eq!(result.write(Version::V1_1_0), full());
        let mut old = full();
        old["cniVersion"] = "1.0.0".into();
        old["interfaces"] =
            json!([{"name": "br0"}, {"name": "eth0", "mac": "0a:58:0a:f4:00:02", "sandbox": "/run/netns/a"}]);
        old["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}]);
        assert_eq!(result.write(Version::V1_0_0), old);
        for version in [Version::V0_3_1, Version::V0_4_0] {
            old["cniVersion"] = version.text().into();
            old["ips"][0]["version"] = "4".into();
            old["ips"][1]["version"] = "6".into();
            assert_eq!(result.write(version), old);
        }
        assert_eq!(CniResult::read(&old).unwrap().addresses(), result.addresses());
    }

    #[test]
    fn a_plugin_behind_others_points_to_its_own_interfaces() {
        let ours = CniResult::read(&full()).unwrap();
        let both = ours.clone().append(ours);
        assert_eq!(both.interfaces.len(), 4);
        assert_eq!(
            both.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(1), None, Some(3), None]
        );
    }
}
