//! Answers of upstream resolvers, kept for as long as they say (RFC 2308 for "no such name").
//!
//! Keys and values are messages as they were on the wire: an answer that is given again differs in its id, in the spelling
//! of its question and in its times to live, whose places were noted when it came. So records of types that we do not
//! know are kept as well, and memory is bounded by bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bytes of questions and answers that are kept, in two generations of equal size.
const MAX_BYTES: usize = 16 << 20;
/// What an entry costs beside its bytes.
const ENTRY: usize = 256;
/// Answers, and denials, are kept no longer than this, whatever they say.
const MAX_TTL: u32 = 3600;
const MAX_DENIAL: u32 = 30;
const HEADER: usize = 12;
const OPT: u16 = 41;
const SOA: u16 = 6;

/// A question but for its id and the spelling of its name; what else it says decides the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The key of a whole message with one question; `None` for what must not be kept.
    pub fn of(question: &[u8], tcp: bool) -> Option<Self> {
        let end = Wire(question).name(HEADER)?;
        // id and name are all that may differ
        let mut key = question.to_vec();
        key.get_mut(..2)?.fill(0);
        key.get_mut(HEADER..end)?.make_ascii_lowercase();
        key.push(u8::from(tcp));
        Some(Self(key.into()))
    }
}

/// An answer and where its times to live are.
#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    places: Vec<usize>,
    stored: Instant,
    expires: Instant,
}

#[derive(Debug, Default)]
struct Generation {
    entries: HashMap<Key, Arc<Entry>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Generations {
    young: Generation,
    old: Generation,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Generations>);

impl Cache {
    /// The answer to `question`, whose key this is.
    pub fn get(&self, key: &Key, question: &[u8], now: Instant) -> Option<Vec<u8>> {
        let entry = {
            let mut all = self.0.lock();
            match all.young.entries.get(key) {
                Some(entry) => entry.clone(),
                None => {
                    let entry = all.old.entries.remove(key)?;
                    if entry.expires > now {
                        // who is asked for again stays
                        all.keep(key.clone(), entry.clone());
                    }
                    entry
                }
            }
        };
        if entry.expires <= now {
            return None;
        }
        let mut answer = entry.answer.clone();
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        for place in &entry.places {
            let ttl = answer.get_mut(*place..place + 4)?;
            let left = u32::from_be_bytes(ttl.try_into().ok()?).saturating_sub(age);
            ttl.copy_from_slice(&left.to_be_bytes());
        }
        address(&mut answer, question);
        Some(answer)
    }

    /// Keeps an answer, if it may be kept.
    pub fn put(&self, key: Key, answer: &[u8], now: Instant) {
        let Some((ttl, places)) = lifetime(answer) else { return };
        let expires = now + Duration::from_secs(u64::from(ttl));
        let entry = Arc::new(Entry { answer: answer.to_vec(), places, stored: now, expires });
        self.0.lock().keep(key, entry);
    }

    /// Forgets everything: other resolvers may answer differently.
    pub fn clear(&self) {
        *self.0.lock() = Generations::default();
    }
}

impl Generations {
    fn keep(&mut self, key: Key, entry: Arc<Entry>) {
        let cost = key.0.len() + entry.answer.len() + ENTRY;
        if self.young.bytes + cost > MAX_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        match self.young.entries.insert(key.clone(), entry) {
            Some(before) => {
                self.young.bytes -= key.0.len() + before.answer.len() + ENTRY;
                self.young.bytes += cost;
            }
            None => self.young.bytes += cost,
        }
    }
}

/// Makes `answer` the answer to `question`: its id, and its name as it was spelled there.
pub fn address(answer: &mut [u8], question: &[u8]) {
    let spelled = Wire(question).name(HEADER).and_then(|end| question.get(HEADER..end));
    let name = Wire(answer).name(HEADER).and_then(|end| answer.get_mut(HEADER..end));
    if let (Some(spelled), Some(name)) = (spelled, name)
        && name.eq_ignore_ascii_case(spelled)
    {
        name.copy_from_slice(spelled);
    }
    if let (Some(id), Some(asked)) = (answer.get_mut(..2), question.get(..2)) {
        id.copy_from_slice(asked);
    }
}

/// How long an answer may be kept, and where its times to live are. `None`: not at all.
fn lifetime(answer: &[u8]) -> Option<(u32, Vec<usize>)> {
    let wire = Wire(answer);
    let flags = wire.u16(2)?;
    let (truncated, code) = (flags & 0x0200 != 0, flags & 0x000f);
    if truncated || !matches!(code, 0 | 3) || wire.u16(4)? != 1 {
        return None;
    }
    let [answers, authorities, additionals] = [6, 8, 10].map(|at| wire.u16(at).unwrap_or(0));
    let mut at = wire.name(HEADER)? + 4;
    let (mut least, mut denial, mut places) = (MAX_TTL, None, Vec::new());
    for section in [answers, authorities, additionals] {
        for _ in 0..section {
            let head = wire.name(at)?;
            let (kind, ttl, length) =
                (wire.u16(head)?, wire.u32(head + 4)?, usize::from(wire.u16(head + 8)?));
            let end = head + 10 + length;
            answer.get(..end)?;
            at = end;
            if kind == OPT {
                // its extended code makes another code of this one
                if ttl >> 24 != 0 {
                    return None;
                }
                continue;
            }
            // RFC 2181, 8: a number with the highest bit is none
            least = least.min(if ttl >> 31 == 0 { ttl } else { 0 });
            places.push(head + 4);
            if kind == SOA {
                denial = Some(ttl.min(wire.u32(end.checked_sub(4)?)?));
            }
        }
    }
    let ttl = if answers == 0 || code == 3 { least.min(denial?).min(MAX_DENIAL) } else { least };
    (ttl > 0).then_some((ttl, places))
}

/// Reads numbers and passes over names; never beyond the end.
struct Wire<'a>(&'a [u8]);

impl Wire<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    /// Behind the name that begins at `at`.
    fn name(&self, mut at: usize) -> Option<usize> {
        loop {
            match *self.0.get(at)? {
                0 => return Some(at + 1),
                length @ 1..=63 => at += 1 + usize::from(length),
                // a pointer ends a name
                0xc0.. => return Some(at + 2),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use rand::{RngExt, SeedableRng};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(text: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(name(text), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(question: &[u8], ttl: Option<u32>) -> Message {
        let asked = Message::from_vec(question).unwrap();
        let mut message = Message::response(asked.metadata.id, OpCode::Query);
        message.queries = asked.queries.clone();
        let owner = asked.queries[0].name().clone();
        if let Some(ttl) = ttl {
            message.add_answer(Record::from_rdata(owner, ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        message
    }

    fn kept(message: &Message) -> Option<u32> {
        lifetime(&message.to_vec().unwrap()).map(|found| found.0)
    }

    #[test]
    fn an_answer_comes_back_with_the_askers_id_and_spelling_and_less_time() {
        let (cache, now) = (Cache::default(), Instant::now());
        let (first, again) = (question("example.com."), question("EXAMPLE.com."));
        let key = Key::of(&first, false).unwrap();
        assert_eq!(Key::of(&again, false).as_ref(), Some(&key));
        assert_ne!(Key::of(&again, true).as_ref(), Some(&key), "over TCP it may be larger");
        cache.put(key.clone(), &answer(&first, Some(60)).to_vec().unwrap(), now);
        let later = now + Duration::from_secs(25);
        let found = Message::from_vec(&cache.get(&key, &again, later).unwrap()).unwrap();
        assert_eq!(found.metadata.id, Message::from_vec(&again).unwrap().metadata.id);
        assert_eq!(found.queries[0].name().to_ascii(), "EXAMPLE.com.");
        assert_eq!(found.answers[0].ttl, 35);
        assert_eq!(cache.get(&key, &again, now + Duration::from_secs(60)), None);
        cache.clear();
        assert_eq!(cache.get(&key, &again, now), None);
    }

    #[test]
    fn denials_are_kept_by_their_zones_head_and_failures_not_at_all() {
        let asked = question("nowhere.example.com.");
        let soa = |minimum| {
            let data = SOA::new(name("ns.example.com."), name("h.example.com."), 1, 2, 3, 4, minimum);
            Record::from_rdata(name("example.com."), 20, RData::SOA(data))
        };
        let mut denial = answer(&asked, None);
        denial.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(kept(&denial), None, "without a head");
        denial.authorities = vec![soa(7)];
        assert_eq!(kept(&denial), Some(7));
        denial.authorities = vec![soa(9999)];
        assert_eq!(kept(&denial), Some(20));
        assert_eq!(kept(&answer(&asked, Some(0))), None);
        assert_eq!(kept(&answer(&asked, Some(1 << 31))), None);
        assert_eq!(kept(&answer(&asked, Some(1_000_000))), Some(MAX_TTL));
        for code in [ResponseCode::ServFail, ResponseCode::Refused] {
            let mut failure = answer(&asked, Some(60));
            failure.metadata.response_code = code;
            assert_eq!(kept(&failure), None, "{code}");
        }
        let mut cut = answer(&asked, Some(60));
        cut.metadata.truncation = true;
        assert_eq!(kept(&cut), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let (cache, now) = (Cache::default(), Instant::now());
        let popular = question("popular.example.com.");
        let key = Key::of(&popular, false).unwrap();
        cache.put(key.clone(), &answer(&popular, Some(600)).to_vec().unwrap(), now);
        for n in 0..60_000 {
            let asked = question(&format!("n{n}.example.com."));
            let found = answer(&asked, Some(600)).to_vec().unwrap();
            cache.put(Key::of(&asked, false).unwrap(), &found, now);
            if n % 1000 == 0 {
                assert!(cache.get(&key, &popular, now).is_some(), "{n}");
            }
        }
        let all = cache.0.lock();
        assert!(all.young.bytes <= MAX_BYTES / 2 && all.old.bytes <= MAX_BYTES / 2);
        assert!(all.young.entries.len() + all.old.entries.len() < 60_000);
    }

    /// Seeded: a failure can be repeated.
    #[test]
    fn hostile_messages_are_passed_over() {
        let mut random = rand::rngs::StdRng::seed_from_u64(6);
        let asked = question("example.com.");
        let whole = answer(&asked, Some(60)).to_vec().unwrap();
        for _ in 0..100_000 {
            let mut message = if random.random() { whole.clone() } else { asked.clone() };
            for _ in 0..random.random_range(0..8) {
                let at = random.random_range(0..message.len());
                message[at] = random.random();
            }
            message.truncate(random.random_range(0..=message.len()));
            let found = lifetime(&message);
            if let Some((_, places)) = found {
                assert!(places.iter().all(|place| place + 4 <= message.len()));
            }
            if let Some(key) = Key::of(&message, false) {
                let cache = Cache::default();
                cache.put(key.clone(), &message, Instant::now());
                cache.get(&key, &asked, Instant::now());
            }
            address(&mut message, &asked);
        }
    }
}
