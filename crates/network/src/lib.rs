//! Pod network: bridge, address management, netlink and nftables helpers.
