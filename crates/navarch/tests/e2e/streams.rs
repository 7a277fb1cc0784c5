//! Streams into pods by real clients: WebSocket as they speak it today, SPDY/3.1 as the ones before kubectl 1.31 do.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use testkit::{Cluster, eventually, tools};

use crate::{cluster, wait_ready};

/// What makes kubectl speak SPDY/3.1.
const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

/// `web`, `talk` and `shell`: a server, one that answers lines, the same with a terminal.
pub const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'mkdir /w; head -c 3000000 /dev/zero > /w/large; echo here > /w/index.html; exec httpd -f -p 127.0.0.1:8080 -h /w']
    readinessProbe: {exec: {command: [wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/']}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: talk, labels: {app: talk}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    stdin: true
    command: [sh, -c, 'while read line; do echo \"got $line\"; echo \"err $line\" >&2; done']
---
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    stdin: true
    tty: true
    command: [sh, -c, 'while read line; do echo \"<$line>\"; stty size; [ \"$line\" = end ] && exit 5; done']
";

struct Client<'a> {
    cluster: &'a Cluster,
    environment: &'static [(&'static str, &'static str)],
}

impl Client<'_> {
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.cluster.command(program).unwrap();
        command.args(arguments).envs(self.environment.iter().copied());
        command
    }

    /// Runs kubectl with `input`: exit code, output and error output.
    fn run(&self, arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
        let mut command = self.command("kubectl", arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // a program that does not read its input closes it early
        let _ = writer.join().unwrap();
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A child that ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn exec_attach_cp_and_port_forward_work_over_websocket_and_spdy() {
    let mut cluster = cluster();
    cluster.apply(PODS).unwrap();
    for app in ["web", "talk", "shell"] {
        wait_ready(&cluster, &format!("app={app}"), 1);
    }
    for minor in [tools::OLD, tools::NEW] {
        cluster.use_client(minor);
        everything(&cluster, &[&[], SPDY]);
        for environment in [&[], SPDY] {
            exec_without_reading(&Client { cluster: &cluster, environment });
        }
    }
    attach_to_a_terminal(&Client { cluster: &cluster, environment: SPDY }, "one");
    attach_to_a_terminal(&Client { cluster: &cluster, environment: &[] }, "end");
    eventually("the terminal's program has ended", || {
        let pod = cluster.get("pod shell").map_err(|e| e.to_string())?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        if ended == 5 { Ok(()) } else { Err(pod["status"].to_string()) }
    });
}

/// What the client that the cluster has does with [`PODS`], once for each of these environments.
pub fn everything(cluster: &Cluster, environments: &[&'static [(&'static str, &'static str)]]) {
    for &environment in environments {
        let client = Client { cluster, environment };
        exec(&client);
        copy(&client);
        attach(&client);
        port_forward(&client);
    }
}

fn exec(client: &Client<'_>) {
    let (code, out, err) =
        client.run(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!((code, out.as_slice()), (Some(7), &b"out\n"[..]), "{err}");
    assert!(err.contains("err\n") && err.contains("exit code 7"), "{err}");
    // more than any buffer on the way holds, both ways at once; and the end of the input comes through
    let block: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_be_bytes).take(3_000_000).collect();
    let (code, out, err) = client.run(&["exec", "-i", "web", "--", "sh", "-c", "cat; echo end"], &block);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.len() == block.len() + 4 && out.starts_with(&block), "{} bytes: {err}", out.len());
    let (code, _, err) = client.run(&["exec", "web", "--", "no-such-program"], b"");
    assert!(code.is_some_and(|c| c != 0) && err.contains("no-such-program"), "{code:?} {err}");
    let (code, _, err) = client.run(&["exec", "web", "-c", "nosuch", "--", "true"], b"");
    assert!(code == Some(1) && err.contains("container not found") || err.contains("nosuch"), "{err}");
    // a terminal of its own size, by script(1)
    // which comes by itself, before or after the program began
    let line = "stty rows 33 cols 99; kubectl exec -it web -- sh -c \
                'for i in $(seq 600); do test \"$(stty size)\" = \"33 99\" && break; sleep 0.1; done; stty size; exit 4'";
    let mut script = client.command("script", &["--quiet", "--return", "--command", line, "/dev/null"]);
    let output = script.stdin(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("33 99"), "{text}");
    assert_eq!(output.status.code(), Some(4), "{text}");
}

/// Input that nobody reads holds up neither the end nor how it ended.
fn exec_without_reading(client: &Client<'_>) {
    let block = vec![0; 3_000_000];
    for command in ["exit 7", "sleep 1; exit 7"] {
        let (code, _, err) = client.run(&["exec", "-i", "web", "--", "sh", "-c", command], &block);
        assert_eq!(code, Some(7), "{command}: {err}");
    }
}

fn copy(client: &Client<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let content: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    std::fs::write(&there, &content).unwrap();
    let run = |from: &str, to: &str| testkit::run(&mut client.command("kubectl", &["cp", from, to])).unwrap();
    run(there.to_str().unwrap(), "web:/tmp/copied");
    run("web:/tmp/copied", back.to_str().unwrap());
    assert!(std::fs::read(&back).unwrap() == content, "what was copied back differs");
}

fn attach(client: &Client<'_>) {
    let mut command = client.command("kubectl", &["attach", "-i", "talk"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let _child = Running(child);
    for word in ["one", "two"] {
        writeln!(stdin, "{word}").unwrap();
        assert!(out.any(|line| line == format!("got {word}")));
        assert!(err.any(|line| line == format!("err {word}")));
    }
}

fn attach_to_a_terminal(client: &Client<'_>, word: &str) {
    let line = "stty rows 21 cols 77; kubectl attach -it shell";
    let mut script = client.command("script", &["--quiet", "--return", "--command", line, "/dev/null"]);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let _child = Running(child);
    let mut seen = String::new();
    // The line that holds a text, once it is complete; what stands before it is not looked at again.
    let mut until = |text: &str| -> String {
        let mut buffer = [0; 1024];
        loop {
            if let Some(at) = seen.find(text)
                && let Some(end) = seen[at..].find('\n')
            {
                let rest = seen.split_off(at + end + 1);
                return std::mem::replace(&mut seen, rest);
            }
            let count = stdout.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the end before {text:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    until("pressing enter");
    // kubectl first asks for a size one larger, so that programs draw anew: the true one may come after a line
    for count in 0.. {
        writeln!(stdin, "size {count}").unwrap();
        until(&format!("<size {count}>"));
        if until("\n").contains("21 77") {
            break;
        }
        assert!(count < 1000, "the size never came");
    }
    writeln!(stdin, "{word}").unwrap();
    until(&format!("<{word}>"));
}

fn port_forward(client: &Client<'_>) {
    let mut command = client.command("kubectl", &["port-forward", "pod/web", ":8080", ":9"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let _child = Running(child);
    let mut local = |port: u16| -> std::net::SocketAddr {
        let line = lines.find(|l| l.contains("127.0.0.1:") && l.ends_with(&format!("-> {port}")));
        let line = line.expect("kubectl tells its port");
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let (web, closed) = (local(8080), local(9));
    assert_eq!(client.cluster.http_get(web, "/").unwrap(), "here\n");
    // several at once, each more than the buffers hold
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..4).map(|_| scope.spawn(|| client.cluster.http_get(web, "/large").unwrap().len())).collect();
        for one in all {
            assert_eq!(one.join().unwrap(), 3_000_000);
        }
    });
    // nobody listens there; kubectl may give up for good after that
    assert!(client.cluster.http_get(closed, "/").is_err());
    let error = errors.find(|line| line.contains("error")).expect("kubectl tells the error");
    assert!(error.contains("port 9") && error.to_lowercase().contains("refused"), "{error}");
}
