//! How this node serves Services: by which part of the kernel, and on which of its addresses it has node ports.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::ValueEnum;
use network::Cidr;
use network::ipvs::Scheduler;
use proxy::NodePorts;

/// The choice, as flags; the names are kube-proxy's.
#[derive(clap::Args, Clone)]
pub struct ServiceProxyOptions {
    /// What spreads connections over endpoints.
    #[arg(long, value_enum, default_value = "nftables")]
    pub proxy_mode: ProxyMode,
    /// How IPVS chooses among endpoints, by the kernel's name: rr (one after the other), lc (fewest connections), sh (client's
    /// hash), mh (Maglev hash), …; rr where it is not given.
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<Scheduler>,
    /// The addresses of this node that have its node ports: CIDRs with commas between them, or `primary` for those of the Node
    /// object. Where it is not given: `primary` with nftables, all with ipvs.
    #[arg(long, alias = "nodeport-addresses", value_delimiter = ',', value_name = "CIDR|primary")]
    pub node_port_addresses: Vec<NodePortAddress>,
}

/// What spreads connections over endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ProxyMode {
    /// Maps of nftables.
    Nftables,
    /// The kernel's IP virtual server.
    Ipvs,
}

/// One value of `--node-port-addresses`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddress {
    /// The addresses of the Node object.
    Primary,
    /// Those in a range.
    Range(Cidr),
}

impl FromStr for NodePortAddress {
    type Err = network::cidr::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" { Ok(Self::Primary) } else { text.parse().map(Self::Range) }
    }
}

impl ServiceProxyOptions {
    /// Sets `config` up as chosen, for a node with these addresses. The error names the flag.
    pub fn apply(&self, config: &mut proxy::Config, addresses: &[IpAddr]) -> anyhow::Result<()> {
        config.ipvs = self.scheduler()?;
        config.node_ports = self.node_ports(addresses)?;
        Ok(())
    }

    /// Fails where the choice cannot work, or this machine's kernel cannot do it.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.node_ports(&[])?;
        match self.scheduler()? {
            Some(scheduler) => proxy::ipvs::available(scheduler).await.context("--proxy-mode ipvs"),
            None => Ok(()),
        }
    }

    fn scheduler(&self) -> anyhow::Result<Option<Scheduler>> {
        match (self.proxy_mode, self.ipvs_scheduler) {
            (ProxyMode::Ipvs, chosen) => Ok(Some(chosen.unwrap_or_default())),
            (ProxyMode::Nftables, None) => Ok(None),
            (ProxyMode::Nftables, Some(chosen)) => {
                bail!("--ipvs-scheduler {chosen} has no meaning without --proxy-mode ipvs")
            }
        }
    }

    fn node_ports(&self, addresses: &[IpAddr]) -> anyhow::Result<NodePorts> {
        // a loopback address stands for a node that has none
        let primary = || NodePorts::at(addresses.iter().copied().filter(|addr| !addr.is_loopback()));
        match self.node_port_addresses.as_slice() {
            [] if self.proxy_mode == ProxyMode::Ipvs => return Ok(NodePorts::Everywhere),
            [] | [NodePortAddress::Primary] => return Ok(primary()),
            _ => {}
        }
        let ranges: Option<Vec<Cidr>> =
            self.node_port_addresses.iter().map(|chosen| chosen.range()).collect();
        let ranges = ranges.context("--node-port-addresses: primary stands alone, without ranges")?;
        Ok(NodePorts::In { ranges, only: false })
    }
}

impl NodePortAddress {
    fn range(self) -> Option<Cidr> {
        match self {
            Self::Primary => None,
            Self::Range(range) => Some(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        options: ServiceProxyOptions,
    }

    fn chosen(flags: &str) -> Result<(Option<Scheduler>, NodePorts), String> {
        let flags = Flags::try_parse_from(std::iter::once("test").chain(flags.split_whitespace()))
            .map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())?;
        let addresses = ["192.0.2.10", "127.0.0.1"].map(|addr| addr.parse().unwrap());
        let ports = flags.options.node_ports(&addresses).map_err(|e| e.to_string())?;
        Ok((flags.options.scheduler().map_err(|e| e.to_string())?, ports))
    }

    fn on(ranges: &[&str], only: bool) -> NodePorts {
        NodePorts::In { ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(), only }
    }

    #[test]
    fn each_mode_has_its_own_default_for_node_ports() {
        assert_eq!(chosen(""), Ok((None, on(&["192.0.2.10/32"], true))));
        assert_eq!(chosen("--proxy-mode ipvs"), Ok((Some(Scheduler::RoundRobin), NodePorts::Everywhere)));
        assert_eq!(
            chosen("--proxy-mode ipvs --ipvs-scheduler sh --node-port-addresses primary"),
            Ok((Some(Scheduler::SourceHashing), on(&["192.0.2.10/32"], true)))
        );
    }

    #[test]
    fn ranges_of_one_family_leave_the_other_open() {
        let (_, ports) = chosen("--nodeport-addresses 192.0.2.0/24,198.51.100.7/32").unwrap();
        assert_eq!(ports, on(&["192.0.2.0/24", "198.51.100.7/32"], false));
        let at = |addr: &str| ports.are_at(addr.parse().unwrap());
        assert!(at("192.0.2.9") && at("fd00::1") && !at("198.51.100.8"));
        let everywhere = chosen("--node-port-addresses 0.0.0.0/0").unwrap().1;
        assert_eq!((everywhere.ranges(false), everywhere.ranges(true)), (None, None));
        assert_eq!(on(&["192.0.2.10/32"], true).ranges(true), Some(Vec::new()));
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_name_of_its_flag() {
        let refused = [
            chosen("--ipvs-scheduler sh"),
            chosen("--proxy-mode ipvs --ipvs-scheduler random"),
            chosen("--node-port-addresses primary,192.0.2.0/24"),
            chosen("--node-port-addresses 192.0.2.1"),
        ];
        let refused: Vec<String> = refused.into_iter().map(Result::unwrap_err).collect();
        expect_test::expect![[r#"
            --ipvs-scheduler sh has no meaning without --proxy-mode ipvs
            error: invalid value 'random' for '--ipvs-scheduler <NAME>': "random" is no scheduler of IPVS: rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos
            --node-port-addresses: primary stands alone, without ranges
            error: invalid value '192.0.2.1' for '--node-port-addresses <CIDR|primary>': not a CIDR (address/prefix length): "192.0.2.1""#]].assert_eq(&refused.join("\n"));
    }
}
