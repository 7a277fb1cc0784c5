//! Fuzzing: broken requests and expressions must be refused, whatever they are; nothing panics, nothing is answered with
//! 500 and nothing hangs.
//!
//! The inputs are `corpus.jsonl` and `expressions.txt`, broken by a generator that repeats from its seed. `cargo test`
//! runs for seconds with a fixed seed; `cargo xtask fuzz` for as long as one likes with another. What a run finds is
//! printed as a line for `corpus.jsonl`, whose lines are also sent as they are.

mod mutate;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use apiserver::cel::admission::Inputs;
use apiserver::cel::match_conditions::MatchConditions;
use apiserver::cel::{access, devices};
use bytes::Bytes;
use client::Client;
use http::{Method, Request};
use mutate::Dice;
use serde_json::{Value, json};

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A watch that was begun goes on; it is left after this.
const WATCHED: Duration = Duration::from_millis(50);

/// A request of the corpus.
#[derive(Clone)]
struct Seed {
    method: Method,
    path: String,
    media: String,
    /// A tree, or a text that is none.
    body: Value,
}

/// Seed and time of a run, by the environment.
struct Plan {
    seed: u64,
    end: Instant,
}

impl Plan {
    fn of_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let seconds = number("NAVARCH_FUZZ_SECONDS").unwrap_or(4);
        Self {
            seed: number("NAVARCH_FUZZ_SEED").unwrap_or(1),
            end: Instant::now() + Duration::from_secs(seconds),
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }
}

/// A file of inputs: read here, so that a new line needs no build.
fn input(name: &str) -> String {
    // built programs are shared between checkouts: what cargo says when it runs them counts
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    std::fs::read_to_string(own.join("tests/fuzz").join(name)).unwrap()
}

fn corpus() -> Vec<Seed> {
    input("corpus.jsonl")
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let media = match text("type") {
                media if media.is_empty() => "application/json".to_owned(),
                media => media,
            };
            let method = Method::from_bytes(text("method").as_bytes()).unwrap();
            Seed { method, path: text("path"), media, body: line["body"].clone() }
        })
        .collect()
}

impl Seed {
    fn bytes(&self) -> Bytes {
        match &self.body {
            Value::Null => Bytes::new(),
            Value::String(text) => text.clone().into(),
            tree => tree.to_string().into(),
        }
    }

    /// The request as a line of the corpus; bytes that are no text come as near as possible.
    fn line(&self, body: &[u8]) -> String {
        json!({"method": self.method.as_str(), "path": self.path, "type": self.media,
            "body": String::from_utf8_lossy(body)})
        .to_string()
    }
}

/// Sends a request: the answer's code, and whether it is one that no request may get; none for what is no request at all.
async fn send(client: &Client, seed: &Seed, body: Bytes) -> Option<(u16, bool)> {
    let mut request = Request::builder().method(seed.method.clone()).uri(&seed.path);
    if !body.is_empty() {
        request = request.header("content-type", &seed.media);
    }
    let request = request.body(body.clone()).ok()?;
    let watches = seed.path.contains("watch");
    let patience = if watches { WATCHED } else { PATIENCE };
    let answer = match tokio::time::timeout(patience, client.request(request)).await {
        Ok(answer) => answer.ok()?,
        Err(_) if watches => return Some((200, false)),
        Err(_) => panic!("no answer in time: {}", seed.line(&body)),
    };
    let code = answer.status().as_u16();
    // a webhook that an earlier request registered, and that nobody serves, is the reference's one reason for a 500
    let of_webhook = String::from_utf8_lossy(answer.body()).contains("failed calling webhook");
    Some((code, code == 500 && !of_webhook))
}

/// A broken copy of a request, and its body.
fn broken(seed: &Seed, dice: &mut Dice, donors: &[Value]) -> (Seed, Bytes) {
    let mut seed = seed.clone();
    if dice.once_in(8) || seed.body.is_null() {
        let (path, query) = seed.path.split_once('?').unwrap_or((&seed.path, ""));
        let (mut path, mut query) = (path.to_owned(), query.to_owned());
        if query.is_empty() || dice.once_in(6) {
            path = dice.text(&path);
        } else {
            query = dice.text(&query);
        }
        let escaped = |text: &str| -> String {
            let plain = |c: char| {
                c.is_ascii_graphic() && !matches!(c, '"' | '<' | '>' | '`' | '{' | '}' | '|' | '^' | '#')
            };
            let byte =
                |b: &u8| if plain(char::from(*b)) { char::from(*b).to_string() } else { format!("%{b:02X}") };
            text.bytes().take(60_000).map(|b| byte(&b)).collect()
        };
        let path = escaped(&path);
        seed.path = format!("{}{path}?{}", if path.starts_with('/') { "" } else { "/" }, escaped(&query));
    }
    // watches take their time
    if !dice.once_in(20) {
        seed.path = seed.path.replace("watch", "w");
    }
    if seed.method != Method::GET && !dice.once_in(10) {
        let mark = if seed.path.contains('?') { '&' } else { '?' };
        seed.path.push(mark);
        seed.path.push_str("dryRun=All");
    }
    if !seed.body.is_null() && dice.once_in(12) {
        let media = [
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
            "application/cbor",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ];
        seed.media = (*dice.pick(&media)).to_owned();
    }
    if !matches!(seed.body, Value::Null | Value::String(_)) {
        dice.tree(&mut seed.body, donors);
    }
    let mut body = seed.bytes().to_vec();
    if matches!(seed.body, Value::String(_)) || dice.once_in(5) {
        dice.bytes(&mut body);
    }
    (seed, body.into())
}

#[tokio::test]
async fn broken_requests_are_refused_and_nothing_else_happens() {
    let api = testserver::TestServer::start(apiserver::Options::default()).await;
    let client = api.client.clone();
    let corpus = corpus();
    for seed in &corpus {
        let answer = send(&client, seed, seed.bytes()).await;
        assert!(answer.is_some_and(|(code, _)| code < 500), "{answer:?}: {}", seed.line(&seed.bytes()));
    }
    let donors: Vec<Value> = corpus.iter().map(|s| s.body.clone()).filter(|b| !b.is_null()).collect();
    let plan = Plan::of_environment();
    let mut dice = Dice::new(plan.seed);
    let (mut sent, mut accepted) = (0_u64, 0_u64);
    while plan.goes_on() {
        let (seed, body) = broken(dice.pick(&corpus), &mut dice, &donors);
        let answer = send(&client, &seed, body.clone()).await;
        sent += 1;
        accepted += u64::from(answer.is_some_and(|(code, _)| code < 300));
        assert!(
            answer.is_none_or(|(_, is_ours)| !is_ours),
            "seed {}, request {sent}: 500 for {}",
            plan.seed,
            seed.line(&body)
        );
    }
    println!("{sent} requests, {accepted} of them accepted");
    assert!(accepted > 0, "what is broken beyond repair finds nothing");
    api.stop().await;
}

#[test]
fn broken_expressions_end_with_a_value_or_an_error() {
    let plan = Plan::of_environment();
    let text = input("expressions.txt");
    let expressions: Vec<&str> = text.lines().collect();
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b", "x.y/z": ""}},
        "spec": {"replicas": 3, "list": [1, 2, 3], "texts": ["a", "b"], "map": {"k": "v"}, "on": true, "ratio": 0.5, "none": null,
            "time": "2024-01-01T00:00:00Z", "cidr": "10.0.0.0/8", "quantity": "1Gi", "url": "https://a.example:80/b?c=d"}});
    let request = json!({"operation": "UPDATE", "name": "d", "namespace": "a", "userInfo": {"username": "u", "groups": ["g"]}});
    let namespace = json!({"metadata": {"name": "a", "labels": {"l": "m"}}});
    let inputs = Inputs {
        request: &request,
        object: &object,
        old_object: &object,
        params: &namespace,
        namespace: &namespace,
        authorizer: None,
    };
    let mut dice = Dice::new(plan.seed);
    let mut run = 0_u64;
    while plan.goes_on() {
        let mut source = (*dice.pick(&expressions)).to_owned();
        if dice.once_in(3) {
            let other = dice.pick(&expressions);
            source = format!("({source}) {} ({other})", dice.pick(&["&&", "||", "==", "+", "in", "<"]));
        }
        if run >= expressions.len() as u64 {
            source = dice.text(&source);
        }
        run += 1;
        let begin = Instant::now();
        let list = json!([{"name": "c", "expression": source}]);
        // a panic names its place; the message of the time limit names the input
        let _ = MatchConditions::new(&list, true).matches(&inputs);
        if dice.once_in(4) {
            let _ = devices::check(&source.replace("object", "device"));
        }
        if dice.once_in(4)
            && let Ok(mapping) =
                access::Expression::mapping(access::About::Claims, &source.replace("object", "claims"))
        {
            let _ = mapping.texts(&object);
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "seed {}, expression {run} takes {:?}: {source}",
            plan.seed,
            begin.elapsed()
        );
    }
    println!("{run} expressions");
}
