//! Proxies by the environment: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, in capitals or not, read as Go's
//! `net/http` reads them, since that is what containerd's users have set.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<Uri>,
    https: Option<Uri>,
    none: Vec<String>,
}

impl Proxies {
    /// From the process's environment.
    pub(super) fn from_env() -> Proxies {
        Proxies::from(|name| {
            [name.to_owned(), name.to_lowercase()]
                .iter()
                .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        })
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Proxies {
        let proxy = |name: &str| -> Option<Uri> {
            let value = variable(name)?;
            let value = if value.contains("://") { value } else { format!("http://{value}") };
            match value.parse::<Uri>() {
                Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Some(uri),
                _ => {
                    tracing::warn!(variable = name, "only http:// proxies are understood; ignoring it");
                    None
                }
            }
        };
        let none = variable("NO_PROXY").unwrap_or_default();
        Proxies {
            http: proxy("HTTP_PROXY"),
            https: proxy("HTTPS_PROXY"),
            none: none.split(',').map(|part| part.trim().to_lowercase()).filter(|p| !p.is_empty()).collect(),
        }
    }

    /// The proxy on the way to `target`, if there is one.
    pub(super) fn of(&self, target: &Uri) -> Option<&Uri> {
        let https = target.scheme_str() == Some("https");
        let proxy = if https { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = target.host()?.trim_matches(['[', ']']).to_lowercase();
        let port = target.port_u16().unwrap_or(if https { 443 } else { 80 });
        (!self.direct(&host, port)).then_some(proxy)
    }

    fn direct(&self, host: &str, port: u16) -> bool {
        let ip: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        self.none.iter().any(|rule| {
            let (rule, wanted) = match rule.rsplit_once(':') {
                Some((rule, number)) if !rule.contains(':') => match number.parse::<u16>() {
                    Ok(number) => (rule, Some(number)),
                    Err(_) => return false,
                },
                _ => (rule.as_str(), None),
            };
            if wanted.is_some_and(|wanted| wanted != port) {
                return false;
            }
            if rule == "*" {
                return true;
            }
            match ip {
                Some(ip) => match rule.split_once('/') {
                    Some((net, bits)) => within(ip, net, bits),
                    None => rule.parse() == Ok(ip),
                },
                // `example.com` means its subdomains too, `.example.com` only those
                None => {
                    let domain = rule.trim_start_matches("*.").trim_start_matches('.');
                    let below = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
                    below || (host == rule)
                }
            }
        })
    }
}

/// What a proxy is told of who asks: the name and password of its address, where escapes stand for what an address cannot
/// have (RFC 3986, 2.1).
pub(super) fn credentials(proxy: &Uri) -> Option<HeaderValue> {
    let (user, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(unescaped(&user)))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let byte = match (first, after) {
            (b'%', [high, low, ..]) => {
                digit(high).zip(digit(low)).and_then(|(h, l)| u8::try_from(h * 16 + l).ok())
            }
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
        rest = after.get(if byte.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    out
}

fn within(ip: IpAddr, net: &str, bits: &str) -> bool {
    let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let (ip, net, width) = match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => (u128::from(ip.to_bits()), u128::from(net.to_bits()), 32),
        (IpAddr::V6(ip), IpAddr::V6(net)) => (ip.to_bits(), net.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (ip ^ net).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_what_goes_through_which_proxy() {
        let proxies = Proxies::from(|name| match name {
            "HTTPS_PROXY" => Some("proxy:3128".to_owned()),
            "HTTP_PROXY" => Some("http://plain:1".to_owned()),
            "NO_PROXY" => Some("10.0.0.0/8, .inner.io,exact.io:5000,2001:db8::/32".to_owned()),
            _ => None,
        });
        let check = |uri: &str, expected: Option<&str>| {
            let found = proxies.of(&uri.parse().unwrap()).map(|p| p.authority().unwrap().as_str());
            assert_eq!(found, expected, "{uri}");
        };
        check("https://q.io/", Some("proxy:3128"));
        check("http://q.io/", Some("plain:1"));
        check("https://10.1.2.3:5000/", None);
        check("https://11.1.2.3:5000/", Some("proxy:3128"));
        check("https://a.inner.io/", None);
        check("https://inner.io/", Some("proxy:3128"));
        check("https://exact.io:5000/", None);
        check("https://exact.io/", Some("proxy:3128"));
        check("https://sub.exact.io:5000/", None);
        check("https://notexact.io:5000/", Some("proxy:3128"));
        check("https://localhost:5000/", None);
        check("https://127.0.0.1:5000/", None);
        check("https://[2001:db8::1]/", None);
        let told = |proxy: &str| {
            let value = credentials(&proxy.parse().unwrap())?;
            let token = value.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
            Some(String::from_utf8(STANDARD.decode(token).unwrap()).unwrap())
        };
        assert_eq!(told("http://proxy:1"), None);
        assert_eq!(told("http://me:p%40ss%3a%2f@proxy:1").as_deref(), Some("me:p@ss:/"));
        assert_eq!(told("http://me@proxy").as_deref(), Some("me:"));
        assert!(Proxies::from(|_| None).of(&"https://q.io/".parse().unwrap()).is_none());
    }
}
