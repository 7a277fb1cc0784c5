//! Debian's D-Bus daemon on a socket of its own, and a logind on it that does what the test says.

use std::io::BufRead as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use zbus::message::{Message, Type};
use zbus::{Connection, MessageStream, Variant};

/// The daemon, and the libraries that a small system lacks.
const PACKAGES: [&str; 14] = [
    "dbus-daemon",
    "libdbus-1-3",
    "libexpat1",
    "libapparmor1",
    "libaudit1",
    "libcap-ng0",
    "libselinux1",
    "libpcre2-8-0",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "libzstd1",
];

/// A bus; it ends with this.
pub struct Bus {
    pub address: String,
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Bus {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = folder.path().join("bus.conf");
        let socket = folder.path().join("bus");
        let text = format!(
            "<busconfig><listen>unix:path={}</listen><policy context='default'><allow user='*'/><allow own='*'/>\
             <allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).expect("configuration");
        let mut command = testkit::debian::command("dbus-daemon", &PACKAGES).expect("dbus-daemon");
        command.arg(format!("--config-file={}", config.display()));
        command.args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"]).stdout(Stdio::piped());
        let mut daemon = command.spawn().expect("it starts");
        let mut address = String::new();
        // told once it listens
        let told = std::io::BufReader::new(daemon.stdout.take().expect("output")).read_line(&mut address);
        told.expect("an address");
        Self { address: address.trim().to_owned(), daemon, folder }
    }

    /// Where logind's configuration is added to.
    pub fn additions(&self) -> PathBuf {
        self.folder.path().join("logind.conf.d")
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[derive(Default)]
struct Books {
    /// The longest wait.
    delay: Duration,
    down: bool,
    /// What locks were asked for with.
    asked: Vec<[String; 4]>,
    /// The other ends of the locks.
    locks: Vec<Option<pipe::Receiver>>,
}

/// logind, and the part of systemd that makes it read its configuration.
pub struct Logind {
    connection: Connection,
    books: watch::Sender<Books>,
    work: tokio::task::JoinHandle<()>,
}

const NAMES: [&str; 2] = ["org.freedesktop.systemd1", "org.freedesktop.login1"];

impl Logind {
    /// Waits for those who hold locks so long at most, until told otherwise.
    pub async fn start(bus: &Bus, delay: Duration) -> Self {
        let address = bus.address.as_str();
        let connection = zbus::connection::Builder::address(address).build().await.expect("the bus");
        let books = watch::Sender::new(Books { delay, ..Books::default() });
        let messages = MessageStream::from(&connection);
        let work = tokio::spawn(serve(messages, connection.clone(), books.clone(), bus.additions()));
        for name in NAMES {
            connection.request_name(name).await.expect("the name");
        }
        Self { connection, books, work }
    }

    /// It ends, and its name is free.
    pub async fn end(self) {
        self.work.abort();
        self.connection.close().await.expect("closed");
    }

    /// The machine goes down, or no longer does.
    pub async fn goes_down(&self, down: bool) {
        self.books.send_modify(|books| books.down = down);
        let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
        let sent = self.connection.emit_signal(None::<&str>, path, interface, "PrepareForShutdown", &down);
        sent.await.expect("sent");
    }

    /// Waits for the lock of that number, from 1 on: what it was asked for with.
    pub async fn until_locked(&self, number: usize) -> [String; 4] {
        let mut books = self.books.subscribe();
        let there = books.wait_for(|books| books.locks.len() >= number);
        let books = tokio::time::timeout(TIME, there).await.expect("a lock").expect("books");
        books.asked[number - 1].clone()
    }

    /// Whether somebody holds that lock.
    pub fn holds(&self, number: usize) -> bool {
        let books = self.books.borrow();
        let lock = books.locks[number - 1].as_ref().expect("nobody waits for it");
        match rustix::io::read(lock, &mut [0; 1]) {
            Ok(0) => false,
            Err(rustix::io::Errno::AGAIN) => true,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until nobody holds that lock.
    pub async fn until_released(&self, number: usize) {
        let mut lock = None;
        self.books.send_modify(|books| lock = books.locks[number - 1].take());
        let mut byte = [0; 1];
        let mut lock = lock.expect("nobody waits for it");
        let read = tokio::time::timeout(TIME, lock.read(&mut byte)).await;
        assert_eq!(read.expect("released").expect("read"), 0);
    }
}

/// For what takes moments.
const TIME: Duration = Duration::from_secs(120);

async fn serve(
    mut messages: MessageStream,
    connection: Connection,
    books: watch::Sender<Books>,
    additions: PathBuf,
) {
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Type::MethodCall {
            answer(&message, &connection, &books, &additions).await.expect("an answer");
        }
    }
}

async fn answer(
    message: &Message,
    connection: &Connection,
    books: &watch::Sender<Books>,
    additions: &Path,
) -> zbus::Result<()> {
    let header = message.header();
    let body = message.body();
    match header.member().map(|name| name.as_str()).unwrap_or_default() {
        "Get" => {
            let (_, name): (String, String) = body.deserialize()?;
            let value = match name.as_str() {
                "InhibitDelayMaxUSec" => {
                    let micros = books.borrow().delay.as_micros();
                    Variant::from(u64::try_from(micros).expect("fits"))
                }
                "PreparingForShutdown" => Variant::from(books.borrow().down),
                other => panic!("no property {other}"),
            };
            connection.reply(&header, &value).await
        }
        "Inhibit" => {
            let (what, who, why, mode): (String, String, String, String) = body.deserialize()?;
            let (read, write) = std::io::pipe()?;
            let read = pipe::Receiver::from_owned_fd(OwnedFd::from(read))?;
            connection.reply(&header, &zbus::Fd::from(OwnedFd::from(write))).await?;
            books.send_modify(|books| {
                books.asked.push([what, who, why, mode]);
                books.locks.push(Some(read));
            });
            Ok(())
        }
        "KillUnit" => {
            let asked: (String, String, i32) = body.deserialize()?;
            assert_eq!(asked, ("systemd-logind.service".to_owned(), "all".to_owned(), 1));
            let text = std::fs::read_to_string(additions.join("99-kubelet.conf"))?;
            let seconds = text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec="));
            let seconds = seconds.and_then(|text| text.parse().ok()).expect("seconds");
            books.send_modify(|books| books.delay = Duration::from_secs(seconds));
            connection.reply(&header, &()).await
        }
        other => panic!("no method {other}"),
    }
}
