//! The vocabulary of [`crate::nft`] over netlink by the crate `nlink`.
//!
//! What it has to handle: a batch larger than the default socket buffer is refused (so the buffer is raised
//! beyond the system's limit, which needs `CAP_NET_ADMIN`), element lists are cut to the 64 KiB that a nested
//! attribute can hold, and two expressions are written as raw attributes because the library's types for them
//! cannot be constructed (`nat` from registers) or know no flags (`masq`).

use async_trait::async_trait;
use futures_util::StreamExt;
use nlink::netlink::nftables::events::{NftablesEvent, NftablesGroup};
use nlink::netlink::nftables::expr::{DynsetExpr, DynsetOp, LookupExpr, NumgenKind, RawExpr};
use nlink::netlink::nftables::types::{
    BaseChain, Chain as WireChain, CmpOp, CtKey, CtStatus, Family, FibFlags, FibResult, FilterHook, MetaKey,
    NatHook, PayloadBase, Priority, Register, Rule, Set as WireSet, SetDataType, SetElement, SetElementData,
    SetKeyType, Verdict,
};
use nlink::netlink::nftables::{Expr as WireExpr, RawMessage, Transaction};
use nlink::netlink::{Connection, Nftables, OwnedEventStream};

use crate::cidr::Cidr;
use crate::netns::Place;
use crate::nft::{
    Batch, Chain, Counter, Data, Element, Expr, Header, Hook, Nft, NftError, Op, Reg, Set, Type,
};

const FAMILY: Family = Family::Inet;
const BRIDGE: Family = Family::Bridge;
/// `NFT_MSG_NEWTABLE` and `NLM_F_CREATE`: make a table unless it exists, which the library cannot say.
const NEWTABLE: u8 = 0;
const CREATE: u16 = 0x400;
/// Elements per message: the widest element takes about 110 bytes of the 65535.
const CHUNK: usize = 400;
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 8 << 20;
const CT_STATE_ESTABLISHED: u32 = 2;
const CT_STATE_RELATED: u32 = 4;
const CT_STATE_NEW: u32 = 8;
const IP_CT_DIR_REPLY: u8 = 1;
/// ICMPv6 types router solicitation to redirect (RFC 4861).
const ND_FIRST: u8 = 133;
const ND_LAST: u8 = 137;
const RTN_LOCAL: u32 = 2;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 16;
const ICMPX_PORT_UNREACH: (u32, u8) = (2, 1);

pub(crate) struct Wire {
    conn: Connection<Nftables>,
}

impl Wire {
    pub(crate) fn open(place: &Place) -> Result<Self, NftError> {
        let conn = place.nftables().map_err(kernel("cannot open a netlink socket"))?;
        let socket = conn.socket();
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER) {
            tracing::warn!(%error, "large nftables batches may be refused: cannot raise the socket buffer");
        }
        // dumps are paced by the reader; many errors of one batch are not
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER);
        Ok(Self { conn })
    }

    async fn table_exists(&self, table: &str) -> Result<bool, NftError> {
        Ok(self.tables_of(FAMILY).await?.iter().any(|t| t == table))
    }

    async fn tables_of(&self, family: Family) -> Result<Vec<String>, NftError> {
        let tables = self.conn.list_tables_in(family).await.map_err(kernel("cannot list tables"))?;
        Ok(tables.into_iter().map(|t| t.name).collect())
    }
}

fn kernel(what: &str) -> impl FnOnce(nlink::Error) -> NftError {
    let what = what.to_owned();
    move |source| NftError::Kernel { what, source }
}

#[async_trait]
impl Nft for Wire {
    async fn commit(&self, batch: Batch) -> Result<(), NftError> {
        if batch.ops.is_empty() {
            return Ok(());
        }
        let what = format!("batch of {} changes to table {} refused", batch.ops.len(), batch.table);
        let mut tx = self.conn.transaction();
        let family = if batch.bridge { BRIDGE } else { FAMILY };
        for op in batch.ops {
            tx = lower(tx, family, &batch.table, op)?;
        }
        tx.commit(&self.conn).await.map_err(|source| NftError::Kernel { what, source })
    }

    async fn chains(&self, table: &str) -> Result<Vec<String>, NftError> {
        if !self.table_exists(table).await? {
            return Ok(Vec::new());
        }
        let chains = self.conn.list_chains_in(table, FAMILY).await.map_err(kernel("cannot list chains"))?;
        Ok(chains.into_iter().map(|c| c.name).collect())
    }

    async fn sets(&self, table: &str) -> Result<Vec<String>, NftError> {
        if !self.table_exists(table).await? {
            return Ok(Vec::new());
        }
        let sets = self.conn.list_sets_in(table, FAMILY).await.map_err(kernel("cannot list sets"))?;
        Ok(sets.into_iter().map(|s| s.name).collect())
    }

    async fn elements(&self, table: &str, set: &str) -> Result<Vec<Element>, NftError> {
        let elements = self
            .conn
            .list_set_elements(table, set, FAMILY)
            .await
            .map_err(kernel(&format!("cannot read the elements of {set}")))?;
        Ok(elements.iter().map(read_element).collect())
    }

    async fn counters(&self, table: &str) -> Result<Vec<Counter>, NftError> {
        if !self.table_exists(table).await? {
            return Ok(Vec::new());
        }
        let rules = self.conn.list_rules(table, FAMILY).await.map_err(kernel("cannot list rules"))?;
        let counted = rules.into_iter().filter_map(|rule| {
            let (packets, bytes) = counted(&rule.expression_bytes)?;
            Some(Counter { chain: rule.chain, comment: rule.comment_text?, packets, bytes })
        });
        Ok(counted.collect())
    }

    async fn tables(&self) -> Result<Vec<String>, NftError> {
        let mut names = self.tables_of(FAMILY).await?;
        names.extend(self.tables_of(BRIDGE).await?);
        Ok(names)
    }

    async fn has_bridge_table(&self, table: &str) -> Result<bool, NftError> {
        Ok(self.tables_of(BRIDGE).await?.iter().any(|t| t == table))
    }

    async fn delete_table(&self, table: &str) -> Result<bool, NftError> {
        let mut deleted = false;
        for family in [FAMILY, BRIDGE] {
            let gone = self.conn.del_table_if_exists(table, family).await;
            deleted |= gone.map_err(kernel("cannot delete the table"))?;
        }
        Ok(deleted)
    }
}

/// Packets and bytes of the first counter among a rule's expressions, which the library leaves as they came: a list of
/// (name, data), the data of a counter being its bytes and packets in network order.
fn counted(expressions: &[u8]) -> Option<(u64, u64)> {
    for (_, expression) in attributes(expressions) {
        let parts: Vec<(u16, &[u8])> = attributes(expression).collect();
        let part = |ty| parts.iter().find(|(t, _)| *t == ty).map(|(_, value)| *value);
        if part(1).is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(name) == b"counter") {
            let data: Vec<(u16, &[u8])> = attributes(part(2)?).collect();
            let number = |ty| {
                let (_, value) = data.iter().find(|(t, _)| *t == ty)?;
                Some(u64::from_be_bytes((*value).try_into().ok()?))
            };
            return Some((number(2)?, number(1)?));
        }
    }
    None
}

/// Netlink attributes: type without its flags, and payload.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let ty = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let payload = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((ty, payload))
    })
}

/// Tells when a table may have been removed by someone else: `nft flush ruleset`, which firewall services do when
/// they reload, takes our table too.
pub struct Removals {
    events: OwnedEventStream<Nftables>,
    place: Place,
    table: String,
}

impl Removals {
    /// Listens from now on.
    pub async fn open(place: &Place, table: &str) -> Result<Self, NftError> {
        let events = listen(place).await?;
        Ok(Self { events, place: place.clone(), table: table.to_owned() })
    }

    /// Returns when the table was removed, or when events were missed so that it might have been: look whether it
    /// stands. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<(), NftError> {
        loop {
            match self.events.next().await {
                Some(Ok(NftablesEvent::DelTable(t))) if t.name == self.table => {
                    return Ok(());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) if error.is_no_buffer_space() => return Ok(()),
                Some(Err(_)) | None => {
                    self.events = listen(&self.place).await?;
                    return Ok(());
                }
            }
        }
    }
}

async fn listen(place: &Place) -> Result<OwnedEventStream<Nftables>, NftError> {
    let conn = place.nftables().map_err(kernel("cannot open a netlink socket"))?;
    // our own first sync is announced element by element
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(conn.socket(), RECEIVE_BUFFER);
    conn.subscribe(&[NftablesGroup::All]).map_err(kernel("cannot listen for changes"))?;
    Ok(conn.into_events().await)
}

fn read_element(element: &SetElement) -> Element {
    let (mut value, mut goto) = (None, None);
    match element.data() {
        Some(SetElementData::Value(v)) => value = Some(v.clone()),
        Some(SetElementData::Verdict(Verdict::GotoTo(c) | Verdict::JumpTo(c))) => goto = Some(c.to_string()),
        _ => {}
    }
    Element { key: element.key().to_vec(), last: element.key_end().map(<[u8]>::to_vec), value, goto }
}

fn lower(tx: Transaction, family: Family, table: &str, op: Op) -> Result<Transaction, NftError> {
    Ok(match op {
        Op::Table => tx.raw(RawMessage::new(NEWTABLE, family).flags(CREATE).attrs(string_attr(1, table))),
        Op::DeleteTable => tx.del_table(table, family),
        Op::Chain(chain) => tx.update_chain(wire_chain(family, table, &chain)?),
        Op::FlushChain(chain) => tx.flush_chain(table, &chain, family),
        Op::DeleteChain(chain) => tx.del_chain(table, &chain, family),
        Op::Rule { chain, comment, exprs } => {
            let mut wire = Vec::new();
            for expr in exprs {
                lower_expr(expr, &mut wire)?;
            }
            let mut rule = Rule::new(table, &chain).family(family).expressions(wire);
            if let Some(comment) = comment {
                rule = rule.comment(&comment);
            }
            tx.add_rule(rule)
        }
        Op::Set(set) => tx.add_set(wire_set(family, table, &set)),
        Op::DeleteSet(set) => tx.del_set(table, &set, family),
        Op::Add { set, elements } => {
            chunks(tx, &set, elements, |tx, e| tx.add_set_elements(&wire_set(family, table, &set), e))?
        }
        Op::Delete { set, elements } => {
            chunks(tx, &set, elements, |tx, e| tx.del_set_elements(&wire_set(family, table, &set), e))?
        }
        Op::Destroy { set, elements } => {
            let wire = wire_set(family, table, &set);
            let knows_destroy = rustix::system::uname().release().to_str().is_ok_and(knows_destroy);
            chunks(tx, &set, elements, |tx, elements| match knows_destroy {
                true => tx.destroy_set_elements(&wire, elements),
                // what is there for sure can be deleted
                false => tx.add_set_elements(&wire, elements).del_set_elements(&wire, elements),
            })?
        }
    })
}

/// Whether a kernel of this release has `NFT_MSG_DESTROYSETELEM`: it came with Linux 6.3.
fn knows_destroy(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 3)
}

fn chunks(
    mut tx: Transaction,
    set: &Set,
    elements: Vec<Element>,
    apply: impl Fn(Transaction, &[SetElement]) -> Transaction,
) -> Result<Transaction, NftError> {
    let mut elements = elements.into_iter().map(|e| wire_element(set, e));
    loop {
        let chunk = elements.by_ref().take(CHUNK).collect::<Result<Vec<_>, _>>()?;
        if chunk.is_empty() {
            return Ok(tx);
        }
        tx = apply(tx, &chunk);
    }
}

fn wire_element(set: &Set, element: Element) -> Result<SetElement, NftError> {
    let wire = match element.last {
        Some(last) => SetElement::range(element.key, last),
        None if set.intervals => SetElement::range(element.key.clone(), element.key),
        None => SetElement::new(element.key),
    };
    Ok(match (&set.data, element.value, element.goto) {
        (Some(Data::Value(_)), Some(value), _) => wire.value(SetElement::new(value)),
        (Some(Data::Verdict), _, Some(chain)) => wire.verdict(Verdict::GotoTo(chain_name(&chain)?)),
        _ => wire,
    })
}

fn chain_name(name: &str) -> Result<nlink::netlink::nftables::types::ChainName, NftError> {
    nlink::netlink::nftables::types::ChainName::new(name)
        .map_err(|_| NftError::Invalid(format!("chain name {name:?}")))
}

fn wire_chain(family: Family, table: &str, chain: &Chain) -> Result<WireChain, NftError> {
    let wire = WireChain::new(table, chain.name.as_str())
        .map_err(|_| NftError::Invalid(format!("chain name {:?}", chain.name)))?
        .family(family);
    Ok(match chain.hook {
        None => wire,
        Some((hook, priority)) => {
            let priority = Priority::from_i32(priority);
            wire.base(match hook {
                Hook::NatPrerouting => BaseChain::nat(NatHook::Prerouting, priority),
                Hook::NatOutput => BaseChain::nat(NatHook::Output, priority),
                Hook::NatPostrouting => BaseChain::nat(NatHook::Postrouting, priority),
                Hook::FilterPrerouting => BaseChain::filter(FilterHook::Prerouting, priority),
                Hook::FilterOutput => BaseChain::filter(FilterHook::Output, priority),
                Hook::FilterForward => BaseChain::filter(FilterHook::Forward, priority),
                Hook::FilterInput => BaseChain::filter(FilterHook::Input, priority),
                Hook::RouteOutput => BaseChain::route(priority),
            })
        }
    })
}

fn wire_type(ty: &Type) -> SetKeyType {
    match ty {
        Type::Ipv4 => SetKeyType::Ipv4Addr,
        Type::Ipv6 => SetKeyType::Ipv6Addr,
        Type::Protocol => SetKeyType::InetProto,
        Type::Port => SetKeyType::InetService,
        Type::Mark => SetKeyType::Mark,
        Type::Link => SetKeyType::IfIndex,
        Type::Ether => SetKeyType::EtherAddr,
        Type::Concat(parts) => SetKeyType::Concat(parts.iter().map(wire_type).collect()),
    }
}

fn wire_set(family: Family, table: &str, set: &Set) -> WireSet {
    let mut wire = WireSet::new(table, &set.name).family(family).key_type(wire_type(&set.key));
    match &set.data {
        None => {}
        Some(Data::Value(ty)) => wire = wire.map(SetDataType::Value(wire_type(ty))),
        Some(Data::Verdict) => wire = wire.vmap(),
    }
    if set.intervals {
        wire = wire.interval();
    }
    if let Some(size) = set.dynamic {
        wire = wire.dynamic().per_element_timeouts().size(size);
    }
    wire
}

fn reg(word: Reg) -> Result<Register, NftError> {
    Register::word(usize::from(word)).ok_or_else(|| NftError::Invalid(format!("register {word}")))
}

/// Steps that only test something use this register, the last one; keys never reach so far.
const SCRATCH: Reg = 12;

fn lower_expr(expr: Expr, out: &mut Vec<WireExpr>) -> Result<(), NftError> {
    let scratch = reg(SCRATCH)?;
    match expr {
        Expr::Family { v6 } => family(v6, scratch, out),
        Expr::LoadSource { v6, to } => {
            let (offset, len) = if v6 { (8, 16) } else { (12, 4) };
            out.push(WireExpr::Payload { dreg: reg(to)?, base: PayloadBase::Network, offset, len });
        }
        Expr::LoadDestination { v6, to } => {
            let (offset, len) = if v6 { (24, 16) } else { (16, 4) };
            out.push(WireExpr::Payload { dreg: reg(to)?, base: PayloadBase::Network, offset, len });
        }
        Expr::LoadProtocol { to } => out.push(WireExpr::Meta { dreg: reg(to)?, key: MetaKey::L4Proto }),
        Expr::LoadPort { to } => {
            out.push(WireExpr::Payload { dreg: reg(to)?, base: PayloadBase::Transport, offset: 2, len: 2 });
        }
        Expr::LoadHeader { header, offset, len, to } => {
            let base = match header {
                Header::Link => PayloadBase::LinkLayer,
                Header::Network => PayloadBase::Network,
                Header::Transport => PayloadBase::Transport,
            };
            out.push(WireExpr::Payload { dreg: reg(to)?, base, offset, len });
        }
        Expr::LoadInputLink { to } => out.push(WireExpr::Meta { dreg: reg(to)?, key: MetaKey::Iif }),
        Expr::Equals { at, bytes } => out.push(equal(reg(at)?, bytes, true)),
        Expr::EtherType(number) => {
            out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::Protocol });
            out.push(equal(scratch, number.to_be_bytes().to_vec(), true));
        }
        Expr::Icmpv6(kind) => {
            icmpv6(scratch, out);
            out.push(equal(scratch, vec![kind], true));
        }
        Expr::Load { to, bytes } => out.push(WireExpr::Immediate { dreg: reg(to)?, data: bytes }),
        Expr::LoadRandom { to, modulus, offset } => {
            out.push(WireExpr::Numgen { dreg: reg(to)?, kind: NumgenKind::Random, modulus, offset })
        }
        Expr::DestinationIsLocal => {
            out.push(WireExpr::Fib { dreg: scratch, result: FibResult::AddrType, flags: FibFlags::DADDR });
            out.push(equal(scratch, RTN_LOCAL.to_ne_bytes().to_vec(), true));
        }
        Expr::Source { net, inside } => {
            network(net, inside, if net.is_ipv6() { 8 } else { 12 }, scratch, out)
        }
        Expr::Destination { net, inside } => {
            network(net, inside, if net.is_ipv6() { 24 } else { 16 }, scratch, out);
        }
        Expr::OutputLink { name, is } => {
            let mut data = name.into_bytes();
            if data.len() > 15 {
                return Err(NftError::Invalid("link name".into()));
            }
            data.resize(16, 0);
            out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::OifName });
            out.push(equal(scratch, data, is));
        }
        Expr::New => {
            out.push(WireExpr::Ct { dreg: scratch, key: CtKey::State });
            any_of(CT_STATE_NEW, scratch, out);
        }
        Expr::Answer => {
            out.push(WireExpr::Ct { dreg: scratch, key: CtKey::State });
            any_of(CT_STATE_ESTABLISHED, scratch, out);
            out.push(WireExpr::Ct { dreg: scratch, key: CtKey::Direction });
            out.push(equal(scratch, vec![IP_CT_DIR_REPLY], true));
        }
        Expr::Related => {
            out.push(WireExpr::Ct { dreg: scratch, key: CtKey::State });
            any_of(CT_STATE_RELATED, scratch, out);
        }
        Expr::Protocol(number) => {
            out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::L4Proto });
            out.push(equal(scratch, vec![number], true));
        }
        Expr::Ports { first, last } => {
            out.push(WireExpr::Payload { dreg: scratch, base: PayloadBase::Transport, offset: 2, len: 2 });
            range(scratch, first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec(), out);
        }
        Expr::NeighborDiscovery => {
            icmpv6(scratch, out);
            range(scratch, vec![ND_FIRST], vec![ND_LAST], out);
        }
        Expr::Count => out.push(WireExpr::Counter),
        Expr::WasTranslated => {
            out.push(WireExpr::Ct { dreg: scratch, key: CtKey::Status });
            any_of(CtStatus::DST_NAT.bits(), scratch, out);
        }
        Expr::In { set, key } => out.push(LookupExpr::new(set, reg(key)?).into()),
        Expr::Lookup { map, key, to } => out.push(LookupExpr::new(map, reg(key)?).dreg(reg(to)?).into()),
        Expr::LookupVerdict { map, key } => {
            out.push(LookupExpr::new(map, reg(key)?).dreg(Register::Verdict).into());
        }
        Expr::Remember { map, key, value, timeout } => out.push(
            DynsetExpr::new(DynsetOp::Update, map, reg(key)?).sreg_data(reg(value)?).timeout(timeout).into(),
        ),
        Expr::MarkSet(bits) => mark(!bits, bits, scratch, out),
        Expr::MarkClear(bits) => mark(!bits, 0, scratch, out),
        Expr::MarkHas(bits) => {
            out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::Mark });
            out.push(masked(scratch, bits, 0));
            out.push(equal(scratch, bits.to_ne_bytes().to_vec(), true));
        }
        Expr::Dnat { v6, addr, port } => {
            let family = if v6 { Family::Ip6 } else { Family::Ip } as u32;
            let attrs = [(1, 1), (2, family), (3, reg(addr)?.wire()), (5, reg(port)?.wire())];
            out.push(
                RawExpr::new("nat", attrs.iter().flat_map(|(ty, v)| u32_attr(*ty, *v)).collect()).into(),
            );
        }
        Expr::Masquerade => {
            out.push(RawExpr::new("masq", u32_attr(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY)).into());
        }
        Expr::Reject => {
            let (reject_type, icmp_code) = ICMPX_PORT_UNREACH;
            out.push(WireExpr::Reject { reject_type, icmp_code });
        }
        Expr::Drop => out.push(WireExpr::Verdict(Verdict::Drop)),
        Expr::Accept => out.push(WireExpr::Verdict(Verdict::Accept)),
        Expr::Goto(chain) => out.push(WireExpr::Verdict(Verdict::GotoTo(chain_name(&chain)?))),
        Expr::Return => out.push(WireExpr::Verdict(Verdict::Return)),
        Expr::Jump(chain) => out.push(WireExpr::Verdict(Verdict::JumpTo(chain_name(&chain)?))),
    }
    Ok(())
}

/// The packet is ICMPv6; its type is loaded.
fn icmpv6(scratch: Register, out: &mut Vec<WireExpr>) {
    out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::L4Proto });
    out.push(equal(scratch, vec![libc::IPPROTO_ICMPV6 as u8], true));
    out.push(WireExpr::Payload { dreg: scratch, base: PayloadBase::Transport, offset: 0, len: 1 });
}

fn range(sreg: Register, first: Vec<u8>, last: Vec<u8>, out: &mut Vec<WireExpr>) {
    if first == last {
        out.push(equal(sreg, first, true));
    } else {
        out.push(WireExpr::Cmp { sreg, op: CmpOp::Gte, data: first });
        out.push(WireExpr::Cmp { sreg, op: CmpOp::Lte, data: last });
    }
}

fn equal(sreg: Register, data: Vec<u8>, is: bool) -> WireExpr {
    WireExpr::Cmp { sreg, op: if is { CmpOp::Eq } else { CmpOp::Neq }, data }
}

fn family(v6: bool, scratch: Register, out: &mut Vec<WireExpr>) {
    let nfproto = if v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 } as u8;
    out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::NfProto });
    out.push(equal(scratch, vec![nfproto], true));
}

fn network(net: Cidr, inside: bool, offset: u32, scratch: Register, out: &mut Vec<WireExpr>) {
    family(net.is_ipv6(), scratch, out);
    let (base, len) = match net.base() {
        std::net::IpAddr::V4(a) => (a.octets().to_vec(), 4),
        std::net::IpAddr::V6(a) => (a.octets().to_vec(), 16),
    };
    let bits = usize::from(net.prefix_len());
    let mask = (0..len as usize).map(|i| !(0xffu16 >> bits.saturating_sub(i * 8).min(8)) as u8).collect();
    out.push(WireExpr::Payload { dreg: scratch, base: PayloadBase::Network, offset, len });
    out.push(WireExpr::Bitwise { sreg: scratch, dreg: scratch, len, mask, xor: vec![0; len as usize] });
    out.push(equal(scratch, base, inside));
}

fn masked(register: Register, mask: u32, xor: u32) -> WireExpr {
    let (mask, xor) = (mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
    WireExpr::Bitwise { sreg: register, dreg: register, len: 4, mask, xor }
}

fn any_of(bits: u32, scratch: Register, out: &mut Vec<WireExpr>) {
    out.push(masked(scratch, bits, 0));
    out.push(equal(scratch, vec![0; 4], false));
}

fn mark(mask: u32, xor: u32, scratch: Register, out: &mut Vec<WireExpr>) {
    out.push(WireExpr::Meta { dreg: scratch, key: MetaKey::Mark });
    out.push(masked(scratch, mask, xor));
    out.push(WireExpr::MetaSet { key: MetaKey::Mark, sreg: scratch });
}

fn u32_attr(ty: u16, value: u32) -> Vec<u8> {
    let mut attr = Vec::with_capacity(8);
    attr.extend_from_slice(&8u16.to_ne_bytes());
    attr.extend_from_slice(&ty.to_ne_bytes());
    attr.extend_from_slice(&value.to_be_bytes());
    attr
}

fn string_attr(ty: u16, value: &str) -> Vec<u8> {
    let len = u16::try_from(4 + value.len() + 1).unwrap_or(u16::MAX);
    let mut attr = Vec::new();
    attr.extend_from_slice(&len.to_ne_bytes());
    attr.extend_from_slice(&ty.to_ne_bytes());
    attr.extend_from_slice(value.as_bytes());
    attr.push(0);
    attr.resize(attr.len().next_multiple_of(4), 0);
    attr
}
