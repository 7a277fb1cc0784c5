//! IP addresses and networks: `ip('10.0.0.1').family()`, `cidr('10.0.0.0/8').containsIP('10.1.1.1')`.
//!
//! Strict as upstream: no zones, no IPv4 in IPv6, no leading zeros.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::value::Value;
use super::{Opaque, made, opaque, text};

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Cidr {
    ip: IpAddr,
    bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

impl Cidr {
    /// What it counts for in costs: bytes of the prefix.
    pub(in super::super) fn size(&self) -> u64 {
        u64::from(self.bits).div_ceil(8)
    }

    fn masked(self) -> Cidr {
        let ip = match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
            }
        };
        Cidr { ip, bits: self.bits }
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && Cidr { ip, bits: self.bits }.masked().ip == self.masked().ip
    }
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "ip",
        signatures: "(string):IP CIDR.():IP",
        body: |_, args| match args {
            [Value::String(s)] => parse_ip(s).map(|ip| made(Opaque::Ip(ip))),
            _ => Ok(made(Opaque::Ip(net(args, 0)?.ip))),
        },
    },
    Declared {
        name: "isIP",
        signatures: "(string):bool CIDR.(string):bool",
        body: |_, args| Ok(Value::Bool(parse_ip(text(args, args.len().saturating_sub(1))?).is_ok())),
    },
    Declared {
        name: "ip.isCanonical",
        signatures: "(string):bool",
        body: |_, args| {
            let given = text(args, 0)?;
            Ok(Value::Bool(parse_ip(given)?.to_string() == given))
        },
    },
    Declared {
        name: "family",
        signatures: "IP.():int",
        body: |_, args| Ok(Value::Int(if addr(args, 0)?.is_ipv4() { 4 } else { 6 })),
    },
    Declared {
        name: "isUnspecified",
        signatures: "IP.():bool",
        body: |_, args| Ok(Value::Bool(addr(args, 0)?.is_unspecified())),
    },
    Declared {
        name: "isLoopback",
        signatures: "IP.():bool",
        body: |_, args| Ok(Value::Bool(addr(args, 0)?.is_loopback())),
    },
    Declared {
        name: "isLinkLocalMulticast",
        signatures: "IP.():bool",
        body: |_, args| {
            Ok(Value::Bool(match addr(args, 0)? {
                IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
                IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
            }))
        },
    },
    Declared {
        name: "isLinkLocalUnicast",
        signatures: "IP.():bool",
        body: |_, args| {
            Ok(Value::Bool(match addr(args, 0)? {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
            }))
        },
    },
    Declared {
        name: "isGlobalUnicast",
        signatures: "IP.():bool",
        body: |_, args| {
            let ip = addr(args, 0)?;
            let local = match ip {
                IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
                IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
            };
            Ok(Value::Bool(!(local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())))
        },
    },
    Declared {
        name: "cidr",
        signatures: "(string):CIDR",
        body: |_, args| parse_cidr(text(args, 0)?).map(|cidr| made(Opaque::Cidr(cidr))),
    },
    Declared {
        name: "isCIDR",
        signatures: "(string):bool",
        body: |_, args| Ok(Value::Bool(parse_cidr(text(args, 0)?).is_ok())),
    },
    Declared {
        name: "masked",
        signatures: "CIDR.():CIDR",
        body: |_, args| Ok(made(Opaque::Cidr(net(args, 0)?.masked()))),
    },
    Declared {
        name: "prefixLength",
        signatures: "CIDR.():int",
        body: |_, args| Ok(Value::Int(i64::from(net(args, 0)?.bits))),
    },
    Declared {
        name: "containsIP",
        signatures: "CIDR.(string):bool CIDR.(IP):bool",
        body: |_, args| {
            let ip = match args.get(1) {
                Some(Value::String(s)) => parse_ip(s)?,
                _ => addr(args, 1)?,
            };
            Ok(Value::Bool(net(args, 0)?.contains(ip)))
        },
    },
    Declared {
        name: "containsCIDR",
        signatures: "CIDR.(string):bool CIDR.(CIDR):bool",
        body: |_, args| {
            let inner = match args.get(1) {
                Some(Value::String(s)) => parse_cidr(s)?,
                _ => net(args, 1)?,
            };
            let outer = net(args, 0)?;
            Ok(Value::Bool(outer.contains(inner.ip) && outer.bits <= inner.bits))
        },
    },
];

fn addr(args: &[Value<'_>], at: usize) -> Result<IpAddr, Error> {
    match opaque(args, at)? {
        Opaque::Ip(ip) => Ok(*ip),
        _ => Err(Error::no_overload()),
    }
}

fn net(args: &[Value<'_>], at: usize) -> Result<Cidr, Error> {
    match opaque(args, at)? {
        Opaque::Cidr(cidr) => Ok(*cidr),
        _ => Err(Error::no_overload()),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    if text.contains('%') {
        return Err(Error::new(format!("IP address with zone value is not allowed: {text:?}")));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        Error::new(format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"))
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Error::new(format!("IPv4-mapped IPv6 address is not allowed: {text:?}")))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, Error> {
    let wrong = || {
        Error::new(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?}): no '/'"
        ))
    };
    let (ip, bits) = text.rsplit_once('/').ok_or_else(wrong)?;
    let ip = parse_ip(ip)?;
    let canonical = bits == "0" || (!bits.starts_with('0') && bits.bytes().all(|b| b.is_ascii_digit()));
    let most = if ip.is_ipv4() { 32 } else { 128 };
    match bits.parse::<u8>() {
        Ok(bits) if canonical && bits <= most => Ok(Cidr { ip, bits }),
        _ => Err(Error::new(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?}): prefix length out of range"
        ))),
    }
}
