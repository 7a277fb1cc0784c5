//! The part of nftables that we use, in our own words, so that the library behind it can be exchanged.
//!
//! A [`Batch`] is a list of changes that the kernel applies completely or not at all; traffic sees the state
//! before or the state after. [`Nft`] commits batches and reads state back; [`open`] gives the implementation.
//! Tables are of family `inet`, where rules say which family they mean when an address width matters; one of ours is of family
//! `bridge` ([`Batch::of_bridge`]).
//!
//! Registers: the data area is 16 words of 32 bits; [`Reg`] is the index of the first word. A concatenated key
//! is laid out field after field, each padded to whole words ([`Element::concat`] does the same).

use std::time::Duration;

use async_trait::async_trait;

use crate::netns::Place;

/// First 32-bit word of a value in the registers, 0 to 15.
pub type Reg = u8;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refused a batch or a dump.
    #[error("nftables: {what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: nlink::Error,
    },
    /// A register or chain name that cannot be expressed.
    #[error("nftables: invalid {0}")]
    Invalid(String),
}

/// Commits batches and reads state.
#[async_trait]
pub trait Nft: Send + Sync {
    /// Applies all of `batch` or nothing. An empty batch is no request.
    async fn commit(&self, batch: Batch) -> Result<(), NftError>;
    /// Names of the chains in `table`; empty when there is no such table.
    async fn chains(&self, table: &str) -> Result<Vec<String>, NftError>;
    /// Names of the sets and maps in `table`.
    async fn sets(&self, table: &str) -> Result<Vec<String>, NftError>;
    /// The elements of a set or map.
    async fn elements(&self, table: &str, set: &str) -> Result<Vec<Element>, NftError>;
    /// What the commented rules of a table have counted, in their order.
    async fn counters(&self, table: &str) -> Result<Vec<Counter>, NftError>;
    /// Names of all tables of the families inet and bridge.
    async fn tables(&self) -> Result<Vec<String>, NftError>;
    /// Whether there is a table of family bridge.
    async fn has_bridge_table(&self, table: &str) -> Result<bool, NftError>;
    /// Removes the tables of this name, of both families, with all that is in them; `false` when there was none.
    async fn delete_table(&self, table: &str) -> Result<bool, NftError>;
}

/// An nftables connection in the namespace of `place`.
pub fn open(place: &Place) -> Result<Box<dyn Nft>, NftError> {
    Ok(Box::new(crate::nft_wire::Wire::open(place)?))
}

pub use crate::nft_wire::Removals;

/// Bytes of a rule's comment (`NFTNL_UDATA_COMMENT_MAXLEN` less the end).
const MAX_COMMENT: usize = 127;

/// What a rule with a comment and [`Expr::Count`] has counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// The rule's chain.
    pub chain: String,
    /// The rule's comment.
    pub comment: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A list of changes to one table, applied together.
#[derive(Debug, Clone)]
pub struct Batch {
    pub(crate) table: String,
    /// Of family bridge.
    pub(crate) bridge: bool,
    pub(crate) ops: Vec<Op>,
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Table,
    DeleteTable,
    Chain(Chain),
    FlushChain(String),
    DeleteChain(String),
    Rule { chain: String, comment: Option<String>, exprs: Vec<Expr> },
    Set(Set),
    DeleteSet(String),
    Add { set: Set, elements: Vec<Element> },
    Delete { set: Set, elements: Vec<Element> },
    Destroy { set: Set, elements: Vec<Element> },
}

impl Batch {
    /// An empty batch for `table`.
    pub fn new(table: &str) -> Self {
        Self { table: table.to_owned(), bridge: false, ops: Vec::new() }
    }

    /// An empty batch for `table` of family bridge.
    pub fn of_bridge(table: &str) -> Self {
        Self { bridge: true, ..Self::new(table) }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Makes the table unless it exists.
    pub fn table(&mut self) -> &mut Self {
        self.ops.push(Op::Table);
        self
    }

    /// Removes the table, which exists, with all that is in it.
    pub fn delete_table(&mut self) -> &mut Self {
        self.ops.push(Op::DeleteTable);
        self
    }

    /// Makes a chain unless it exists; its rules stay.
    pub fn chain(&mut self, chain: Chain) -> &mut Self {
        self.ops.push(Op::Chain(chain));
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, chain: &str) -> &mut Self {
        self.ops.push(Op::FlushChain(chain.to_owned()));
        self
    }

    /// Removes an existing chain, which nothing may refer to.
    pub fn delete_chain(&mut self, chain: &str) -> &mut Self {
        self.ops.push(Op::DeleteChain(chain.to_owned()));
        self
    }

    /// Appends a rule.
    pub fn rule(&mut self, chain: &str, exprs: Vec<Expr>) -> &mut Self {
        self.ops.push(Op::Rule { chain: chain.to_owned(), comment: None, exprs });
        self
    }

    /// Appends a rule that [`Nft::counters`] tells by its comment, which is cut to what the kernel keeps.
    pub fn counted_rule(&mut self, chain: &str, comment: &str, exprs: Vec<Expr>) -> &mut Self {
        let comment = comment[..comment.floor_char_boundary(MAX_COMMENT)].to_owned();
        self.ops.push(Op::Rule { chain: chain.to_owned(), comment: Some(comment), exprs });
        self
    }

    /// Makes a set or map, which must not exist.
    pub fn set(&mut self, set: &Set) -> &mut Self {
        self.ops.push(Op::Set(set.clone()));
        self
    }

    /// Removes an existing set or map.
    pub fn delete_set(&mut self, set: &str) -> &mut Self {
        self.ops.push(Op::DeleteSet(set.to_owned()));
        self
    }

    /// Adds elements. To change what a key maps to, delete it first in the same batch.
    pub fn add(&mut self, set: &Set, elements: Vec<Element>) -> &mut Self {
        if !elements.is_empty() {
            self.ops.push(Op::Add { set: set.clone(), elements });
        }
        self
    }

    /// Deletes elements, which must be there.
    pub fn delete(&mut self, set: &Set, elements: Vec<Element>) -> &mut Self {
        if !elements.is_empty() {
            self.ops.push(Op::Delete { set: set.clone(), elements });
        }
        self
    }

    /// Deletes elements that may have expired meanwhile.
    pub fn destroy(&mut self, set: &Set, elements: Vec<Element>) -> &mut Self {
        if !elements.is_empty() {
            self.ops.push(Op::Destroy { set: set.clone(), elements });
        }
        self
    }
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel calls it; `None` for a chain that rules jump to.
    pub hook: Option<(Hook, i32)>,
}

impl Chain {
    /// A chain that rules jump to.
    pub fn regular(name: &str) -> Self {
        Self { name: name.to_owned(), hook: None }
    }

    /// A chain that the kernel calls, at a priority (lower is earlier).
    pub fn base(name: &str, hook: Hook, priority: i32) -> Self {
        Self { name: name.to_owned(), hook: Some((hook, priority)) }
    }
}

/// Hooks, with the chain type that we use there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `type nat hook prerouting`.
    NatPrerouting,
    /// `type nat hook output`.
    NatOutput,
    /// `type nat hook postrouting`.
    NatPostrouting,
    /// `type filter hook prerouting`.
    FilterPrerouting,
    /// `type filter hook output`.
    FilterOutput,
    /// `type filter hook forward`.
    FilterForward,
    /// `type filter hook input`.
    FilterInput,
    /// `type route hook output`: a packet whose mark changes in there is routed anew.
    RouteOutput,
}

/// The type of a key, of a field of it, or of a map's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// 4 bytes.
    Ipv4,
    /// 16 bytes.
    Ipv6,
    /// 1 byte.
    Protocol,
    /// 2 bytes, network order.
    Port,
    /// 4 bytes, host order.
    Mark,
    /// A link's index: 4 bytes, host order.
    Link,
    /// A hardware address: 6 bytes.
    Ether,
    /// Several fields.
    Concat(Vec<Type>),
}

/// A set, or with `data` a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The key's type.
    pub key: Type,
    /// What keys map to.
    pub data: Option<Data>,
    /// Rules may add elements, which expire; the number bounds how many.
    pub dynamic: Option<u32>,
    /// Elements are ranges, which must not touch each other.
    pub intervals: bool,
}

/// What a map's keys map to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A value.
    Value(Type),
    /// A verdict, for example a jump to a chain.
    Verdict,
}

impl Set {
    /// A plain set.
    pub fn new(name: &str, key: Type) -> Self {
        Self { name: name.to_owned(), key, data: None, dynamic: None, intervals: false }
    }

    /// A map to values.
    pub fn map(name: &str, key: Type, data: Type) -> Self {
        Self { data: Some(Data::Value(data)), ..Self::new(name, key) }
    }

    /// A set of ranges of a single field.
    pub fn intervals(name: &str, key: Type) -> Self {
        Self { intervals: true, ..Self::new(name, key) }
    }

    /// A map to verdicts.
    pub fn verdicts(name: &str, key: Type) -> Self {
        Self { data: Some(Data::Verdict), ..Self::new(name, key) }
    }
}

/// An element as bytes in the set's layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key; of a range its first.
    pub key: Vec<u8>,
    /// The last key of a range.
    pub last: Option<Vec<u8>>,
    /// The value, for a map of values.
    pub value: Option<Vec<u8>>,
    /// The chain to go to, for a map of verdicts.
    pub goto: Option<String>,
}

impl Element {
    /// An element of a plain set.
    pub fn new(key: Vec<u8>) -> Self {
        Self { key, last: None, value: None, goto: None }
    }

    /// An element of a map.
    pub fn value(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { value: Some(value), ..Self::new(key) }
    }

    /// A range of a set of intervals, both ends included.
    pub fn range(first: Vec<u8>, last: Vec<u8>) -> Self {
        Self { last: Some(last), ..Self::new(first) }
    }

    /// An element of a verdict map.
    pub fn goto(key: Vec<u8>, chain: &str) -> Self {
        Self { goto: Some(chain.to_owned()), ..Self::new(key) }
    }

    /// Joins fields as the registers hold them: each padded to whole words.
    pub fn concat(fields: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend_from_slice(field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}

/// A header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Ethernet's.
    Link,
    /// IP's or ARP's.
    Network,
    /// That of the transport protocol, or ICMP's.
    Transport,
}

/// One step of a rule; a rule ends at the first step that does not match.
#[derive(Debug, Clone)]
pub enum Expr {
    /// The packet's family: IPv6 or IPv4. Needed before addresses are read.
    Family {
        /// IPv6?
        v6: bool,
    },
    /// Loads the source address.
    LoadSource {
        /// IPv6?
        v6: bool,
        /// Where to.
        to: Reg,
    },
    /// Loads the destination address.
    LoadDestination {
        /// IPv6?
        v6: bool,
        /// Where to.
        to: Reg,
    },
    /// Loads the transport protocol's number (1 byte).
    LoadProtocol {
        /// Where to.
        to: Reg,
    },
    /// Loads the destination port (2 bytes).
    LoadPort {
        /// Where to.
        to: Reg,
    },
    /// Loads a part of a header.
    LoadHeader {
        /// Of which.
        header: Header,
        /// Where it begins, in bytes.
        offset: u32,
        /// How long it is, in bytes.
        len: u32,
        /// Where to.
        to: Reg,
    },
    /// Loads the index of the link by which the packet came.
    LoadInputLink {
        /// Where to.
        to: Reg,
    },
    /// What was loaded is this.
    Equals {
        /// Where it is.
        at: Reg,
        /// What it is.
        bytes: Vec<u8>,
    },
    /// The frame carries this protocol.
    EtherType(u16),
    /// The packet is ICMPv6 of this type.
    Icmpv6(u8),
    /// Loads constant bytes.
    Load {
        /// Where to.
        to: Reg,
        /// What.
        bytes: Vec<u8>,
    },
    /// Loads a random number from `offset` on, below `offset + modulus` (host order).
    LoadRandom {
        /// Where to.
        to: Reg,
        /// How many there are.
        modulus: u32,
        /// The least.
        offset: u32,
    },
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// The source lies (or does not lie) in a network.
    Source {
        /// The network.
        net: crate::Cidr,
        /// Inside or outside.
        inside: bool,
    },
    /// The destination lies (or does not lie) in a network.
    Destination {
        /// The network.
        net: crate::Cidr,
        /// Inside or outside.
        inside: bool,
    },
    /// The packet leaves (or does not leave) by the link of this name.
    OutputLink {
        /// Name.
        name: String,
        /// Is it, or is it not.
        is: bool,
    },
    /// The packet's connection is new.
    New,
    /// The packet answers those of a connection that went through.
    Answer,
    /// The packet belongs to a connection as an error message does.
    Related,
    /// The transport protocol has this number.
    Protocol(u8),
    /// The destination port lies in this range.
    Ports {
        /// First.
        first: u16,
        /// Last.
        last: u16,
    },
    /// ICMPv6 router and neighbour discovery, without which no address resolves.
    NeighborDiscovery,
    /// Counts packets and bytes.
    Count,
    /// The connection's destination was translated.
    WasTranslated,
    /// The key is in a set.
    In {
        /// The set.
        set: String,
        /// Where the key is.
        key: Reg,
    },
    /// Looks a key up in a map of values and loads the value; no match ends the rule.
    Lookup {
        /// The map.
        map: String,
        /// Where the key is.
        key: Reg,
        /// Where the value goes.
        to: Reg,
    },
    /// Looks a key up in a verdict map and obeys.
    LookupVerdict {
        /// The map.
        map: String,
        /// Where the key is.
        key: Reg,
    },
    /// Adds or refreshes an element of a dynamic map.
    Remember {
        /// The map.
        map: String,
        /// Where the key is.
        key: Reg,
        /// Where the value is.
        value: Reg,
        /// When it expires unless refreshed.
        timeout: Duration,
    },
    /// Sets bits of the packet's mark.
    MarkSet(u32),
    /// All of these bits of the packet's mark are set.
    MarkHas(u32),
    /// Clears bits of the packet's mark.
    MarkClear(u32),
    /// Translates the destination to the address and port in the registers.
    Dnat {
        /// IPv6?
        v6: bool,
        /// Where the address is.
        addr: Reg,
        /// Where the port is.
        port: Reg,
    },
    /// Translates the source to the outgoing link's address, with a random port.
    Masquerade,
    /// Answers "port unreachable".
    Reject,
    /// Drops in silence.
    Drop,
    /// Accepts; other tables have their own say.
    Accept,
    /// Goes on in another chain for good.
    Goto(String),
    /// Back to the calling chain; out of a base chain: accepted here.
    Return,
    /// Goes on in another chain and comes back after it.
    Jump(String),
}
