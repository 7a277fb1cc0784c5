//! Exec and attach over WebSocket, as kubelets and clients speak it.

use cri::v1;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::support::{Node, shell};

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
