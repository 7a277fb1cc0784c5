//! Frames that tell a link's neighbours where an address is now: gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour
//! advertisements (RFC 4861, section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Of `ff02::1`, all nodes of the link.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;

/// Says on the link `index`, whose hardware address is `mac`, that `address` is there. To be called in the link's namespace.
#[allow(unsafe_code, reason = "sendto with a link-layer address, which no safe wrapper takes")]
pub(crate) fn send(index: u32, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    let frame = match address {
        IpAddr::V4(address) => arp(mac, address),
        IpAddr::V6(address) => advertisement(mac, address),
    };
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // SAFETY: both pointers are to live values of the lengths given, and the kernel only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ethernet(to: [u8; 6], from: [u8; 6], protocol: u16) -> Vec<u8> {
    [&to[..], &from, &protocol.to_be_bytes()].concat()
}

/// A request for its own address: what neighbours know of it they change, whether they want it or not.
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETH_ARP);
    // Ethernet, IPv4, their lengths, request
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Overrides what neighbours know.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    // neighbour advertisement, checksum to come, flag "override", target, option "target link-layer address"
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let len = message.len() as u16;
    let pseudo = [
        &address.octets()[..],
        &ALL_NODES.octets(),
        &u32::from(len).to_be_bytes(),
        &[0, 0, 0, ICMPV6],
        &message,
    ];
    let sum = checksum(&pseudo.concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, ETH_IPV6);
    // version 6, length, next header, hop limit 255
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_over_a_message_with_its_checksum_is_zero() {
        let address: Ipv6Addr = "fd00::1".parse().unwrap();
        let frame = advertisement([2, 0, 0, 0, 0, 1], address);
        let message = &frame[54..];
        let len = (message.len() as u32).to_be_bytes();
        let pseudo = [&frame[22..38], &frame[38..54], &len, &[0, 0, 0, ICMPV6], message].concat();
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(arp([2, 0, 0, 0, 0, 1], [192, 0, 2, 1].into()).len(), 42);
    }
}
