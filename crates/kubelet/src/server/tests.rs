//! The server over real TLS, against a runtime that nobody serves.

use access::User;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Fake {
    pod: Arc<Pod>,
    log: PathBuf,
}

impl Pods for Fake {
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }
    fn storage(&self, _: &Pod) -> crate::usage::Storage {
        crate::usage::Storage { logs: [("run".to_owned(), (4096, 1))].into(), ..Default::default() }
    }
    fn counts(&self) -> Counts {
        let ready = ["u".to_owned()].into();
        Counts { pods: 1, containers: [("exited", 1), ("running", 2)].into(), ready }
    }
    fn container(&self, _: &str, _: &str, container: &str) -> Option<RunningContainer> {
        Some(RunningContainer { id: container.to_owned(), running: container == "run" })
    }
    fn sandbox(&self, _: &str, _: &str) -> Option<String> {
        Some("sandbox".to_owned())
    }
    fn log_path(&self, _: &str, pod: &str, container: &str, previous: bool) -> Result<PathBuf, String> {
        match previous {
            true => Err(format!("previous terminated container {container:?} in pod {pod:?} not found")),
            false => Ok(self.log.clone()),
        }
    }
}

/// Knows one token, and lets its owner read metrics; the holder of a certificate `reader` reads pods.
struct Reviewer;

impl Access for Reviewer {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<Option<User>, String>> {
        let user = (token == "good").then(|| User { name: "prometheus".to_owned(), ..User::default() });
        Box::pin(async move { Ok(user) })
    }

    fn allows<'a>(
        &'a self,
        user: &'a User,
        verb: &'static str,
        subresource: &'static str,
    ) -> futures_util::future::BoxFuture<'a, Result<bool, String>> {
        let allowed = matches!(
            (user.name.as_str(), verb, subresource),
            ("prometheus", "get", "metrics" | "proxy") | ("reader", "get", "pods")
        );
        Box::pin(async move { Ok(allowed) })
    }
}

struct Stack {
    address: SocketAddr,
    ca: Issuer<'static, KeyPair>,
    ca_pem: String,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    folder: tempfile::TempDir,
}

fn issue(ca: &Issuer<'static, KeyPair>, name: &str, organization: &str, server: bool) -> (String, String) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.extended_key_usages =
        vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

/// A streaming server that upgrades every request and sends back what it gets; its URL.
async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|mut request: Request<Incoming>| async move {
                let protocol = request.headers()["x-stream-protocol-version"].clone();
                assert_eq!(request.uri().path(), "/exec/token");
                assert!(!request.headers().contains_key(header::AUTHORIZATION));
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
                let answer = Response::builder()
                    .status(101)
                    .header("connection", "Upgrade")
                    .header("upgrade", "SPDY/3.1")
                    .header("x-stream-protocol-version", protocol);
                answer.body(Full::new(Bytes::new()))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service)
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    url
}

/// A runtime that knows one call, `Exec`, and gives `url` for it; everything else is unimplemented.
fn runtime(url: String) -> (cri::RuntimeClient, cri::ImageClient) {
    let answer = move |request: http::Request<tonic::body::Body>| {
        let url = url.clone();
        async move {
            let mut trailers = http::HeaderMap::new();
            let known = request.uri().path() == "/runtime.v1.RuntimeService/Exec";
            trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "12" }));
            // gRPC's head (not compressed, length), then ExecResponse: field 1, a short string
            let length = u8::try_from(url.len()).unwrap();
            let mut frame = vec![0, 0, 0, 0, length + 2, 0x0a, length];
            frame.extend_from_slice(url.as_bytes());
            let mut frames = vec![];
            if known {
                frames.push(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(frame))));
            }
            frames.push(Ok(Frame::trailers(trailers)));
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let mut answer = http::Response::new(tonic::body::Body::new(body));
            answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, cri::TransportError>(answer)
        }
    };
    let transport = tower::util::BoxCloneSyncService::new(tower::service_fn(answer));
    (cri::RuntimeServiceClient::new(transport.clone()), cri::ImageServiceClient::new(transport))
}

impl Stack {
    async fn start() -> Self {
        Self::with(Rules::default()).await
    }

    async fn with(rules: Rules) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stdout F two\n")
            .unwrap();
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "run"}, {"name": "ended"}]}});
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let ca = Issuer::new(params, key);
        let (cert_pem, key_pem) = issue(&ca, "node", "system:nodes", true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let certificate = Arc::new(ServingCertificate::new(&cert_pem, &key_pem).unwrap());
        let config = ServerConfig {
            listen: address,
            certificate,
            client_ca_pem: ca_pem.clone(),
            tls: TlsOptions::default(),
            rules,
        };
        let stop = CancellationToken::new();
        let (runtime, images) = runtime(echo().await);
        let server = Server {
            certificate: config.certificate.clone(),
            rules,
            pods: Arc::new(Fake { pod, log }),
            runtime,
            images,
            access: Arc::new(Reviewer),
            about: About {
                version: "v1.36.0+x".to_owned(),
                root: folder.path().to_owned(),
                flags: [("data-dir".to_owned(), "/d".to_owned())].into(),
                ..About::default()
            },
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        };
        let served = tokio::spawn(serve_on(
            listener,
            TlsAcceptor::from(Arc::new(tls::accepting(&config).unwrap())),
            server,
        ));
        Self { address, ca, ca_pem, stop, served, folder }
    }

    async fn dial(&self, identity: Option<(&str, &str)>) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((name, organization)) => {
                let (cert, key) = issue(&self.ca, name, organization, false);
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    async fn get(&self, identity: Option<(&str, &str)>, method: &str, path: &str) -> String {
        self.ask(identity, None, method, path).await
    }

    async fn ask(
        &self,
        identity: Option<(&str, &str)>,
        token: Option<&str>,
        method: &str,
        path: &str,
    ) -> String {
        let io = TokioIo::new(self.dial(identity).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let uri: Uri = path.parse().unwrap();
        let mut request = Request::builder().method(method).uri(uri).header("host", "node");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        format!("{code} {}", String::from_utf8_lossy(&body))
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap();
    }
}

const MASTER: Option<(&str, &str)> = Some(("admin", "system:masters"));
const API: Option<(&str, &str)> = Some(("kube-apiserver-kubelet-client", "x"));

#[tokio::test]
async fn the_api_server_says_who_may_ask_what() {
    let stack = Stack::start().await;
    assert_eq!(stack.get(None, "GET", "/healthz").await, "401 Unauthorized");
    assert_eq!(stack.get(MASTER, "GET", "/healthz").await, "200 ok");
    assert_eq!(stack.get(None, "GET", "/pods").await, "401 Unauthorized");
    assert_eq!(stack.get(None, "GET", "/exec/ns/p/run?command=sh&stdout=1").await, "401 Unauthorized");
    assert_eq!(
        stack.get(Some(("eve", "dev")), "GET", "/pods").await,
        "403 Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    );
    assert!(stack.get(Some(("reader", "dev")), "GET", "/pods").await.starts_with("200 {"));
    let by_token = async |token: &str, path: &str| stack.ask(None, Some(token), "GET", path).await;
    assert!(by_token("good", "/metrics/probes").await.starts_with("200"));
    assert_eq!(by_token("bad", "/metrics/probes").await, "401 Unauthorized");
    // a WebSocket begins with a GET and is no read, however its path is written
    for path in
        ["/exec/ns/p/run?command=sh&stdout=1", "/%65xec/ns/p/run?command=sh&stdout=1", "//exec/ns/p/run"]
    {
        assert_eq!(
            by_token("good", path).await,
            "403 Forbidden (user=prometheus, verb=create, resource=nodes, subresource(s)=[proxy])\n"
        );
    }
    assert!(stack.get(MASTER, "GET", "/pods").await.starts_with("200 {"));
    assert!(stack.get(API, "GET", "/pods").await.contains("\"PodList\""));
    stack.end().await;
}

#[tokio::test]
async fn nobody_is_somebody_where_the_file_says_so() {
    let stack = Stack::with(Rules { anonymous: true, debugging: false, ..Rules::default() }).await;
    assert_eq!(
        stack.get(None, "GET", "/pods").await,
        "403 Forbidden (user=system:anonymous, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    );
    assert_eq!(stack.ask(None, Some("bad"), "GET", "/pods").await, "401 Unauthorized");
    assert_eq!(stack.get(API, "GET", "/containerLogs/ns/p/run").await, "405 Debug endpoints are disabled.\n");
    assert_eq!(stack.get(API, "GET", "/flagz").await, "404 404 page not found");
    stack.end().await;
    let stack = Stack::with(Rules { always_allow: true, tokens: false, ..Rules::default() }).await;
    assert!(stack.get(Some(("eve", "dev")), "GET", "/pods").await.starts_with("200 {"));
    assert_eq!(stack.ask(None, Some("good"), "GET", "/pods").await, "401 Unauthorized");
    stack.end().await;
}

#[tokio::test]
async fn logs_are_sent_or_refused_in_words() {
    let stack = Stack::start().await;
    let got = async |path: &str| stack.get(API, "GET", path).await;
    assert_eq!(got("/containerLogs/ns/p/run").await, "200 one\ntwo\n");
    assert_eq!(got("/containerLogs/ns/p/run?tailLines=1").await, "200 two\n");
    assert_eq!(got("/containerLogs/ns/p/ended?follow=true").await, "200 one\ntwo\n");
    assert_eq!(got("/containerLogs/ns/q/run").await, "404 pod \"q\" does not exist");
    assert_eq!(got("/containerLogs/ns/p/x").await, "404 container \"x\" not found in pod \"p\"");
    assert_eq!(
        got("/containerLogs/ns/p/run?limitBytes=0").await,
        "422 limitBytes: Invalid value: 0: must be greater than 0"
    );
    assert_eq!(
        got("/containerLogs/ns/p/run?previous=true").await,
        "400 previous terminated container \"run\" in pod \"p\" not found"
    );
    assert_eq!(stack.get(API, "POST", "/containerLogs/ns/p/run").await, "405 405: Method Not Allowed");
    assert_eq!(got("/nothing").await, "404 404 page not found");
    stack.end().await;
}

#[tokio::test]
async fn commands_name_a_container_that_runs() {
    let stack = Stack::start().await;
    let got = async |path: &str| stack.get(API, "POST", path).await;
    // the runtime knows none of these calls
    assert!(got("/run/ns/p/run?cmd=ls").await.starts_with("501 "));
    assert!(got("/run/ns/p/u/run?cmd=ls").await.starts_with("501 "));
    assert!(got("/stats/summary").await.starts_with("501 "));
    assert!(got("/checkpoint/ns/p/run").await.starts_with("500 checkpointing of ns/p/run failed ("));
    assert!(stack.folder.path().join("checkpoints").is_dir(), "the runtime writes there");
    assert_eq!(got("/run/ns/p/other/run?cmd=ls").await, "404 pod not found");
    assert_eq!(got("/run/ns/q/run?cmd=ls").await, "404 pod does not exist");
    assert_eq!(got("/checkpoint/ns/p/x").await, "404 container x does not exist");
    assert_eq!(
        got("/checkpoint/ns/p/run?timeout=5&timeout=soon").await,
        "404 cannot parse value of timeout parameter"
    );
    assert_eq!(stack.get(API, "GET", "/run/ns/p/run?cmd=ls").await, "405 405: Method Not Allowed");
    assert_eq!(stack.get(API, "DELETE", "/exec/ns/p/run").await, "405 405: Method Not Allowed");
    stack.end().await;
}

#[tokio::test]
async fn pages_for_people_are_served() {
    let stack = Stack::start().await;
    let got = async |path: &str| stack.get(API, "GET", path).await;
    let status = got("/statusz").await;
    assert!(status.starts_with("200 \nkubelet statusz\n"), "{status}");
    assert!(status.contains("\nPaths: /configz /flagz /healthz /metrics\n"), "{status}");
    assert!(got("/flagz").await.ends_with("\ndata-dir: /d\n"));
    assert_eq!(got("/healthz/ping").await, "200 ok");
    assert!(
        got("/metrics/slis").await.contains("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n")
    );
    assert!(got("/pods/").await.starts_with("200 {"));
    let labels = "{long_running=\"false\",method=\"other\",path=\"statusz\",server_type=\"readwrite\"}";
    stack.get(API, "PATCH", "/statusz").await;
    assert!(got("/metrics").await.contains(&format!("kubelet_http_requests_total{labels} 1\n")));
    stack.end().await;
}

#[tokio::test]
async fn a_stop_ends_a_followed_log() {
    let stack = Stack::start().await;
    let io = TokioIo::new(stack.dial(API).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/containerLogs/ns/p/run?follow=true").header("host", "node");
    let answer = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one\ntwo\n");
    stack.end().await;
    // the rest is the end, clean or cut
    assert!(!matches!(body.frame().await, Some(Ok(frame)) if frame.is_data()));
}

#[tokio::test]
async fn exec_passes_bytes_both_ways_after_the_upgrade() {
    let stack = Stack::start().await;
    let mut io = stack.dial(API).await;
    let head = "POST /exec/ns/p/run?command=sh&stdin=true&stdout=true HTTP/1.1\r\nhost: node\r\nconnection: Upgrade\r\n\
        upgrade: SPDY/3.1\r\nauthorization: Bearer x\r\nx-stream-protocol-version: v4.channel.k8s.io\r\ncontent-length: 0\r\n\r\n";
    io.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(io.read_u8().await.unwrap());
    }
    let got = String::from_utf8(got).unwrap().to_lowercase();
    assert!(got.starts_with("http/1.1 101"), "{got}");
    assert!(got.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{got}");
    for word in ["hello", "again"] {
        io.write_all(word.as_bytes()).await.unwrap();
        let mut echo = vec![0; word.len()];
        io.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    stack.end().await;
}

#[tokio::test]
async fn streams_are_refused_before_the_runtime_is_dialled() {
    let stack = Stack::start().await;
    let got = async |path: &str| stack.get(API, "POST", path).await;
    assert_eq!(got("/exec/ns/p/ended?command=sh&stdout=1").await, "404 container not found (\"ended\")");
    assert_eq!(got("/exec/ns/p/run?stdout=1").await, "400 command: Required value");
    assert_eq!(
        got("/exec/ns/p/run?command=sh").await,
        "400 you must specify at least 1 of stdin, stdout, stderr"
    );
    assert!(got("/portForward/ns/p?ports=80").await.starts_with("501 "));
    assert_eq!(got("/portForward/ns/other").await, "404 pod does not exist");
    stack.end().await;
}
