//! `proxy` of pods, services and nodes, through `kubectl proxy` and `kubectl get --raw`, to a backend of ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::{Cluster, eventually, tools};

use crate::{NAVARCH, cluster, wait_ready};

/// A backend on every address: pages, redirects, an echo of requests, large bodies, and a protocol of its own.
const BACKEND: &str = r#"
import hashlib, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def answer(self, code, body, **headers):
        self.send_response(code)
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)
    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size)); self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    def serve(self):
        path = self.path.split("?")[0]
        if self.headers.get("Upgrade") == "shout":
            self.send_response(101)
            self.send_header("Connection", "Upgrade"); self.send_header("Upgrade", "shout")
            self.end_headers()
            while line := self.rfile.readline():
                self.wfile.write(line.upper()); self.wfile.flush()
            self.close_connection = True
        elif path == "/page":
            self.answer(200, b'<a href="/next">n</a><img src="own.png">', Content_Type="text/html; charset=utf-8",
                Access_Control_Allow_Origin="*")
        elif path == "/moved": self.answer(302, b"", Location="/next")
        elif path == "/away": self.answer(302, b"", Location="http://other.example/x")
        elif path == "/large": self.answer(200, b"x" * (8 << 20), Content_Type="application/octet-stream")
        else:
            got = {"method": self.command, "path": self.path, "sum": hashlib.sha256(self.body()).hexdigest(),
                "headers": {k.lower(): v for k, v in self.headers.items()}}
            self.answer(418, json.dumps(got).encode(), Content_Type="application/json")
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve
ThreadingHTTPServer.daemon_threads = True
server = ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"#;
const PORT: u16 = 8088;
const PODS: &str = "/api/v1/namespaces/default/pods/back:8088/proxy";
const SERVICES: &str = "/api/v1/namespaces/default/services/back:web/proxy";

/// A process that ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program; its first line.
fn start(mut command: Command) -> (Running, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Running(child), line)
}

/// A pod, an endpoint slice and a service that lead to the backend on the cluster's host.
fn objects(cluster: &Cluster) {
    // no controller makes it here
    cluster.kubectl("create serviceaccount default").unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: back, labels: {app: back}}\nspec:\n  schedulingGates: [{name: a/b}]\n  \
        containers: [{name: main, image: x, ports: [{name: web, containerPort: 8088}]}]\n";
    cluster.apply(pod).unwrap();
    let patch = format!(r#"{{"status":{{"podIP":"{0}","podIPs":[{{"ip":"{0}"}}]}}}}"#, HOST);
    cluster
        .kubectl_args(&["patch", "pod", "back", "--subresource", "status", "--type", "merge", "-p", &patch])
        .unwrap();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: back}}\nspec: {{ports: [{{name: web, port: 80, targetPort: 8088}}]}}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: back-1, labels: {{kubernetes.io/service-name: back}}}}\n\
        addressType: IPv4\nports: [{{name: web, port: 8088}}]\nendpoints:\n- addresses: ['{HOST}']\n  conditions: {{ready: true}}\n  \
        targetRef: {{kind: Pod, name: back, namespace: default}}\n- addresses: ['192.0.2.99']\n  conditions: {{ready: false}}\n  \
        targetRef: {{kind: Pod, name: back, namespace: default}}\n"
    );
    cluster.apply(&service).unwrap();
}

const HOST: &str = testkit::HOST_ADDRESS;

struct Client<'a> {
    cluster: &'a Cluster,
    proxy: SocketAddr,
}

impl Client<'_> {
    /// Sends a request to `kubectl proxy`; head and body of the answer.
    fn send(&self, head: &str, body: Vec<u8>) -> (String, Vec<u8>) {
        let (proxy, length) = (self.proxy, body.len());
        let (first, more) = head.split_once('\n').unwrap_or((head, ""));
        let more = more.lines().map(|l| format!("{l}\r\n")).collect::<String>();
        let head = format!(
            "{first} HTTP/1.1\r\nHost: {proxy}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        let answer = self.cluster.net().run(move || {
            let mut stream = TcpStream::connect(proxy).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        });
        let answer = answer.unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let body = &answer[end..];
        let body = if head.contains("chunked") { unchunked(body) } else { body.to_vec() };
        (head, body)
    }

    fn get(&self, path: &str) -> (String, String) {
        let (head, body) = self.send(&format!("GET {path}"), Vec::new());
        (head, String::from_utf8_lossy(&body).into_owned())
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..][..length]);
        body = &body[end + 2 + length + 2..];
    }
}

#[test]
fn requests_reach_pods_and_services_and_answers_stay_behind_the_proxy() {
    let cluster = Cluster::api_only(NAVARCH).unwrap();
    objects(&cluster);
    let mut backend = Command::new("python3");
    backend.args(["-c", BACKEND, &PORT.to_string()]);
    cluster.net().enter(&mut backend);
    let (_backend, line) = start(backend);
    assert_eq!(line, "ready\n");
    let mut proxy = cluster.command("kubectl").unwrap();
    // its own filter refuses streams and whatever is no plain request by default
    proxy.args(["proxy", "--port", "8001", "--disable-filter"]);
    let (_proxy, line) = start(proxy);
    assert!(line.contains("127.0.0.1:8001"), "{line}");
    let client = Client { cluster: &cluster, proxy: "127.0.0.1:8001".parse().unwrap() };

    requests(&client);
    answers(&client);
    upgrade(&client);
    refusals(&client);
}

fn requests(client: &Client<'_>) {
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let (head, body) = client.send(&format!("{method} {PODS}/a%20b/?x=1&x=2"), b"hello".to_vec());
        assert!(head.starts_with("HTTP/1.1 418"), "{method}: {head}");
        let got: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&got["method"], &got["path"]), (&method.into(), &"/a%20b/?x=1&x=2".into()));
        assert_eq!(
            got["sum"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "{method}"
        );
    }
    let (_, body) = client.send(
        &format!("GET {PODS}/x\nAuthorization: Bearer secret\nX-Mine: 1\nX-Hop: 2\nConnection: X-Hop\nX-Forwarded-For: 9.9.9.9"),
        Vec::new(),
    );
    let got: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let headers = &got["headers"];
    assert_eq!(headers["x-mine"], "1");
    assert_eq!(headers["x-forwarded-uri"], format!("{PODS}/x"));
    let forwarded = headers["x-forwarded-for"].as_str().unwrap();
    assert!(forwarded.starts_with("9.9.9.9, "), "{forwarded}");
    assert!(headers["authorization"].is_null() && headers["x-hop"].is_null(), "{headers}");
    // more than any body of a resource may have
    let (head, body) = client.send(&format!("POST {PODS}/sum"), vec![0; 8 << 20]);
    let got: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(got["sum"], "2daeb1f36095b44b318410b3f4e8b5d989dcc7bb023d1426c492dab0a3053e74", "{head}");
    let (_, body) = client.send(&format!("GET {PODS}/large"), Vec::new());
    assert_eq!(body.len(), 8 << 20);
    // a port may be named, or be the service's number
    for path in
        ["pods/back:web", "pods/http:back:web", "pods/back", "services/back:80", "services/http:back:web"]
    {
        let (head, _) = client.get(&format!("/api/v1/namespaces/default/{path}/proxy/x"));
        assert!(head.starts_with("HTTP/1.1 418"), "{path}: {head}");
    }
}

fn answers(client: &Client<'_>) {
    for base in [PODS, SERVICES] {
        let (head, body) = client.get(&format!("{base}/page"));
        assert_eq!(body, format!("<a href=\"{base}/next\">n</a><img src=\"own.png\">"), "{head}");
        assert!(!head.to_lowercase().contains("access-control"), "{head}");
        let (head, _) = client.get(&format!("{base}/moved"));
        assert!(
            head.starts_with("HTTP/1.1 302") && head.contains(&format!("ocation: {base}/next\r\n")),
            "{head}"
        );
        let (head, _) = client.get(&format!("{base}/away"));
        assert!(head.contains("ocation: http://other.example/x\r\n"), "{head}");
        // so that relative links work
        let (head, _) = client.get(&format!("{base}?a=b"));
        assert!(
            head.starts_with("HTTP/1.1 301") && head.contains(&format!("ocation: {base}/?a=b\r\n")),
            "{head}"
        );
    }
    let (head, body) = client.send(&format!("HEAD {PODS}/page"), Vec::new());
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
}

fn upgrade(client: &Client<'_>) {
    let proxy = client.proxy;
    let talk = move || {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        write!(
            stream,
            "GET {PODS}/any HTTP/1.1\r\nHost: {proxy}\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n"
        )
        .unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let status = lines.next().unwrap();
        assert!(status.contains(" 101 "), "{status}");
        let _headers: Vec<String> = lines.by_ref().take_while(|l| !l.is_empty()).collect();
        for word in ["one", "two"] {
            writeln!(stream, "{word}").unwrap();
            assert_eq!(lines.next().unwrap(), word.to_uppercase());
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(lines.next(), None, "the backend's end comes through");
    };
    client.cluster.net().run(talk).unwrap();
}

fn refusals(client: &Client<'_>) {
    let check = |path: &str, code: u16, message: &str| {
        let (head, body) = client.get(&format!("/api/v1/{path}"));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {code}")) && body.contains(message),
            "{path}: {head}{body}"
        );
    };
    check("namespaces/default/pods/nosuch/proxy/", 404, "pods \\\"nosuch\\\" not found");
    check("namespaces/default/pods/ftp:back:1/proxy/", 400, "invalid pod request \\\"ftp:back:1\\\"");
    check(
        "namespaces/default/services/back:81/proxy/",
        503,
        "no service port 81 found for service \\\"back\\\"",
    );
    check("namespaces/default/services/back/proxy/", 503, "no endpoints available for service \\\"back\\\"");
    check(
        "namespaces/default/pods/back:1/proxy/",
        503,
        &format!("error trying to reach service: dial tcp {HOST}:1: connect: connection refused"),
    );
    let patch = r#"{"status":{"podIP":"127.0.0.1","podIPs":[{"ip":"127.0.0.1"}]}}"#;
    let line = ["patch", "pod", "back", "--subresource", "status", "--type", "merge", "-p", patch];
    client.cluster.kubectl_args(&line).unwrap();
    check("namespaces/default/pods/back/proxy/", 400, "address not allowed");
    check("namespaces/default/services/back:web/proxy/", 503, "no endpoints available");
}

#[test]
fn a_nodes_kubelet_and_a_real_pod_answer_behind_the_proxy() {
    let mut cluster = cluster();
    cluster.use_client(tools::OLD);
    let raw = |path: &str| cluster.kubectl_args(&["get", "--raw", path]);
    assert_eq!(raw("/api/v1/nodes/node-1/proxy/healthz").unwrap(), "ok");
    assert!(raw("/api/v1/nodes/node-1:10250/proxy/pods").unwrap().contains("PodList"));
    assert!(raw("/api/v1/nodes/node-1/proxy/stats/summary").unwrap().contains("\"pods\""));
    let refused = raw("/api/v1/nodes/nosuch/proxy/healthz").unwrap_err().to_string();
    assert!(refused.contains("nodes \"nosuch\" not found"), "{refused}");

    let web = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
        containers:\n  - name: main\n    image: busybox:test\n    ports: [{containerPort: 8080}]\n    \
        command: [sh, -c, 'mkdir /w; echo here > /w/index.html; exec httpd -f -p 8080 -h /w']\n    \
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";
    cluster.apply(web).unwrap();
    wait_ready(&cluster, "app=web", 1);
    assert_eq!(raw("/api/v1/namespaces/default/pods/web/proxy/").unwrap(), "here\n");
    eventually("the service has endpoints", || {
        match raw("/api/v1/namespaces/default/services/web:80/proxy/") {
            Ok(page) if page == "here\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
