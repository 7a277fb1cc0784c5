//! The messages of the generic netlink family `IPVS` (`include/uapi/linux/ip_vs.h`): a command, and nested attributes that say
//! which service, and which server of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nlink::netlink::attr::AttrIter;
use nlink::netlink::genl::GENL_HDRLEN;

use crate::Protocol;
use crate::ipvs::{Real, Settings, Virtual};

/// The family's name.
pub(crate) const FAMILY: &str = "IPVS";
/// Its version.
pub(crate) const VERSION: u8 = 1;

/// `IPVS_CMD_…`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    NewService = 1,
    SetService = 2,
    DelService = 3,
    GetService = 4,
    NewDest = 5,
    SetDest = 6,
    DelDest = 7,
    GetDest = 8,
}

/// `IPVS_CMD_ATTR_…`: what is nested in a message.
const SERVICE: u16 = 1;
const DEST: u16 = 2;

/// `IPVS_SVC_ATTR_…`.
mod svc {
    pub const AF: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDR: u16 = 3;
    pub const PORT: u16 = 4;
    pub const FWMARK: u16 = 5;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
}

/// `IPVS_DEST_ATTR_…`.
mod dest {
    pub const ADDR: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FORWARDING: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER_THRESHOLD: u16 = 5;
    pub const LOWER_THRESHOLD: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
}

const NLA_F_NESTED: u16 = 1 << 15;
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 1;
/// `IP_VS_CONN_F_MASQ`: translated both ways.
const TRANSLATE: u32 = 0;
/// A client is a single address.
const ONE_IPV4: u32 = u32::MAX;
const ONE_IPV6: u32 = 128;

/// Attributes one after the other, each padded to words.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn add(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        // what we send is far below the 64 KiB of an attribute
        let length = (payload.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.add(kind, &value.to_ne_bytes())
    }

    fn nested_in(&self, kind: u16) -> Vec<u8> {
        let mut outer = Self::default();
        outer.add(kind | NLA_F_NESTED, &self.0);
        outer.0
    }
}

fn family(v6: bool) -> u16 {
    if v6 { libc::AF_INET6 as u16 } else { libc::AF_INET as u16 }
}

/// `union nf_inet_addr`.
fn address(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&addr.octets());
            bytes
        }
        IpAddr::V6(addr) => addr.octets(),
    }
}

fn settings(to: &mut Attributes, settings: &Settings, v6: bool) {
    let flags = if settings.persistence.is_some() { PERSISTENT } else { 0 };
    to.add(svc::SCHEDULER, &[settings.scheduler.as_bytes(), &[0]].concat());
    // the flags, and which of them are meant
    to.add(svc::FLAGS, &[flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat());
    to.number(svc::TIMEOUT, settings.persistence.unwrap_or(0));
    to.number(svc::NETMASK, if v6 { ONE_IPV6 } else { ONE_IPV4 });
}

/// A service by address and port; with what it is set to, where that is to be changed.
pub(crate) fn service(service: &Virtual, set: Option<&Settings>) -> Vec<u8> {
    let v6 = service.addr.is_ipv6();
    let mut attributes = Attributes::default();
    attributes.add(svc::AF, &family(v6).to_ne_bytes());
    attributes.add(svc::PROTOCOL, &(service.protocol as u16).to_ne_bytes());
    attributes.add(svc::ADDR, &address(service.addr));
    attributes.add(svc::PORT, &service.port.to_be_bytes());
    if let Some(set) = set {
        settings(&mut attributes, set, v6);
    }
    attributes.nested_in(SERVICE)
}

/// A service by mark.
pub(crate) fn marked(mark: u32, set: &Settings) -> Vec<u8> {
    let mut attributes = Attributes::default();
    attributes.add(svc::AF, &family(false).to_ne_bytes()).number(svc::FWMARK, mark);
    settings(&mut attributes, set, false);
    attributes.nested_in(SERVICE)
}

/// A server of a service; with its weight, where that is to be set.
pub(crate) fn real(real: SocketAddr, weight: Option<u32>) -> Vec<u8> {
    let mut attributes = Attributes::default();
    attributes.add(dest::ADDR, &address(real.ip())).add(dest::PORT, &real.port().to_be_bytes());
    if let Some(weight) = weight {
        attributes.number(dest::FORWARDING, TRANSLATE).number(dest::WEIGHT, weight);
        attributes.number(dest::UPPER_THRESHOLD, 0).number(dest::LOWER_THRESHOLD, 0);
    }
    attributes.nested_in(DEST)
}

/// Reads a message about a service; `None` for one by mark, and for what we do not know.
pub(crate) fn read_service(message: &[u8]) -> Option<(Virtual, Settings)> {
    let nested = nested(message, SERVICE)?;
    let v6 = match u16::from_ne_bytes(find(nested, svc::AF)?.try_into().ok()?) {
        af if af == family(true) => true,
        af if af == family(false) => false,
        _ => return None,
    };
    let protocol = match u16::from_ne_bytes(find(nested, svc::PROTOCOL)?.try_into().ok()?) {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    let service = Virtual {
        addr: read_address(find(nested, svc::ADDR)?, v6)?,
        protocol,
        port: u16::from_be_bytes(find(nested, svc::PORT)?.try_into().ok()?),
    };
    let flags = u32::from_ne_bytes(find(nested, svc::FLAGS)?.get(..4)?.try_into().ok()?);
    let scheduler = find(nested, svc::SCHEDULER)?.split(|byte| *byte == 0).next()?;
    let settings = Settings {
        scheduler: String::from_utf8_lossy(scheduler).into_owned(),
        persistence: (flags & PERSISTENT != 0).then_some(number(nested, svc::TIMEOUT)?),
    };
    Some((service, settings))
}

/// Reads a message about a server.
pub(crate) fn read_real(message: &[u8], v6: bool) -> Option<Real> {
    let nested = nested(message, DEST)?;
    let port = u16::from_be_bytes(find(nested, dest::PORT)?.try_into().ok()?);
    let connections = |kind| number(nested, kind).map_or(0, u64::from);
    Some(Real {
        addr: SocketAddr::new(read_address(find(nested, dest::ADDR)?, v6)?, port),
        weight: number(nested, dest::WEIGHT)?,
        connections: connections(dest::ACTIVE) + connections(dest::INACTIVE),
    })
}

fn nested(message: &[u8], kind: u16) -> Option<&[u8]> {
    find(message.get(GENL_HDRLEN..)?, kind)
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    AttrIter::new(attributes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(find(attributes, kind)?.try_into().ok()?))
}

fn read_address(bytes: &[u8], v6: bool) -> Option<IpAddr> {
    if v6 {
        return Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?).into());
    }
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        let words = bytes.chunks(4).map(|word| word.iter().map(|b| format!("{b:02x}")).collect::<String>());
        words.collect::<Vec<_>>().join(" ")
    }

    fn web(addr: &str) -> Virtual {
        Virtual { addr: addr.parse().unwrap(), protocol: Protocol::Tcp, port: 80 }
    }

    /// As the kernel tells it: behind the family's header.
    fn told(attributes: &[u8]) -> Vec<u8> {
        [&[1, 1, 0, 0][..], attributes].concat()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_service_is_written_as_the_kernel_reads_it() {
        let settings = Settings { scheduler: "rr".to_owned(), persistence: Some(10800) };
        // length and kind of the nest; family 2, protocol 6, address (16 bytes), port; "rr", flags and mask, seconds, netmask
        assert_eq!(
            hex(&service(&web("10.96.0.1"), Some(&settings))),
            "54000180 06000100 02000000 06000200 06000000 14000300 0a600001 00000000 00000000 00000000 \
             06000400 00500000 07000600 72720000 0c000700 01000000 ffffffff 08000800 302a0000 08000900 ffffffff"
        );
        // which server, how its packets are sent on (translated), its weight, no limits
        assert_eq!(
            hex(&real("10.244.0.7:8080".parse().unwrap(), Some(1))),
            "40000280 14000100 0af40007 00000000 00000000 00000000 06000200 1f900000 08000300 00000000 \
             08000400 01000000 08000500 00000000 08000600 00000000"
        );
    }

    #[test]
    fn services_are_read_as_they_were_written() {
        for addr in ["10.96.0.1", "fd00:10:96::1"] {
            for persistence in [None, Some(7)] {
                let settings = Settings { scheduler: "wlc".to_owned(), persistence };
                let written = told(&service(&web(addr), Some(&settings)));
                assert_eq!(read_service(&written), Some((web(addr), settings)));
            }
        }
        let by_mark = Settings { scheduler: "rr".to_owned(), persistence: None };
        assert_eq!(read_service(&told(&marked(7, &by_mark))), None);
        assert_eq!(read_service(&[1, 2]), None);
    }

    #[test]
    fn servers_are_read_with_their_connections() {
        let mut attributes = Attributes::default();
        attributes
            .add(dest::ADDR, &address("fd00::7".parse().unwrap()))
            .add(dest::PORT, &8080u16.to_be_bytes());
        attributes.number(dest::WEIGHT, 0).number(dest::ACTIVE, 2).number(dest::INACTIVE, 40);
        let read = read_real(&told(&attributes.nested_in(DEST)), true);
        let addr = "[fd00::7]:8080".parse().unwrap();
        assert_eq!(read, Some(Real { addr, weight: 0, connections: 42 }));
        assert_eq!(read_real(&told(&real(addr, None)), true), None);
    }
}
