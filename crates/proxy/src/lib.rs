//! Services as one nftables table, edited incrementally.
