//! Who answers for other domains: the ConfigMap `kube-dns` of `kube-system`, as kube-dns read it.
//!
//! `stubDomains` is a JSON map of domains to resolvers, `upstreamNameservers` a JSON list of resolvers for everything else
//! (Kubernetes documentation, "Customizing DNS Service"). A resolver is an address, with a port or without.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::ConfigMap;

/// Where the configuration is.
pub const NAMESPACE: &str = "kube-system";
/// Its name.
pub const NAME: &str = "kube-dns";
const PORT: u16 = 53;
/// No more domains than these are read.
const MAX_DOMAINS: usize = 1000;

/// Resolvers by domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StubDomains {
    /// Domains and who answers for them.
    pub domains: Vec<(Name, Vec<SocketAddr>)>,
    /// Who answers for everything else, where it is not those of the node's `resolv.conf`.
    pub upstreams: Option<Vec<SocketAddr>>,
}

/// A configuration that cannot be used; the one before it stays.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// A field is not the JSON that it must be.
    #[error("{field} is not valid")]
    Json {
        /// Which one.
        field: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Not a domain.
    #[error("{0:?} is no domain")]
    Domain(String),
    /// Not an address.
    #[error("{0:?} is no address of a resolver")]
    Address(String),
    /// Too many.
    #[error("more than {MAX_DOMAINS} domains")]
    TooMany,
}

impl StubDomains {
    /// Reads the ConfigMap.
    pub fn parse(map: &ConfigMap) -> Result<Self, ParseError> {
        let field =
            |name| map.data.as_ref().and_then(|data| data.get(name)).filter(|text| !text.trim().is_empty());
        let mut found = Self::default();
        if let Some(text) = field("stubDomains") {
            let json = |source| ParseError::Json { field: "stubDomains", source };
            let domains: BTreeMap<String, Vec<String>> = serde_json::from_str(text).map_err(json)?;
            if domains.len() > MAX_DOMAINS {
                return Err(ParseError::TooMany);
            }
            for (domain, resolvers) in domains {
                let name = Name::from_ascii(format!("{}.", domain.trim_end_matches('.')));
                let name = name.ok().filter(|n| !n.is_root()).ok_or(ParseError::Domain(domain))?;
                found.domains.push((name, addresses(resolvers)?));
            }
        }
        if let Some(text) = field("upstreamNameservers") {
            let json = |source| ParseError::Json { field: "upstreamNameservers", source };
            let resolvers: Vec<String> = serde_json::from_str(text).map_err(json)?;
            found.upstreams = Some(addresses(resolvers)?).filter(|list| !list.is_empty());
        }
        Ok(found)
    }
}

fn addresses(texts: Vec<String>) -> Result<Vec<SocketAddr>, ParseError> {
    let read = |text: String| {
        let with_port = text.parse().ok();
        let plain = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
        with_port.or_else(plain).ok_or(ParseError::Address(text))
    };
    texts.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(stubs: &str, upstreams: &str) -> Result<StubDomains, String> {
        let data = [
            ("stubDomains".to_owned(), stubs.to_owned()),
            ("upstreamNameservers".to_owned(), upstreams.to_owned()),
        ];
        let map = ConfigMap { data: Some(data.into()), ..ConfigMap::default() };
        StubDomains::parse(&map).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_configuration_is_read() {
        let found = parse(
            r#"{"abc.com": ["1.2.3.4"], "my.cluster.local.": ["[fd00::1]:5353", "fd00::2"]}"#,
            r#"["8.8.8.8"]"#,
        );
        let found = found.unwrap();
        let domains: Vec<String> = found.domains.iter().map(|(name, at)| format!("{name} {at:?}")).collect();
        assert_eq!(domains, ["abc.com. [1.2.3.4:53]", "my.cluster.local. [[fd00::1]:5353, [fd00::2]:53]"]);
        assert_eq!(found.upstreams, Some(vec!["8.8.8.8:53".parse().unwrap()]));
        assert_eq!(parse("", ""), Ok(StubDomains::default()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(parse("[]", "").unwrap_err(), "stubDomains is not valid");
        assert_eq!(parse(r#"{"a b..": []}"#, "").unwrap_err(), r#""a b.." is no domain"#);
        assert_eq!(
            parse(r#"{"x.com": ["ns.x.com"]}"#, "").unwrap_err(),
            r#""ns.x.com" is no address of a resolver"#
        );
        assert_eq!(parse("", r#"{"a": 1}"#).unwrap_err(), "upstreamNameservers is not valid");
    }
}
