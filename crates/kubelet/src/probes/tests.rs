//! The decision on its own, and tries against listeners on the loopback.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::channel;

use super::*;

fn probe(value: Value) -> Probe {
    serde_json::from_value(value).unwrap()
}

fn target(ip: &str, port: u16) -> Target {
    let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]});
    Target {
        pod_ip: ip.to_owned(),
        container_id: "id".to_owned(),
        container: serde_json::from_value(container).unwrap(),
        pod: Default::default(),
        age: Duration::ZERO,
        adopted: false,
    }
}

/// A runtime that answers every call with the gRPC status `code`.
fn runtime(code: &'static str) -> cri::RuntimeClient {
    let answer = move |_: http::Request<tonic::body::Body>| async move {
        let mut answer = http::Response::new(tonic::body::Body::empty());
        let headers = answer.headers_mut();
        headers.insert("grpc-status", http::HeaderValue::from_static(code));
        headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
        Ok::<_, cri::TransportError>(answer)
    };
    cri::RuntimeServiceClient::new(tower::util::BoxCloneSyncService::new(tower::service_fn(answer)))
}

fn row(kind: Kind, spec: Value, tries: &str) -> String {
    let mut prober = Prober::new(kind, &probe(spec));
    let mark = |t| match prober.record(t == '+') {
        None => '.',
        Some(true) => 'U',
        Some(false) => 'D',
    };
    tries.chars().map(mark).collect()
}

#[test]
fn thresholds_decide_and_only_changes_are_told() {
    let default = || json!({});
    assert_eq!(row(Kind::Readiness, default(), "--+++--+---+"), "..U.......DU");
    assert_eq!(row(Kind::Liveness, default(), "++--+---"), ".......D");
    assert_eq!(row(Kind::Startup, default(), "--+"), "..U");
    assert_eq!(row(Kind::Startup, default(), "---"), "..D");
    assert_eq!(
        row(Kind::Readiness, json!({"successThreshold": 2, "failureThreshold": 1}), "+-++-+"),
        "...UD."
    );
    // zero is how absence is written
    assert_eq!(row(Kind::Liveness, json!({"failureThreshold": 0}), "---"), "..D");
}

#[test]
fn the_initial_delay_counts_from_the_containers_start() {
    let wait =
        |delay: i32, age| first_wait(&probe(json!({"initialDelaySeconds": delay})), Duration::from_secs(age));
    assert_eq!(
        [wait(30, 0), wait(30, 12), wait(30, 90), wait(0, 5), wait(-1, 0)].map(|d| d.as_secs()),
        [30, 18, 0, 0, 0]
    );
}

#[test]
fn a_new_kubelet_spreads_the_probes_of_what_it_finds_over_their_period() {
    let period = Duration::from_secs(10);
    let mut seconds = [0; 10];
    for container in 0..100 {
        let turn = turn(Kind::Liveness, &format!("id-{container}"), period);
        assert!(turn < period);
        seconds[usize::try_from(turn.as_secs()).unwrap()] += 1;
    }
    assert!(seconds.iter().all(|count| (2..25).contains(count)), "{seconds:?}");
    assert_ne!(turn(Kind::Liveness, "id", period), turn(Kind::Readiness, "id", period));
}

#[test]
fn a_container_starts_alive_not_ready_not_started() {
    let state = |kind| Prober::new(kind, &Probe::default()).healthy();
    assert_eq!([Kind::Liveness, Kind::Readiness, Kind::Startup].map(state), [true, false, false]);
}

/// Answers every connection with what `script` says for its path; the port.
async fn serve(script: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = tcp.read_u8().await else { break };
                head.push(byte);
            }
            let answer = script(&String::from_utf8_lossy(&head));
            // the client may be gone
            let _ = tcp.write_all(answer.as_bytes()).await;
            let _ = tcp.shutdown().await;
        }
    });
    port
}

async fn get(port: u16, action: Value) -> Outcome {
    let mut action = action;
    if action.get("port").is_none() {
        action["port"] = json!(port);
    }
    run_once(&probe(json!({"httpGet": action})), &target("127.0.0.1", port), &mut runtime("0")).await
}

#[tokio::test]
async fn http_takes_200_to_399_and_names_what_failed() {
    let port = serve(|head| match head.split(' ').nth(1).unwrap_or_default() {
        "/" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        "/500" => "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/there?a=b" => "HTTP/1.1 302 X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/away" => {
            "HTTP/1.1 302 X\r\nlocation: http://example.invalid/\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
        "/loop" => "HTTP/1.1 302 X\r\nlocation: loop\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/to500" => "HTTP/1.1 301 X\r\nlocation: 500\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => String::new(),
    })
    .await;
    assert_eq!(get(port, json!({})).await, Outcome::success("hi"));
    assert_eq!(get(port, json!({"port": "web"})).await, Outcome::success("hi"));
    assert_eq!(get(port, json!({"path": "there?a=b"})).await, Outcome::success("hi"));
    let away = Outcome::warning("Probe terminated redirects, Response body: ");
    assert_eq!(get(port, json!({"path": "/away"})).await, away);
    let failed = async |path: &str| {
        let outcome = get(port, json!({"path": path})).await;
        assert_eq!(outcome.found, Found::Failure);
        outcome.message.replace(&port.to_string(), "PORT")
    };
    assert_eq!(failed("/500").await, "HTTP probe failed with statuscode: 500");
    assert_eq!(failed("/to500").await, "HTTP probe failed with statuscode: 500");
    assert_eq!(failed("/loop").await, "Get \"http://127.0.0.1:PORT/loop\": stopped after 10 redirects");
    assert_eq!(failed("/cut").await, "Get \"http://127.0.0.1:PORT/cut\": EOF");
    assert_eq!(get(port, json!({"port": "nope"})).await.found, Found::Nothing);
}

#[tokio::test]
async fn a_hook_that_finds_no_tls_where_it_wants_some_asks_without_and_keeps_its_secrets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = tokio::spawn(async move {
        let (mut hello, _) = listener.accept().await.unwrap();
        hello.read_u8().await.unwrap();
        hello.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        hello.shutdown().await.unwrap();
        let (mut plain, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(plain.read_u8().await.unwrap());
        }
        plain.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let headers = json!([{"name": "Authorization", "value": "secret"}, {"name": "X-Other", "value": "1"}]);
    let action = json!({"scheme": "HTTPS", "port": port, "path": "/bye", "httpHeaders": headers});
    let action: HTTPGetAction = serde_json::from_value(action).unwrap();
    let asked = call_once(&action, &target("127.0.0.1", port), Duration::from_secs(10)).await;
    assert_eq!(asked, Ok(Some(format!("127.0.0.1:{port}"))));
    let head = serve.await.unwrap();
    assert!(head.starts_with("GET /bye HTTP/1.1\r\n") && head.contains("x-other: 1\r\n"), "{head}");
    assert!(!head.contains("secret"), "{head}");
}

#[tokio::test]
async fn http_sends_upstreams_head_and_the_probes_own_headers() {
    let heads = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = heads.clone();
    let port = serve(move |head| {
        seen.lock().push(head.to_lowercase());
        "HTTP/1.1 204 X\r\n\r\n".to_owned()
    })
    .await;
    assert_eq!(get(port, json!({})).await.found, Found::Success);
    let own = json!([{"name": "Host", "value": "my.host"}, {"name": "User-Agent", "value": "me"}, {"name": "X", "value": "y"}]);
    assert_eq!(get(port, json!({"httpHeaders": own})).await.found, Found::Success);
    let heads = heads.lock().clone();
    for line in [
        &*format!("host: 127.0.0.1:{port}"),
        "user-agent: kube-probe/1.36",
        "accept: */*",
        "connection: close",
    ] {
        assert!(heads[0].contains(&format!("\r\n{line}\r\n")), "{line}: {}", heads[0]);
    }
    for line in ["host: my.host", "user-agent: me", "x: y"] {
        assert!(heads[1].contains(&format!("\r\n{line}\r\n")), "{line}: {}", heads[1]);
    }
}

#[tokio::test]
async fn a_hook_is_content_with_any_answer() {
    let heads = Arc::new(parking_lot::Mutex::new(String::new()));
    let seen = heads.clone();
    let port = serve(move |head| {
        *seen.lock() = head.to_lowercase();
        "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_owned()
    })
    .await;
    let action: HTTPGetAction = serde_json::from_value(json!({"path": "/drain", "port": "web"})).unwrap();
    let limit = std::time::Duration::from_secs(5);
    assert_eq!(call_once(&action, &target("127.0.0.1", port), limit).await, Ok(None));
    assert!(
        heads.lock().starts_with("get /drain ") && heads.lock().contains("user-agent: kube-lifecycle/1.36")
    );
    let unknown = HTTPGetAction { port: IntOrString::String("nope".to_owned()), ..action };
    assert!(call_once(&unknown, &target("127.0.0.1", port), limit).await.unwrap_err().contains("nope"));
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let cert = rcgen::generate_simple_self_signed(vec!["elsewhere".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(cert.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap();
        let mut head = [0; 16];
        tls.read_exact(&mut head).await.unwrap();
        tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        tls.shutdown().await.unwrap();
    });
    assert_eq!(get(port, json!({"scheme": "HTTPS"})).await, Outcome::success("ok"));
}

#[tokio::test]
async fn a_closed_port_is_refused_in_upstreams_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = probe(json!({"tcpSocket": {"port": "web"}}));
    let target = target("127.0.0.1", port);
    assert_eq!(run_once(&tcp, &target, &mut runtime("0")).await, Outcome::success(""));
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(run_once(&tcp, &target, &mut runtime("0")).await, Outcome::failure(&*refused));
    let want = format!("Get \"http://127.0.0.1:{port}/\": {refused}");
    assert_eq!(get(port, json!({})).await, Outcome::failure(want));
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let want = format!(
        "Get \"http://127.0.0.1:{port}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    );
    assert_eq!(get(port, json!({})).await, Outcome::failure(want));
    drop(listener);
}

#[tokio::test]
async fn exec_that_is_late_fails_and_a_broken_runtime_decides_nothing() {
    let exec = probe(json!({"exec": {"command": ["sh", "-c", "true"]}}));
    let run = async |code| run_once(&exec, &target("", 1), &mut runtime(code)).await;
    assert_eq!(run("4").await, Outcome::failure("command timed out: \"sh -c true\" timed out after 1s"));
    assert_eq!(run("14").await.found, Found::Nothing);
}

#[tokio::test]
async fn workers_tell_failures_and_changes_and_end_when_decided() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let spec = probe(json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 2}));
    let start = |kind| {
        let (send, events) = channel(4);
        let stop = CancellationToken::new();
        let target = target("127.0.0.1", port);
        (tokio::spawn(worker(kind, spec.clone(), target, runtime("0"), send, stop.clone())), events, stop)
    };
    let (task, mut events, _stop) = start(Kind::Startup);
    let event = events.recv().await.unwrap();
    assert!(event.healthy && event.found == Found::Success && !event.dead);
    assert!(events.recv().await.is_none());
    task.await.unwrap();

    let (ready, mut readiness, stop) = start(Kind::Readiness);
    assert!(readiness.recv().await.unwrap().healthy);
    drop(listener);
    let first = readiness.recv().await.unwrap();
    assert!(first.healthy && first.found == Found::Failure);
    let second = readiness.recv().await.unwrap();
    assert!(!second.healthy && second.found == Found::Failure && !second.dead);
    stop.cancel();
    ready.await.unwrap();

    let (task, mut events, _stop) = start(Kind::Liveness);
    let first = events.recv().await.unwrap();
    assert_eq!((first.healthy, first.found, first.dead), (true, Found::Failure, false));
    let second = events.recv().await.unwrap();
    assert_eq!((second.healthy, second.found, second.dead), (false, Found::Failure, true));
    assert_eq!(second.message, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    assert!(events.recv().await.is_none());
    task.await.unwrap();
}
