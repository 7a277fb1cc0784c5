//! The cluster's address ranges and names: chosen on the server, alike on every node.
//!
//! The server shows them in a ConfigMap. Nodes that join read it there, and keep a copy: one that starts while the API does not
//! answer goes on as before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use client::Client;
use k8s_openapi::api::core::v1::ConfigMap;
use network::Cidr;
use serde::{Deserialize, Serialize};

use crate::data_dir::DataDir;

/// Where the ranges are shown.
const NAMESPACE: &str = "kube-system";
/// The ConfigMap's name; nodes may read it.
pub const CONFIG_MAP: &str = "navarch-cluster-network";
/// Bits of the range that each node gets of the cluster's, with IPv4 and IPv6.
const NODE_BITS: (u8, u8) = (24, 64);
/// Cluster DNS has this address of each service range, as elsewhere.
const DNS_ADDRESS: u64 = 10;

/// The choice, as flags.
#[derive(clap::Args, Clone)]
pub struct ClusterNetworkOptions {
    /// Where pods' addresses come from: a range, or one of each family for dual stack. Each node gets a /24 of it, or a /64.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: Vec<Cidr>,
    /// Where services' addresses come from: a range, or one of each family; services have the first one's family by default.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: Vec<Cidr>,
    /// Where cluster DNS answers; the tenth address of each service range where it is not given.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the names that cluster DNS answers.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
}

/// The cluster's address ranges and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetwork {
    /// All pods; at most one range per family.
    pub cluster_cidrs: Vec<Cidr>,
    /// All services; at most one range per family, the default family first.
    pub service_cidrs: Vec<Cidr>,
    /// Where cluster DNS answers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
}

impl ClusterNetwork {
    /// As chosen. The error names the flag, what is wrong with it and what it may be.
    pub fn chosen(options: &ClusterNetworkOptions) -> anyhow::Result<Self> {
        let services = &options.service_cidr;
        one_per_family("--cluster-cidr", &options.cluster_cidr)?;
        one_per_family("--service-cidr", services)?;
        for range in &options.cluster_cidr {
            let bits = if range.is_ipv6() { NODE_BITS.1 } else { NODE_BITS.0 };
            if range.prefix_len() > bits {
                bail!("--cluster-cidr {range} is too small: a node's part of it is a /{bits}");
            }
            if let Some(other) =
                services.iter().find(|s| s.contains(range.base()) || range.contains(s.base()))
            {
                bail!(
                    "--cluster-cidr {range} and --service-cidr {other} overlap: pods and services need ranges of their own"
                );
            }
        }
        for range in services {
            if !options.cluster_cidr.iter().any(|pods| pods.is_ipv6() == range.is_ipv6()) {
                bail!("--service-cidr {range} has no pods of its family: add a range to --cluster-cidr");
            }
        }
        let mut dns = options.cluster_dns.clone();
        if dns.is_empty() {
            dns.extend(services.iter().filter_map(|range| range.nth(DNS_ADDRESS)));
        }
        if let Some(outside) = dns.iter().find(|ip| !services.iter().any(|range| range.contains(**ip))) {
            bail!("--cluster-dns {outside} is in no range of --service-cidr, which is what nodes route");
        }
        if dns.is_empty() {
            bail!("--service-cidr has no tenth address: choose --cluster-dns, or a larger range");
        }
        let domain = options.cluster_domain.trim_end_matches('.').to_owned();
        if !api::names::dns1123_subdomain(&domain).is_empty() {
            bail!("--cluster-domain {domain:?} is no DNS domain: lower-case letters, digits, '-' and '.'");
        }
        Ok(Self {
            cluster_cidrs: options.cluster_cidr.clone(),
            service_cidrs: services.clone(),
            cluster_dns: dns,
            cluster_domain: domain,
        })
    }

    /// The service ranges as the API server takes them.
    pub fn service_ranges(&self) -> String {
        text(&self.service_cidrs)
    }

    /// The cluster's ranges as the node IPAM controller takes them.
    pub fn cluster_ranges(&self) -> String {
        text(&self.cluster_cidrs)
    }

    /// The first node's part of the cluster's ranges.
    pub fn first_node(&self) -> Vec<Cidr> {
        let part =
            |range: &Cidr| Cidr::new(range.base(), if range.is_ipv6() { NODE_BITS.1 } else { NODE_BITS.0 });
        self.cluster_cidrs.iter().filter_map(part).collect()
    }

    /// Shows the ranges to nodes. Refuses to take away what pods and services have addresses of.
    pub async fn show(&self, client: &Client) -> anyhow::Result<()> {
        match client.get::<ConfigMap>(NAMESPACE, CONFIG_MAP).await {
            Ok(shown) => self.keeps(&Self::read(&shown)?)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).context("cannot read the cluster's address ranges"),
        }
        let mut map = ConfigMap {
            data: Some(BTreeMap::from([
                ("clusterCIDR".to_owned(), text(&self.cluster_cidrs)),
                ("serviceCIDR".to_owned(), text(&self.service_cidrs)),
                ("clusterDNS".to_owned(), text(&self.cluster_dns)),
                ("clusterDomain".to_owned(), self.cluster_domain.clone()),
            ])),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(CONFIG_MAP.to_owned());
        map.metadata.namespace = Some(NAMESPACE.to_owned());
        let shown = match client.create(NAMESPACE, &map).await {
            Err(error) if error.is_already_exists() => client.update(NAMESPACE, &map).await,
            made => made,
        };
        shown.map(drop).context("cannot show nodes the cluster's address ranges")
    }

    /// Whether this is the same cluster as `before`, or one that was given a second family; if not, why.
    fn keeps(&self, before: &Self) -> anyhow::Result<()> {
        let ways = [
            ("--cluster-cidr", &self.cluster_cidrs, &before.cluster_cidrs),
            ("--service-cidr", &self.service_cidrs, &before.service_cidrs),
        ];
        for (flag, now, then) in ways {
            if !now.starts_with(then) {
                bail!(
                    "{flag} {} is not what the cluster was made with, {}: nodes and services have addresses of that. A range \
                     of the other family may be added behind it; another one needs a new cluster",
                    text(now),
                    text(then)
                );
            }
        }
        Ok(())
    }

    /// The cluster that this machine joins: as the API shows it, else as it was at the last start.
    pub async fn joined(client: &Client, data: &DataDir) -> anyhow::Result<Self> {
        let file = data.cluster_network();
        let kept = || -> Option<Self> { serde_json::from_slice(&std::fs::read(&file).ok()?).ok() };
        match client.get::<ConfigMap>(NAMESPACE, CONFIG_MAP).await {
            Ok(map) => {
                let shown = Self::read(&map)?;
                let bytes = serde_json::to_vec(&shown).context("the cluster's address ranges")?;
                apiserver::pki::write_secret(&file, &bytes).with_context(|| file.display().to_string())?;
                Ok(shown)
            }
            Err(error) => match kept() {
                Some(kept) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the cluster's address ranges are those of the last start");
                    Ok(kept)
                }
                None => Err(error).context("cannot read the cluster's address ranges"),
            },
        }
    }

    fn read(map: &ConfigMap) -> anyhow::Result<Self> {
        let data = map.data.clone().unwrap_or_default();
        let get = |key: &str| data.get(key).with_context(|| format!("{NAMESPACE}/{CONFIG_MAP} has no {key}"));
        let ranges = |key: &str| -> anyhow::Result<Vec<Cidr>> {
            get(key)?.split(',').map(|range| range.parse().context(CONFIG_MAP)).collect()
        };
        Ok(Self {
            cluster_cidrs: ranges("clusterCIDR")?,
            service_cidrs: ranges("serviceCIDR")?,
            cluster_dns: get("clusterDNS")?
                .split(',')
                .map(|ip| ip.parse().context(CONFIG_MAP))
                .collect::<anyhow::Result<_>>()?,
            cluster_domain: get("clusterDomain")?.clone(),
        })
    }
}

fn one_per_family(flag: &str, ranges: &[Cidr]) -> anyhow::Result<()> {
    let of = |six: bool| ranges.iter().filter(|range| range.is_ipv6() == six).count();
    if ranges.is_empty() || of(true) > 1 || of(false) > 1 {
        bail!("{flag} {} must be one range, or one of each family", text(ranges));
    }
    Ok(())
}

fn text<T: ToString>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(flags: &[(&str, &str)]) -> Result<ClusterNetwork, String> {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            options: ClusterNetworkOptions,
        }
        let words = flags.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]);
        let flags = Flags::try_parse_from(std::iter::once("test".to_owned()).chain(words))
            .map_err(|e| e.to_string())?;
        ClusterNetwork::chosen(&flags.options).map_err(|e| e.to_string())
    }

    #[test]
    fn without_flags_the_cluster_has_the_usual_ranges() {
        let network = chosen(&[]).unwrap();
        assert_eq!(
            (network.cluster_ranges(), network.service_ranges()),
            ("10.244.0.0/16".into(), "10.96.0.0/16".into())
        );
        assert_eq!(network.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(text(&network.first_node()), "10.244.0.0/24");
    }

    #[test]
    fn each_family_has_its_ranges_and_its_dns() {
        let network = chosen(&[
            ("cluster-cidr", "fd00:10:244::/48,10.42.0.0/16"),
            ("service-cidr", "fd00:10:96::/112,10.43.0.0/16"),
            ("cluster-domain", "corp.example."),
        ])
        .unwrap();
        assert_eq!(text(&network.cluster_dns), "fd00:10:96::a,10.43.0.10");
        assert_eq!(text(&network.first_node()), "fd00:10:244::/64,10.42.0.0/24");
        assert_eq!(network.cluster_domain, "corp.example");
    }

    #[test]
    fn a_cluster_keeps_its_ranges_and_may_be_given_another_family() {
        let before = chosen(&[]).unwrap();
        let dual = chosen(&[
            ("cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"),
            ("service-cidr", "10.96.0.0/16,fd00:10:96::/112"),
            ("cluster-domain", "other.example"),
        ]);
        let dual = dual.unwrap();
        assert!(before.keeps(&before).is_ok() && dual.keeps(&before).is_ok());
        let refused =
            |flags: &[(&str, &str)], before| chosen(flags).unwrap().keeps(before).unwrap_err().to_string();
        let snapshot = [refused(&[("cluster-cidr", "10.42.0.0/16")], &before), refused(&[], &dual)];
        expect_test::expect![[r#"
            --cluster-cidr 10.42.0.0/16 is not what the cluster was made with, 10.244.0.0/16: nodes and services have addresses of that. A range of the other family may be added behind it; another one needs a new cluster
            --cluster-cidr 10.244.0.0/16 is not what the cluster was made with, 10.244.0.0/16,fd00:10:244::/48: nodes and services have addresses of that. A range of the other family may be added behind it; another one needs a new cluster"#]]
        .assert_eq(&snapshot.join("\n"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_name_of_its_flag() {
        let refused = |flags: &[(&str, &str)]| chosen(flags).unwrap_err();
        let snapshot = [
            refused(&[("cluster-cidr", "10.0.0.0/8,11.0.0.0/8")]),
            refused(&[("cluster-cidr", "10.0.0.0/25")]),
            refused(&[("cluster-cidr", "10.96.0.0/12")]),
            refused(&[("service-cidr", "fd00::/112")]),
            refused(&[("cluster-dns", "10.97.0.10")]),
            refused(&[("service-cidr", "10.96.0.0/29")]),
            refused(&[("cluster-domain", "Über")]),
        ];
        expect_test::expect![[r#"
            --cluster-cidr 10.0.0.0/8,11.0.0.0/8 must be one range, or one of each family
            --cluster-cidr 10.0.0.0/25 is too small: a node's part of it is a /24
            --cluster-cidr 10.96.0.0/12 and --service-cidr 10.96.0.0/16 overlap: pods and services need ranges of their own
            --service-cidr fd00::/112 has no pods of its family: add a range to --cluster-cidr
            --cluster-dns 10.97.0.10 is in no range of --service-cidr, which is what nodes route
            --service-cidr has no tenth address: choose --cluster-dns, or a larger range
            --cluster-domain "Über" is no DNS domain: lower-case letters, digits, '-' and '.'"#]]
        .assert_eq(&snapshot.join("\n"));
    }
}
