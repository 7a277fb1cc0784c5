//! Exec, attach and port-forwards over WebSocket and SPDY, as kubelets and clients speak them.

use cri::v1;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    spdy,
    support::{Node, shell},
};

#[derive(Debug)]
pub struct Client(WebSocketStream<TcpStream>);

pub async fn connect(url: &str, protocol: &str) -> Result<Client, String> {
    let uri: http::Uri = url.parse().unwrap();
    let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await.unwrap();
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    client_async(request, stream).await.map(|(socket, _)| Client(socket)).map_err(|error| error.to_string())
}

impl Client {
    pub async fn send(&mut self, channel: u8, content: &[u8]) {
        let bytes = [&[channel], content].concat();
        self.0.send(Message::Binary(bytes.into())).await.unwrap();
    }

    /// Reads until the connection closes: what came on each channel.
    pub async fn rest(&mut self) -> [String; 4] {
        let mut got: [Vec<u8>; 4] = Default::default();
        while let Some(Ok(message)) = self.0.next().await {
            if let Message::Binary(bytes) = message {
                got[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        got.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// Reads until `text` was seen on a channel.
    pub async fn until(&mut self, channel: u8, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.0.next().await.expect("the connection closed").unwrap() {
                Message::Binary(bytes) if bytes[0] == channel => {
                    seen.push_str(std::str::from_utf8(&bytes[1..]).unwrap())
                }
                _ => {}
            }
        }
    }
}

pub fn request(id: &str, script: &str, stdin: bool, tty: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_both_ways_and_tells_the_exit_code() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("exec").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let url = node
        .cri
        .exec(request(&id, "echo to-err >&2; cat; exit 3", true, false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = connect(&url, "v5.channel.k8s.io").await.unwrap();
    // More than any pipe holds, so that both directions must flow at once.
    let block = "0123456789abcdef".repeat(2048);
    for _ in 0..20 {
        client.send(0, block.as_bytes()).await;
    }
    client.send(255, &[0]).await;
    let [_, out, err, status] = client.rest().await;
    assert_eq!((out.len(), err.as_str()), (20 * block.len(), "to-err\n"));
    assert!(status.contains("NonZeroExitCode") && status.contains("\"message\":\"3\""), "{status}");
    // A URL is good once.
    assert!(connect(&url, "v5.channel.k8s.io").await.unwrap_err().contains("404"));
    let url = node.cri.exec(request(&id, "true", false, false)).await.unwrap().into_inner().url;
    let [_, _, _, status] = connect(&url, "v4.channel.k8s.io").await.unwrap().rest().await;
    assert!(status.contains("\"status\":\"Success\""), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_with_a_terminal_has_its_size_and_session() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("tty").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let script = "tty; echo ready; read go; stty size; exit 4";
    let url = node.cri.exec(request(&id, script, true, true)).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v4.channel.k8s.io").await.unwrap();
    client.until(1, "ready").await;
    client.send(4, b"{\"Width\":99,\"Height\":33}").await;
    client.send(0, b"go\n").await;
    let [_, out, _, status] = client.rest().await;
    assert!(out.contains("33 99"), "{out}");
    assert!(status.contains("\"message\":\"4\""), "{status}");
    let bad = v1::ExecRequest { stderr: true, ..request(&id, "true", true, true) };
    assert_eq!(node.cri.exec(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_sees_output_and_gives_input() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("attach").await;
    let mut config = shell("main", "while read line; do echo got $line; done; echo end; exit 0");
    config.stdin = true;
    config.stdin_once = true;
    let id = node.run(&sandbox, config).await;
    let attach =
        v1::AttachRequest { container_id: id.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    let url = node.cri.attach(attach).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v5.channel.k8s.io").await.unwrap();
    client.send(0, b"one\n").await;
    client.until(1, "got one\n").await;
    client.send(0, b"two\n").await;
    client.send(255, &[0]).await;
    let [_, out, _, status] = client.rest().await;
    assert_eq!(out, "got two\nend\n");
    assert!(status.contains("Success"), "{status}");
    let status = node.ended(&id).await;
    assert_eq!(crate::support::output(&crate::support::log(&status)), "got one\ngot two\nend\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn container_with_a_terminal_is_attached_and_logged() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("console").await;
    let mut config =
        shell("main", "stty -echo; [ -e /dev/console ] && tty; read line; echo got $line; exit 6");
    config.stdin = true;
    config.tty = true;
    let id = node.run(&sandbox, config).await;
    let attach =
        v1::AttachRequest { container_id: id.clone(), stdin: true, tty: true, stdout: true, stderr: false };
    let url = node.cri.attach(attach).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v5.channel.k8s.io").await.unwrap();
    client.send(0, b"hello\n").await;
    client.until(1, "got hello").await;
    let status = node.ended(&id).await;
    assert_eq!(status.exit_code, 6);
    let log = crate::support::log(&status);
    assert!(log.contains("/dev/pts/0") && log.contains("got hello"), "{log}");
}

/// The streams of a command over SPDY: error, standard input, output, and errors.
async fn over_spdy(url: &str, stdin: bool, tty: bool) -> (spdy::Client, [u32; 4]) {
    let mut client = spdy::Client::connect(url, "v4.channel.k8s.io").await.unwrap();
    let mut ids = [0; 4];
    for (at, kind) in ["error", "stdin", "stdout", "stderr"].into_iter().enumerate() {
        if (kind != "stdin" || stdin) && (kind != "stderr" || !tty) {
            ids[at] = client.open(&[("streamType", kind)]).await;
        }
    }
    if tty {
        client.open(&[("streamType", "resize")]).await;
    }
    (client, ids)
}

fn text(received: &spdy::Received, id: u32) -> String {
    received.get(&id).map_or_else(String::new, |bytes| String::from_utf8(bytes.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn spdy_has_the_same_streams_and_the_same_end() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("spdy").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let ask = request(&id, "echo out; echo err >&2; exit 3", false, false);
    let url = node.cri.exec(ask).await.unwrap().into_inner().url;
    assert!(spdy::Client::connect(&url, "v9.channel.k8s.io").await.err().unwrap().contains(" 403 "));
    let (mut client, [error, _, stdout, stderr]) = over_spdy(&url, false, false).await;
    let received = client.rest().await;
    assert_eq!((text(&received, stdout).as_str(), text(&received, stderr).as_str()), ("out\n", "err\n"));
    assert!(text(&received, error).contains("\"message\":\"3\""), "{received:?}");
    // with a terminal, whose input nobody closes
    let url = node.cri.exec(request(&id, "echo hello", true, true)).await.unwrap().into_inner().url;
    let (mut client, [error, _, stdout, _]) = over_spdy(&url, true, true).await;
    let received = client.rest().await;
    assert_eq!(text(&received, stdout), "hello\r\n");
    assert!(text(&received, error).contains("\"status\":\"Success\""), "{received:?}");
    // a shell that is attached to, and ends with its input
    let mut config = shell("shell", "");
    config.command = vec!["/bin/sh".to_owned()];
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.run(&sandbox, config).await;
    let attach = v1::AttachRequest { container_id: id, stdin: true, tty: false, stdout: true, stderr: true };
    let url = node.cri.attach(attach).await.unwrap().into_inner().url;
    let (mut client, [error, stdin, stdout, _]) = over_spdy(&url, true, false).await;
    client.send(stdin, b"echo hello\n", false).await;
    client.until(stdout, "hello\n").await;
    client.send(stdin, b"", true).await;
    let received = client.rest().await;
    assert_eq!(text(&received, stdout), "hello\n");
    assert!(text(&received, error).contains("\"status\":\"Success\""), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_nobody_reads_does_not_hold_up_the_end() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("unread").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let ask = || request(&id, "sleep 0.2; echo done; exit 7", true, false);
    let url = node.cri.exec(ask()).await.unwrap().into_inner().url;
    let (client, [error, stdin, stdout, _]) = over_spdy(&url, true, false).await;
    let received = client.flood(stdin).await;
    assert_eq!(text(&received, stdout), "done\n");
    assert!(text(&received, error).contains("\"message\":\"7\""), "{received:?}");
    let url = node.cri.exec(ask()).await.unwrap().into_inner().url;
    let (mut sink, mut messages) = connect(&url, "v5.channel.k8s.io").await.unwrap().0.split();
    let sending = async {
        let block = Message::Binary([&[0][..], &[b'x'; 32 * 1024]].concat().into());
        while sink.send(block.clone()).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let mut status = String::new();
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 3 => {
                    status.push_str(std::str::from_utf8(&bytes[1..]).unwrap());
                }
                _ => {}
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = reading => {}
    }
    assert!(status.contains("\"message\":\"7\""), "{status}");
}

const ASK: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// Asks a port over SPDY for its page.
async fn page_over_spdy(url: &str, port: u16) {
    let mut client = spdy::Client::connect(url, "portforward.k8s.io").await.unwrap();
    let port = port.to_string();
    let headers = |kind: &'static str| [("streamType", kind), ("port", port.as_str()), ("requestID", "0")];
    let error = client.open(&headers("error")).await;
    client.send(error, b"", true).await;
    let data = client.open(&headers("data")).await;
    client.send(data, ASK, false).await;
    client.until(data, "\r\n\r\nhello\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_are_forwarded_over_both_protocols() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("ports").await;
    let script = "mkdir /www; echo hello > /www/index.html; exec busybox httpd -f -p 127.0.0.1:80 -h /www";
    let id = node.run(&sandbox, shell("main", script)).await;
    node.exec_text(&id, "until busybox wget -q -O- 127.0.0.1; do sleep 0.05; done").await;
    let ask = |port: Vec<i32>| v1::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port };
    let url = node.cri.port_forward(ask(vec![])).await.unwrap().into_inner().url;
    page_over_spdy(&url, 80).await;
    let url = node.cri.port_forward(ask(vec![80, 81])).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v4.channel.k8s.io").await.unwrap();
    client.send(0, ASK).await;
    client.until(0, "\r\n\r\nhello\n").await;
    let url = node.cri.port_forward(ask(vec![81])).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v4.channel.k8s.io").await.unwrap();
    client.until(1, "failed to connect to localhost:81 inside the pod").await;
    let bad = node.cri.port_forward(ask(vec![70_000])).await.unwrap_err();
    assert_eq!(bad.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_in_the_nodes_network_are_the_nodes() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("host");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options =
        Some(v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() });
    let sandbox = node.run_sandbox(config).await;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = async {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut asked = vec![0; ASK.len()];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n").await.unwrap();
        asked
    };
    let ask = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: vec![] };
    let url = node.cri.port_forward(ask).await.unwrap().into_inner().url;
    let (asked, _) = tokio::join!(serving, page_over_spdy(&url, port));
    assert_eq!(asked, ASK);
}
