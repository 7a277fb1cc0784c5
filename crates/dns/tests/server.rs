//! Questions over real sockets, with an upstream resolver of our own making.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dns::records::entry;
use dns::{Config, Server};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::op::{OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

/// For what comes at once on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    at: SocketAddr,
    stop: CancellationToken,
    index: Arc<parking_lot::RwLock<dns::records::Index>>,
    forwarder: Arc<dns::forward::Forwarder>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self::with(|config| config.upstreams = Some(upstreams)).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(vec!["127.0.0.1:0".parse().unwrap()]);
        config.reverse = vec![("10.96.0.0".parse().unwrap(), 16), ("fd00:96::".parse().unwrap(), 112)];
        change(&mut config);
        let server = Server::bind(&config).await.unwrap();
        let (at, index, stop) = (server.addresses()[0], server.index(), CancellationToken::new());
        let forwarder = server.forwarder();
        tokio::spawn(server.serve(stop.clone()));
        Self { at, stop, index, forwarder }
    }

    fn synced(self) -> Self {
        self.index.write().set_synced();
        self
    }

    fn put(&self, name: &str, spec: Value, endpoints: usize) {
        let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let endpoints: Vec<Value> = (0..endpoints)
            .map(|n| json!({"addresses": [format!("10.244.{}.{}", n / 250, n % 250)]}))
            .collect();
        let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints});
        let slices = [Arc::new(serde_json::from_value(slice).unwrap())];
        self.index.write().update(&("default".to_owned(), name.to_owned()), entry(&service, &slices));
    }

    async fn udp(&self, question: &Message) -> (Message, usize) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question.to_vec().unwrap(), self.at).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let (len, _) = socket.recv_from(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        (answer, len)
    }

    async fn tcp(&self, questions: &[Message]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        for question in questions {
            let raw = question.to_vec().unwrap();
            stream.write_u16(raw.len() as u16).await.unwrap();
            stream.write_all(&raw).await.unwrap();
        }
        let mut answers = Vec::new();
        for _ in questions {
            let mut raw = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut raw).await.unwrap();
            answers.push(Message::from_vec(&raw).unwrap());
        }
        answers
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_edns(payload: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns
}

fn text(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect()
}

/// A resolver that knows `example.com.` and says no to everything else; over UDP it answers other people first.
async fn upstream() -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(at).await.unwrap();
    let answer = |raw: &[u8]| {
        let asked = Message::from_vec(raw).unwrap();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.queries = asked.queries.clone();
        let name = asked.queries[0].name().clone();
        if name.to_ascii().eq_ignore_ascii_case("example.com.") {
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer).await {
            let right = answer(&buffer[..len]);
            let mut forged = right.clone();
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            for message in [forged, right] {
                let _ = udp.send_to(&message.to_vec().unwrap(), peer).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut raw = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut raw).await.unwrap();
            let raw = answer(&raw).to_vec().unwrap();
            stream.write_u16(raw.len() as u16).await.unwrap();
            stream.write_all(&raw).await.unwrap();
        }
    });
    at
}

#[tokio::test]
async fn cluster_names_are_answered_in_the_askers_spelling() {
    let world = World::new(Vec::new()).await.synced();
    world.put("web", json!({"clusterIPs": ["10.96.0.1"]}), 0);
    let (answer, _) = world.udp(&question("WEB.default.svc.Cluster.local.", RecordType::A)).await;
    assert_eq!(text(&answer), ["WEB.default.svc.Cluster.local. 10.96.0.1"]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].ttl, 5);
}

#[tokio::test]
async fn no_name_and_no_data_differ_and_carry_the_zones_head() {
    let world = World::new(Vec::new()).await.synced();
    world.put("web", json!({"clusterIPs": ["10.96.0.1"]}), 0);
    let ask = async |name: &str, kind| world.udp(&question(name, kind)).await.0;
    let no_data = ask("web.default.svc.cluster.local.", RecordType::AAAA).await;
    let no_name = ask("www.example.com.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
    assert_eq!(no_name.metadata.response_code, ResponseCode::NXDomain);
    for answer in [no_data, no_name] {
        assert!(answer.answers.is_empty());
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(answer.authorities[0].name.to_ascii(), "cluster.local.");
    }
}

#[tokio::test]
async fn nothing_is_denied_before_the_caches_are_full() {
    let world = World::new(Vec::new()).await;
    let ask = question("web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(world.udp(&ask).await.0.metadata.response_code, ResponseCode::ServFail);
    let world = world.synced();
    assert_eq!(world.udp(&ask).await.0.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn large_answers_are_cut_for_udp_and_whole_over_tcp() {
    let world = World::new(Vec::new()).await.synced();
    world.put("many", json!({"clusterIP": "None"}), 200);
    let mut ask = question("many.default.svc.cluster.local.", RecordType::A);
    let (plain, len) = world.udp(&ask).await;
    assert!(plain.metadata.truncation && len <= 512, "{len}");
    ask.set_edns(ask_edns(4096));
    let (extended, len) = world.udp(&ask).await;
    assert!(extended.metadata.truncation && len > 512 && len <= 1232, "{len}");
    assert!(extended.edns.is_some());
    for count in 70..90 {
        world.put("some", json!({"clusterIP": "None"}), count);
        let mut ask = question("some.default.svc.cluster.local.", RecordType::A);
        ask.set_edns(ask_edns(1232));
        let (answer, len) = world.udp(&ask).await;
        assert!(len <= 1232 && answer.edns.is_some(), "{count} records");
        assert_eq!(answer.metadata.truncation, answer.answers.len() < count);
    }
    for answer in world.tcp(&[ask.clone(), ask]).await {
        assert!(!answer.metadata.truncation);
        assert_eq!(answer.answers.len(), 200);
    }
}

#[tokio::test]
async fn other_names_are_asked_upstream_past_a_dead_resolver() {
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let world = World::new(vec![dead, upstream().await]).await;
    let ask = question("example.com.", RecordType::A);
    assert_eq!(text(&world.udp(&ask).await.0), ["example.com. 192.0.2.1"]);
    assert_eq!(text(&world.tcp(&[ask]).await[0]), ["example.com. 192.0.2.1"]);
    let (answer, _) = world.udp(&question("nowhere.test.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn without_an_upstream_other_names_fail() {
    let world = World::new(Vec::new()).await.synced();
    let (answer, _) = world.udp(&question("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_external_name_is_followed_to_its_address() {
    let world = World::new(vec![upstream().await]).await.synced();
    world.put("away", json!({"type": "ExternalName", "externalName": "example.com"}), 0);
    world.put("web", json!({"clusterIPs": ["10.96.0.1"]}), 0);
    let inside = "web.default.svc.cluster.local";
    world.put("near", json!({"type": "ExternalName", "externalName": inside}), 0);
    world.put("loop", json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}), 0);
    let ask = async |name: &str| {
        world.udp(&question(&format!("{name}.default.svc.cluster.local."), RecordType::A)).await.0
    };
    assert_eq!(
        text(&ask("away").await),
        ["away.default.svc.cluster.local. example.com.", "example.com. 192.0.2.1"]
    );
    assert_eq!(
        text(&ask("near").await),
        [
            "near.default.svc.cluster.local. web.default.svc.cluster.local.",
            "web.default.svc.cluster.local. 10.96.0.1"
        ]
    );
    assert_eq!(ask("loop").await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn malformed_and_unwanted_questions_are_refused_not_forwarded() {
    let world = World::new(vec![upstream().await]).await.synced();
    let code = async |message: &Message| world.udp(message).await.0.metadata.response_code;
    assert_eq!(code(&question("cluster.local.", RecordType::AXFR)).await, ResponseCode::Refused);
    let mut none = question("example.com.", RecordType::A);
    none.queries.clear();
    assert_eq!(code(&none).await, ResponseCode::FormErr);
    let mut newer = question("example.com.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    // 16 is BADVERS here and BADSIG elsewhere
    assert_eq!(u16::from(code(&newer).await), 16);
    // half a question
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let raw = question("example.com.", RecordType::A).to_vec().unwrap();
    socket.send_to(&raw[..raw.len() - 5], world.at).await.unwrap();
    let mut buffer = [0; 512];
    let (len, _) = socket.recv_from(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..len]).unwrap().metadata.response_code, ResponseCode::FormErr);
}

#[tokio::test]
async fn many_questions_in_a_row() {
    let world = World::new(Vec::new()).await.synced();
    for n in 0..1000 {
        world.put(&format!("s{n}"), json!({"clusterIPs": [format!("10.96.{}.{}", n / 250, n % 250)]}), 0);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.at).await.unwrap();
    let mut buffer = [0; 512];
    let started = Instant::now();
    for n in 0..2000 {
        let raw =
            question(&format!("s{}.default.svc.cluster.local.", n % 1000), RecordType::A).to_vec().unwrap();
        socket.send(&raw).await.unwrap();
        assert!(socket.recv(&mut buffer).await.unwrap() > 12);
    }
    println!(
        "2000 questions one after another, 1000 services, same thread as the asker: {:?} each",
        started.elapsed() / 2000
    );
}

/// An upstream resolver that answers every question by `answer`, over UDP, and counts them.
async fn resolver(
    at: &str,
    answer: impl Fn(&Message) -> Option<Message> + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind(at).await.unwrap();
    let (at, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            if let Some(answer) = answer(&Message::from_vec(&buffer[..len]).unwrap()) {
                let _ = socket.send_to(&answer.to_vec().unwrap(), peer).await;
            }
        }
    });
    (at, asked)
}

/// The address 192.0.2.`last` for everything.
fn always(last: u8) -> impl Fn(&Message) -> Option<Message> + Send + 'static {
    move |asked| {
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.queries = asked.queries.clone();
        let name = asked.queries[0].name().clone();
        answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, last))));
        Some(answer)
    }
}

fn code(code: ResponseCode) -> impl Fn(&Message) -> Option<Message> + Send + 'static {
    move |asked| {
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.queries = asked.queries.clone();
        answer.metadata.response_code = code;
        Some(answer)
    }
}

#[tokio::test]
async fn an_answer_is_asked_for_once_and_many_who_ask_at_once_are_one_question() {
    let (at, asked) = resolver("127.0.0.1:0", always(1)).await;
    let world = World::new(vec![at]).await.synced();
    let first = question("example.com.", RecordType::A);
    let all = futures(16, || world.udp(&first)).await;
    assert!(all.iter().all(|(answer, _)| text(answer) == ["example.com. 192.0.2.1"]));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let (again, _) = world.udp(&question("Example.com.", RecordType::A)).await;
    assert_eq!((again.queries[0].name().to_ascii().as_str(), again.answers.len()), ("Example.com.", 1));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    world.udp(&question("example.com.", RecordType::AAAA)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// The outcomes of `count` futures that run together.
async fn futures<T, F: Future<Output = T>>(count: usize, make: impl Fn() -> F) -> Vec<T> {
    let mut all: Vec<_> = (0..count).map(|_| Box::pin(make())).collect();
    let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in all.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn another_upstream_is_asked_where_the_first_is_silent_or_refuses() {
    let (silent, unanswered) = resolver("127.0.0.1:0", |_| None).await;
    let (refusing, refused) = resolver("127.0.0.1:0", code(ResponseCode::Refused)).await;
    let (good, _) = resolver("127.0.0.1:0", always(1)).await;
    let world = World::new(vec![silent, refusing, good]).await.synced();
    let ask = async |name: &str| world.udp(&question(name, RecordType::A)).await.0;
    assert_eq!(ask("a.example.").await.answers.len(), 1);
    // and it is the first one asked from then on
    let before = unanswered.load(Ordering::SeqCst);
    assert_eq!(ask("b.example.").await.answers.len(), 1);
    assert_eq!((unanswered.load(Ordering::SeqCst), refused.load(Ordering::SeqCst)), (before, 1));
    // where all refuse, that is the answer
    let world = World::new(vec![refusing]).await.synced();
    let (answer, _) = world.udp(&question("a.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn a_question_that_comes_back_to_us_ends() {
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(vec![relay.local_addr().unwrap()]).await.synced();
    let (at, asked) = (world.at, Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((len, _)) = relay.recv_from(&mut buffer).await {
            let id = count.fetch_add(1, Ordering::SeqCst) as u16;
            buffer[..2].copy_from_slice(&id.to_be_bytes());
            // as a resolver that has us as its own
            let _ = relay.send_to(&buffer[..len], at).await;
        }
    });
    let (answer, _) = world.udp(&question("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(asked.load(Ordering::SeqCst) <= 6, "{asked:?}");
}

#[tokio::test]
async fn resolv_conf_is_followed() {
    let process = std::process::id().to_be_bytes();
    // nobody else's: the port of a line in resolv.conf is always 53
    let own = |last: u8| format!("127.{}.{}.{last}", process[2] | 0x80, process[3]);
    let (first, second) = (own(1), own(2));
    resolver(&format!("{first}:53"), always(1)).await;
    resolver(&format!("{second}:53"), always(2)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    let write = |text: String| {
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
    };
    write(format!("search example.com\nnameserver {first}\n"));
    let world = World::with(|config| config.resolv_conf.clone_from(&file)).await.synced();
    assert_eq!(text(&world.udp(&question("a.example.", RecordType::A)).await.0), ["a.example. 192.0.2.1"]);
    write(format!("nameserver {second}\n"));
    let started = Instant::now();
    for n in 0.. {
        let name = format!("n{n}.example.");
        let (answer, _) = world.udp(&question(&name, RecordType::A)).await;
        if text(&answer) == [format!("{name} 192.0.2.2")] {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{answer:?}");
    }
    // what the former resolver said is forgotten
    assert_eq!(text(&world.udp(&question("a.example.", RecordType::A)).await.0), ["a.example. 192.0.2.2"]);
}

#[tokio::test]
async fn stub_domains_have_resolvers_of_their_own_and_the_longest_wins() {
    let (everything, _) = resolver("127.0.0.1:0", always(1)).await;
    let (corp, _) = resolver("127.0.0.1:0", always(2)).await;
    let (lab, _) = resolver("127.0.0.1:0", always(3)).await;
    let world = World::new(vec![everything]).await.synced();
    let ask = async |name: &str| text(&world.udp(&question(name, RecordType::A)).await.0).join("\n");
    assert_eq!(ask("www.corp.example.").await, "www.corp.example. 192.0.2.1");
    let data = json!({
        "stubDomains": json!({"corp.example": [corp.to_string()], "lab.corp.example": [lab.to_string()]}).to_string()
    });
    let map = serde_json::from_value(json!({"data": data})).unwrap();
    world.forwarder.configure(&dns::stub_domains::StubDomains::parse(&map).unwrap());
    assert_eq!(ask("www.corp.example.").await, "www.corp.example. 192.0.2.2");
    assert_eq!(ask("CORP.example.").await, "CORP.example. 192.0.2.2");
    assert_eq!(ask("www.lab.corp.example.").await, "www.lab.corp.example. 192.0.2.3");
    assert_eq!(ask("uncorp.example.").await, "uncorp.example. 192.0.2.1");
    let data = json!({"upstreamNameservers": json!([lab.to_string()]).to_string()});
    let map = serde_json::from_value(json!({"data": data})).unwrap();
    world.forwarder.configure(&dns::stub_domains::StubDomains::parse(&map).unwrap());
    assert_eq!(ask("www.corp.example.").await, "www.corp.example. 192.0.2.3");
    world.forwarder.configure(&Default::default());
    assert_eq!(ask("www.corp.example.").await, "www.corp.example. 192.0.2.1");
}

#[tokio::test]
async fn addresses_come_in_any_order() {
    let world = World::new(Vec::new()).await.synced();
    world.put("many", json!({"clusterIP": "None"}), 4);
    let ask = question("many.default.svc.cluster.local.", RecordType::A);
    let mut seen = std::collections::BTreeSet::new();
    let started = Instant::now();
    // 24 orders, of which turning alone would give four
    while seen.len() <= 4 {
        let (answer, _) = world.udp(&ask).await;
        assert_eq!(answer.answers.len(), 4);
        seen.insert(text(&answer));
        assert!(started.elapsed() < PATIENCE, "{seen:?}");
    }
}

#[tokio::test]
async fn reverse_names_are_denied_by_their_own_zone() {
    let world = World::new(Vec::new()).await.synced();
    let nibbles = format!("{}6.9.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(24));
    for (name, zone) in [("7.7.96.10.in-addr.arpa.", "in-addr.arpa."), (&nibbles, "ip6.arpa.")] {
        let (answer, _) = world.udp(&question(name, RecordType::PTR)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(answer.authorities[0].name.to_ascii(), zone);
    }
}

/// Seeded: a failure can be repeated.
#[tokio::test]
async fn hostile_packets_are_answered_or_dropped_and_the_next_one_is_served() {
    let (at, _) = resolver("127.0.0.1:0", code(ResponseCode::NXDomain)).await;
    let world = World::new(vec![at]).await.synced();
    world.put("web", json!({"clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80}]}), 0);
    let mut random = StdRng::seed_from_u64(53);
    let mut edns = question("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV);
    edns.set_edns(ask_edns(4096));
    let good = question("web.default.svc.cluster.local.", RecordType::A);
    let seeds = [edns.to_vec().unwrap(), good.to_vec().unwrap(), vec![0; 512], vec![0xff; 64]];
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for round in 0..400 {
        for _ in 0..50 {
            let mut packet = seeds[random.random_range(0..seeds.len())].clone();
            for _ in 0..random.random_range(1..12) {
                let at = random.random_range(0..packet.len());
                packet[at] = random.random();
            }
            packet.truncate(random.random_range(0..=packet.len()));
            socket.send_to(&packet, world.at).await.unwrap();
        }
        let (answer, _) = world.udp(&good).await;
        assert_eq!(text(&answer).len(), 1, "round {round}");
    }
    // a connection that sends half, nonsense, or a length without a question harms nobody else
    for bytes in
        [&b"\0"[..], b"\xff\xff", b"\0\0", b"\0\x05hello", &[0, 12, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0]]
    {
        let mut stream = TcpStream::connect(world.at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    assert_eq!(world.tcp(&[good]).await[0].answers.len(), 1);
}
