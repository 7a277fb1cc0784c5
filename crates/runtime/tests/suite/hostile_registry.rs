//! Registries that break off, stall, lie and point elsewhere: a server of a few lines says what each test needs.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cri::v1;
use parking_lot::Mutex;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Layer, Node, PATIENCE, eventually, gzip, oci_archive, sha256};

/// A request as it came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered; then the connection ends.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// `Content-Length`, when it is not the body's.
    announced: Option<u64>,
    /// After the body: nothing more, and no end.
    stall: bool,
    /// The body again and again.
    endless: bool,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into(), announced: None, stall: false, endless: false }
}

impl Answer {
    fn with(mut self, name: &str, value: impl ToString) -> Answer {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Script = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// A server on a free port of the loopback interface.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script): (_, Script) = (seen.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                running.spawn(serve(stream, log.clone(), script.clone()));
            }
        });
        Server { address, seen, task }
    }

    fn asked(&self, part: &str) -> Vec<Asked> {
        self.seen.lock().iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<Asked>>>, script: Script) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let asked = Asked {
        method: first.next().unwrap().to_owned(),
        path: first.next().unwrap().to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
    };
    log.lock().push(asked.clone());
    let reply = script(&asked);
    let mut out = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    if !reply.endless {
        let length = reply.announced.unwrap_or(reply.body.len() as u64);
        out.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &reply.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    // the other side may go away at any moment
    if stream.write_all(out.as_bytes()).await.is_err() || asked.method == "HEAD" {
        return;
    }
    loop {
        let wrote = stream.write_all(&reply.body).await;
        if wrote.is_err() || !reply.endless {
            break;
        }
    }
    if reply.stall {
        let _ = stream.read_u8().await;
    }
    let _ = stream.shutdown().await;
}

/// An image as a registry has it.
struct Image {
    manifest: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    layer: String,
}

/// One layer of random, hence large, content.
fn image(size: usize) -> Image {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let content: Vec<u8> = (0..size).map(|_| random()).collect();
    let plain = Layer::new().file("file", &content, 0o644).done();
    let layer = gzip(&plain);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&plain)]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(&layer), "size": layer.len()}],
    })
    .to_string()
    .into_bytes();
    let digest = sha256(&layer);
    Image {
        manifest,
        blobs: HashMap::from([(sha256(&config), config), (digest.clone(), layer)]),
        layer: digest,
    }
}

impl Image {
    /// What an honest registry answers.
    fn honest(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap();
        let last = path.rsplit('/').next().unwrap();
        if path.contains("/manifests/") {
            return answer(200, self.manifest.clone())
                .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                .with("Docker-Content-Digest", sha256(&self.manifest));
        }
        let Some(blob) = self.blobs.get(last) else { return answer(404, "") };
        match asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')) {
            Some(from) => {
                let from: usize = from.parse().unwrap();
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                answer(206, &blob[from..]).with("Content-Range", range)
            }
            None => answer(200, blob.clone()),
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.contains(&self.layer)
    }
}

/// The node reaches `server` over plain HTTP.
fn allow(node: &Node, server: &Server) {
    let text = format!("mirrors: {{\"{0}\": {{endpoint: [\"http://{0}\"]}}}}", server.address);
    fs::write(&node.config.registries.settings, text).unwrap();
}

async fn pull(node: &Node, name: &str, auth: Option<v1::AuthConfig>) -> Result<String, String> {
    let request = v1::PullImageRequest {
        image: Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() }),
        auth,
        sandbox_config: None,
    };
    let answer = node.images.clone().pull_image(request).await;
    answer.map(|answer| answer.into_inner().image_ref).map_err(|status| status.message().to_owned())
}

/// A disk of so many bytes.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, size: usize) -> Disk {
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Disk(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn count(node: &Node, dir: &str) -> usize {
    fs::read_dir(node.config.root.join(dir)).unwrap().count()
}

async fn quick() -> Node {
    Node::empty_with(Duration::from_millis(500)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_ended() {
    for ranges in [true, false] {
        let node = quick().await;
        let image = Arc::new(image(3_000_000));
        let (content, broken) = (image.clone(), Mutex::new(0));
        let server = Server::start(move |asked| {
            let mut reply = match ranges {
                true => content.honest(asked),
                false => content.honest(&Asked { headers: HashMap::new(), ..asked.clone() }),
            };
            let mut broken = broken.lock();
            if content.is_layer(asked) && *broken < 3 {
                *broken += 1;
                reply.announced = Some(reply.body.len() as u64);
                let keep = if ranges { 500_000 } else { 500_000 * *broken };
                reply.body.truncate(keep);
            }
            reply
        })
        .await;
        allow(&node, &server);
        pull(&node, &format!("{}/a/b:1", server.address), None).await.unwrap();
        let froms: Vec<_> =
            server.asked(&image.layer).iter().map(|asked| asked.header("range").map(str::to_owned)).collect();
        let from = |count: usize| Some(format!("bytes={count}-"));
        assert_eq!(froms, [None, from(500_000), from(1_000_000), from(1_500_000)]);
        assert_eq!((count(&node, "ingest"), count(&node, "layers")), (0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_send_the_rest_sends_the_whole_again() {
    for refusal in [416, 206] {
        let node = quick().await;
        let image = Arc::new(image(1_000_000));
        let (content, whole) = (image.clone(), Mutex::new(0));
        let server = Server::start(move |asked| {
            if asked.header("range").is_some() {
                return answer(refusal, "");
            }
            let mut reply = content.honest(asked);
            if content.is_layer(asked) {
                *whole.lock() += 1;
                if *whole.lock() == 1 {
                    reply.announced = Some(reply.body.len() as u64);
                    reply.body.truncate(500_000);
                }
            }
            reply
        })
        .await;
        allow(&node, &server);
        pull(&node, &format!("{}/a/b:1", server.address), None).await.unwrap();
        let froms: Vec<_> =
            server.asked(&image.layer).iter().map(|asked| asked.header("range").map(str::to_owned)).collect();
        assert_eq!(froms, [None, Some("bytes=500000-".to_owned()), None], "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_or_killed_is_resumed() {
    let mut node = quick().await;
    node.config.registries.idle = Duration::from_secs(1000);
    node.restart().await;
    let image = Arc::new(image(2_000_000));
    let (content, stalls) = (image.clone(), Arc::new(Mutex::new(true)));
    let stall = stalls.clone();
    let server = Server::start(move |asked| {
        let mut reply = content.honest(asked);
        if content.is_layer(asked) && *stall.lock() {
            reply.announced = Some(reply.body.len() as u64);
            reply.body.truncate(700_000);
            reply.stall = true;
        }
        reply
    })
    .await;
    allow(&node, &server);
    let name = format!("{}/a/b:1", server.address);
    let part = node.config.root.join("ingest").join(&image.layer[7..]);
    let got = || fs::metadata(&part).map_or(0, |metadata| metadata.len());
    tokio::select! {
        ended = pull(&node, &name, None) => panic!("{ended:?}"),
        () = eventually("the first part has come", || got() == 700_000) => {}
    }
    assert_eq!(node.runtime.list_images(), []);
    node.restart().await;
    assert_eq!(got(), 700_000);
    *stalls.lock() = false;
    pull(&node, &name, None).await.unwrap();
    let last = server.asked(&image.layer).pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=700000-"));
    assert_eq!((count(&node, "ingest"), node.runtime.list_images().len()), (0, 1));

    // A part that a crash has torn is found out and fetched anew.
    node.runtime.remove_image(&name).await.unwrap();
    fs::write(&part, vec![7; 900_000]).unwrap();
    pull(&node, &name, None).await.unwrap();
    // Content whose image was never listed is checked before it counts.
    let blob = node.config.root.join("blobs/sha256").join(&image.layer[7..]);
    node.runtime.remove_image(&name).await.unwrap();
    fs::write(&blob, vec![7; 1000]).unwrap();
    node.restart().await;
    pull(&node, &name, None).await.unwrap();
    assert_eq!(sha256(&fs::read(&blob).unwrap()), image.layer);
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_and_faults_are_told_by_image_registry_and_cause() {
    let content = Arc::new(image(400_000));
    type Lie = Box<dyn Fn(&Image, &Asked, Answer) -> Answer + Send + Sync>;
    let manifest = |change: fn(&mut Value)| -> Lie {
        Box::new(move |_, asked, reply| {
            if !asked.path.contains("/manifests/") {
                return reply;
            }
            let mut document: Value = serde_json::from_slice(&reply.body).unwrap();
            change(&mut document);
            answer(200, document.to_string())
        })
    };
    let layer = |change: fn(Answer) -> Answer| -> Lie {
        Box::new(move |image, asked, reply| if image.is_layer(asked) { change(reply) } else { reply })
    };
    let everything = |change: fn(&Asked) -> Answer| -> Lie { Box::new(move |_, asked, _| change(asked)) };
    let cases: Vec<(&str, Lie)> = vec![
        (
            "came with digest",
            layer(|mut reply| {
                if let Some(last) = reply.body.last_mut() {
                    *last ^= 1;
                }
                reply
            }),
        ),
        (
            "bytes, but",
            layer(|mut reply| {
                reply.body.push(0);
                reply
            }),
        ),
        (
            "has more than the",
            layer(|mut reply| {
                reply.endless = true;
                reply
            }),
        ),
        (
            "sent nothing for 0.5 s",
            layer(|mut reply| {
                reply.announced = Some(reply.body.len() as u64);
                reply.body.clear();
                reply.stall = true;
                reply
            }),
        ),
        (
            "end of file before message length reached",
            layer(|mut reply| {
                reply.announced = Some(reply.body.len() as u64);
                reply.body.clear();
                reply
            }),
        ),
        ("not found", layer(|_| answer(404, ""))),
        ("unexpected status 500 Internal Server Error: out of order", layer(|_| answer(500, "out of order"))),
        (
            "answers 206 Partial Content to a download",
            layer(|reply| answer(206, reply.body).with("Content-Range", "bytes 7-9/10")),
        ),
        ("larger than 4194304 bytes", everything(|_| answer(200, vec![b' '; 5 << 20]))),
        ("redirects more than 10 times", everything(|_| answer(302, "").with("Location", "/again"))),
        ("redirects to no address", everything(|_| answer(302, "").with("Location", "file:///etc/passwd"))),
        (
            "sent nothing for 0.5 s",
            everything(|_| Answer { stall: true, announced: Some(5), ..answer(200, "") }),
        ),
        (
            "not found: manifest unknown",
            everything(|_| {
                answer(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
            }),
        ),
        (
            "not authorized: no such token (no credentials were given for it)",
            everything(|_| {
                answer(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no such token"}]}"#)
                    .with("WWW-Authenticate", "Basic realm=x")
            }),
        ),
        ("not authorized: not yours", everything(|_| answer(403, "not yours"))),
        ("schema 1", manifest(|document| document["schemaVersion"] = json!(1))),
        ("an index and a manifest at once", manifest(|document| document["manifests"] = json!([]))),
        (
            "it is no image to run",
            manifest(|document| {
                document["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
            }),
        ),
        ("bytes are too many", manifest(|document| document["layers"][0]["size"] = json!(1_u64 << 60))),
        ("is not a digest", manifest(|document| document["layers"][0]["digest"] = json!("sha256:../../etc"))),
        (
            "2 are there",
            manifest(|document| {
                let layer = document["layers"][0].clone();
                document["layers"] = json!([layer.clone(), layer]);
            }),
        ),
        (
            "no match for platform",
            everything(|_| {
                let other = json!({"digest": sha256(b""), "size": 1, "platform": {"os": "plan9", "architecture": "mips"}});
                answer(200, json!({"schemaVersion": 2, "manifests": [other]}).to_string())
            }),
        ),
        (
            "nested too deep",
            everything(|_| {
                // points to itself, were that possible: the digest is not looked at before the depth
                answer(
                    200,
                    json!({"schemaVersion": 2, "manifests": [{"digest": sha256(b""), "size": 1}]})
                        .to_string(),
                )
            }),
        ),
        ("EOF while parsing", everything(|_| answer(200, "{"))),
    ];
    let deep = "nested too deep";
    for (expected, lie) in cases {
        let node = quick().await;
        let honest = content.clone();
        let server = Server::start(move |asked| {
            let reply = honest.honest(asked);
            lie(&honest, asked, reply)
        })
        .await;
        allow(&node, &server);
        let name = format!("{}/a/b:1", server.address);
        let begin = Instant::now();
        let error = pull(&node, &name, None).await.unwrap_err();
        // an index that names itself cannot exist: its digest does not fit
        let expected = if expected == deep { "came with digest" } else { expected };
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains(&name), "{error}");
        assert!(begin.elapsed() < PATIENCE, "{expected}");
        assert!(node.runtime.list_images().is_empty(), "{expected}");
        let left = ["layers", "staging", "blobs/sha256"].map(|dir| count(&node, dir));
        assert_eq!(left, [0; 3], "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_disk_has_no_room_for_leaves_nothing_of_it() {
    let mut node = quick().await;
    let disk = Disk::new(&node.config.root, 5 << 20);
    node.restart().await;
    let left = |node: &Node| ["blobs/sha256", "ingest", "layers", "staging"].map(|dir| count(node, dir));
    let archive = node.path("archive.tar");
    let plain = Layer::new().file("file", &vec![7; 3_000_000], 0o644).done();
    fs::write(&archive, oci_archive("box", &[(plain.clone(), plain)], json!({}))).unwrap();
    let error = node.runtime.import_image(&archive).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    assert_eq!(left(&node), [0; 4]);
    // neither the content and its layer, nor the content alone, nor the layer after it
    for (size, room) in [(3_000_000, false), (6_000_000, false), (1_000_000, true)] {
        let content = image(size);
        let server = Server::start(move |asked| content.honest(asked)).await;
        allow(&node, &server);
        let pulled = pull(&node, &format!("{}/a/b:1", server.address), None).await;
        if room {
            pulled.unwrap();
            assert_eq!(count(&node, "layers"), 1);
            continue;
        }
        let error = pulled.unwrap_err();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(left(&node), [0; 4], "{size}");
    }
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_and_no_other_host_sees_credentials() {
    let content = Arc::new(image(10_000));
    let elsewhere = {
        let content = content.clone();
        Server::start(move |asked| content.honest(asked)).await
    };
    let (honest, storage) = (content.clone(), elsewhere.address);
    let own = Arc::new(Mutex::new(String::new()));
    let me = own.clone();
    let server = Server::start(move |asked| {
        let host = me.lock().clone();
        if asked.path.starts_with("/token?") {
            let known = asked.header("authorization") == Some("Basic bWU6c2VjcmV0");
            let scope = "scope=repository%3Aa%2Fb%3Apull";
            return match known && asked.path.contains(scope) && asked.path.contains("service=reg.test") {
                true => answer(200, r#"{"token": "t0ken", "expires_in": 60}"#),
                false => answer(401, r#"{"details": "incorrect username or password"}"#),
            };
        }
        if asked.header("authorization") != Some("Bearer t0ken") {
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"reg.test\",scope=\"repository:a/b:pull\""
            );
            return answer(401, "").with("WWW-Authenticate", challenge);
        }
        if honest.is_layer(asked) {
            return answer(307, "").with("Location", format!("http://{storage}/store/{}", honest.layer));
        }
        honest.honest(asked)
    })
    .await;
    *own.lock() = server.address.to_string();
    let node = quick().await;
    allow(&node, &server);
    let name = format!("{}/a/b:1", server.address);
    let auth = |password: &str| {
        Some(v1::AuthConfig { username: "me".into(), password: password.into(), ..Default::default() })
    };
    let error = pull(&node, &name, auth("wrong")).await.unwrap_err();
    assert!(error.contains("not authorized: incorrect username or password"), "{error}");
    pull(&node, &name, auth("secret")).await.unwrap();
    assert_eq!(server.asked("/token").len(), 2, "one token for all requests of a pull");
    let there = elsewhere.asked("/store/");
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].header("authorization"), None);
    // Credentials of before do not help who comes without.
    node.runtime.remove_image(&name).await.unwrap();
    assert!(pull(&node, &name, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_first_and_get_only_their_own_credentials() {
    let content = Arc::new(image(10_000));
    let honest = content.clone();
    let mirror = Server::start(move |asked| match asked.path.contains("/cache/a/") {
        true if asked.header("authorization") == Some("Basic bm9kZTpw") => honest.honest(asked),
        true => answer(401, "").with("WWW-Authenticate", "Basic realm=x"),
        false => answer(404, ""),
    })
    .await;
    let honest = content.clone();
    let own = Server::start(move |asked| honest.honest(asked)).await;
    let node = quick().await;
    let text = format!(
        "mirrors:\n  reg.test:\n    endpoint: ['http://127.0.0.1:1', 'http://{0}']\n    rewrite: {{'^a/(.*)': 'cache/a/$1'}}\n  \
         '{1}': {{endpoint: ['http://{0}', 'http://{1}']}}\nconfigs:\n  '{0}': {{auth: {{username: node, password: p}}}}\n",
        mirror.address, own.address
    );
    fs::write(&node.config.registries.settings, text).unwrap();
    let pod = Some(v1::AuthConfig { username: "pod".into(), password: "p".into(), ..Default::default() });
    pull(&node, "reg.test/a/b:1", pod.clone()).await.unwrap();
    let asked = mirror.asked("/cache/a/b/manifests/1");
    assert!(asked.iter().all(|asked| asked.path.ends_with("?ns=reg.test")), "{asked:?}");
    assert_eq!(asked.last().unwrap().header("authorization"), Some("Basic bm9kZTpw"));
    // What the mirror does not have comes from the registry itself.
    pull(&node, &format!("{}/x/y:1", own.address), pod).await.unwrap();
    assert!(!mirror.asked("/x/y/manifests/1").is_empty());
    assert_eq!(node.runtime.list_images().len(), 1, "the same image under two names");
    // A file with a mistake stops every pull, and says where.
    fs::write(&node.config.registries.settings, "mirrors: {a: {endpoints: []}}").unwrap();
    let error = pull(&node, "reg.test/a/b:1", None).await.unwrap_err();
    assert!(error.contains("registries.yaml") && error.contains("endpoints"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_is_not_awaited_but_the_registry_itself_is() {
    type Fault = fn() -> Answer;
    let busy: Fault = || answer(429, "").with("Retry-After", 3600);
    let silent: Fault = || Answer { stall: true, announced: Some(5), ..answer(200, "") };
    let faults: [Fault; 3] = [|| answer(503, ""), busy, silent];
    for (at, fault) in faults.into_iter().enumerate() {
        for part in ["/manifests/", "/blobs/"] {
            let content = Arc::new(image(10_000));
            let honest = content.clone();
            let mirror = Server::start(move |asked| match asked.path.contains(part) {
                true => fault(),
                false => honest.honest(asked),
            })
            .await;
            let (honest, first) = (content.clone(), Mutex::new(true));
            let own = Server::start(move |asked| match std::mem::take(&mut *first.lock()) {
                true => answer(503, ""),
                false => honest.honest(asked),
            })
            .await;
            let node = quick().await;
            let text = format!(
                "mirrors: {{'{1}': {{endpoint: ['http://{0}', 'http://{1}']}}}}",
                mirror.address, own.address
            );
            fs::write(&node.config.registries.settings, text).unwrap();
            pull(&node, &format!("{}/a/b:1", own.address), None).await.unwrap();
            // once for each document or content
            let paths: Vec<String> = mirror.asked(part).into_iter().map(|asked| asked.path).collect();
            let different: std::collections::BTreeSet<&String> = paths.iter().collect();
            assert_eq!(different.len(), paths.len(), "{at} {paths:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_another_registry_are_not_sent() {
    let content = Arc::new(image(10_000));
    let honest = content.clone();
    let server = Server::start(move |asked| match asked.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => honest.honest(asked),
        _ => answer(401, "").with("WWW-Authenticate", "Basic realm=x"),
    })
    .await;
    let node = quick().await;
    allow(&node, &server);
    let name = format!("{}/a/b:1", server.address);
    let auth = |address: &str| {
        let (username, password) = ("me".to_owned(), "secret".to_owned());
        Some(v1::AuthConfig { username, password, server_address: address.to_owned(), ..Default::default() })
    };
    let error = pull(&node, &name, auth("https://other.test")).await.unwrap_err();
    assert!(error.contains("no credentials were given for it"), "{error}");
    assert!(server.seen.lock().iter().all(|asked| asked.header("authorization").is_none()));
    pull(&node, &name, auth(&format!("https://{}/v2/", server.address))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_once_fetch_and_unpack_it_once() {
    let content = Arc::new(image(1_000_000));
    let honest = content.clone();
    let server = Server::start(move |asked| honest.honest(asked)).await;
    let node = quick().await;
    allow(&node, &server);
    let names: Vec<String> = (0..8).map(|i| format!("{}/a/b:{i}", server.address)).collect();
    let pulls = names.iter().map(|name| pull(&node, name, None));
    let ids = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(server.asked(&content.layer).len(), 1);
    let images = node.runtime.list_images();
    assert_eq!((images.len(), images[0].tags.len()), (1, 8));
    // Again: one question each, and no content.
    let before = server.seen.lock().len();
    pull(&node, &names[0], None).await.unwrap();
    let again: Vec<String> = server.seen.lock()[before..].iter().map(|asked| asked.method.clone()).collect();
    assert_eq!(again, ["HEAD"]);
}
