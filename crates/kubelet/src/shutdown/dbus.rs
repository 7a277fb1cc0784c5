//! As much of D-Bus as it takes to speak with systemd: method calls of strings and numbers, their answers with descriptors,
//! and signals.
//!
//! Rule: D-Bus Specification, "Message Protocol", "Authentication Protocol". Messages are little-endian; what others send in
//! big-endian is refused, which no bus on a machine of ours does.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Longest message, and longest line of the greeting; the bus has nothing longer to say to us.
const MESSAGE: usize = 1 << 20;
const LINE: usize = 1024;
/// Most descriptors that come at once.
const DESCRIPTORS: usize = 4;

/// Kinds of messages.
const CALL: u8 = 1;
const ANSWER: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Who is called, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Method<'a> {
    /// Bus name, for example `org.freedesktop.login1`.
    pub name: &'a str,
    /// Object.
    pub path: &'a str,
    /// Interface.
    pub interface: &'a str,
    /// Member.
    pub member: &'a str,
}

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// `s`.
    Text(&'a str),
    /// `i`.
    Number(i32),
}

/// A message that came.
#[derive(Debug, Default)]
pub struct Message {
    kind: u8,
    reply_to: u32,
    /// The member of a signal.
    pub member: String,
    error: String,
    /// So many descriptors belong to it.
    count: usize,
    /// Its arguments.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// A boolean, where the body is one.
    pub fn flag(&self) -> Option<bool> {
        Some(Reader { bytes: &self.body, at: 0 }.number()? != 0)
    }

    /// A number of 64 bits in a variant, where the body is one.
    pub fn long(&self) -> Option<u64> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        (reader.signature()? == "t").then_some(())?;
        reader.align(8);
        let bytes = self.body.get(reader.at..reader.at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// A connection to a bus.
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// What came and is not read yet.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    signals: VecDeque<Message>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Bus {
    /// Connects to the bus whose socket is at `path`, as the user of this process.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path).await?;
        let user: String =
            rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
        expect(&mut stream, "OK ").await?;
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
        expect(&mut stream, "AGREE_UNIX_FD").await?;
        stream.write_all(b"BEGIN\r\n").await?;
        let (bytes, descriptors, signals) = (Vec::new(), Vec::new(), VecDeque::new());
        let mut bus = Self { stream, serial: 0, bytes, descriptors, signals };
        bus.call(of_bus("Hello"), &[]).await?;
        Ok(bus)
    }

    /// Has signals sent that match a rule.
    pub async fn follow(&mut self, rule: &str) -> io::Result<()> {
        self.call(of_bus("AddMatch"), &[Argument::Text(rule)]).await.map(drop)
    }

    /// Calls a method; the answer.
    pub async fn call(&mut self, method: Method<'_>, arguments: &[Argument<'_>]) -> io::Result<Message> {
        self.serial += 1;
        self.stream.write_all(&request(self.serial, method, arguments)).await?;
        loop {
            let message = self.receive().await?;
            match message.kind {
                ANSWER if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let text = Reader { bytes: &message.body, at: 0 }.text().unwrap_or_default();
                    return Err(io::Error::other(format!("{}: {text}", message.error)));
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// Waits for the next signal.
    pub async fn signal(&mut self) -> io::Result<Message> {
        if let Some(message) = self.signals.pop_front() {
            return Ok(message);
        }
        loop {
            let message = self.receive().await?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    /// Waits for the next message. A wait that is given up loses nothing.
    async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some((mut message, length)) = parse(&self.bytes)? {
                self.bytes.drain(..length);
                let count = message.count.min(self.descriptors.len());
                message.descriptors = self.descriptors.drain(..count).collect();
                return Ok(message);
            }
            let mut block = [0; 4096];
            let stream = &self.stream;
            let (count, came) = stream.async_io(Interest::READABLE, || read(stream, &mut block)).await?;
            self.descriptors.extend(came);
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes.extend_from_slice(&block[..count]);
        }
    }
}

fn of_bus(member: &str) -> Method<'_> {
    const NAME: &str = "org.freedesktop.DBus";
    Method { name: NAME, path: "/org/freedesktop/DBus", interface: NAME, member }
}

fn read(stream: &UnixStream, block: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut [IoSliceMut::new(block)], &mut ancillary, flags)?;
    let mut came = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            came.extend(rights);
        }
    }
    Ok((got.bytes, came))
}

/// Reads a line of the greeting.
async fn expect(stream: &mut UnixStream, begin: &str) -> io::Result<()> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > LINE {
            return Err(broken("the bus does not greet"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&line);
    if line.starts_with(begin) { Ok(()) } else { Err(broken(&format!("the bus says {:?}", line.trim_end()))) }
}

/// Writes values, each aligned as its kind wants it.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    /// A field of a header: a variant with its number before it.
    fn field(&mut self, number: u8, kind: &str, value: &str) {
        self.align(8);
        self.0.push(number);
        self.signature(kind);
        if kind == "g" { self.signature(value) } else { self.text(value) }
    }
}

fn request(serial: u32, method: Method<'_>, arguments: &[Argument<'_>]) -> Vec<u8> {
    let (mut body, mut signature) = (Writer::default(), String::new());
    for argument in arguments {
        match argument {
            Argument::Text(text) => {
                signature.push('s');
                body.text(text);
            }
            Argument::Number(number) => {
                signature.push('i');
                body.number(number.cast_unsigned());
            }
        }
    }
    let mut fields = Writer::default();
    fields.field(1, "o", method.path);
    fields.field(2, "s", method.interface);
    fields.field(3, "s", method.member);
    fields.field(6, "s", method.name);
    if !signature.is_empty() {
        fields.field(8, "g", &signature);
    }
    message(CALL, serial, &fields, &body.0)
}

fn message(kind: u8, serial: u32, fields: &Writer, body: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut whole = Writer(vec![b'l', kind, 0, 1]);
    whole.number(length(body));
    whole.number(serial);
    // the fields begin at a multiple of eight, so that they are aligned as they were by themselves
    whole.number(length(&fields.0));
    whole.0.extend(&fields.0);
    whole.align(8);
    whole.0.extend(body);
    whole.0
}

/// Reads values out of what others sent.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let count = usize::try_from(self.number()?).ok()?;
        let text = std::str::from_utf8(self.take(count)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let count = usize::from(self.take(1)?[0]);
        let text = std::str::from_utf8(self.take(count)?).ok()?;
        self.take(1)?;
        Some(text)
    }
}

/// The message that `bytes` begin with, and its length; none where it is not there as a whole.
fn parse(bytes: &[u8]) -> io::Result<Option<(Message, usize)>> {
    let mut reader = Reader { bytes, at: 0 };
    let Some(head) = reader.take(16) else { return Ok(None) };
    if head[0] != b'l' {
        return Err(broken("a message of the bus is not little-endian"));
    }
    let size = |at: usize| {
        let number = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        usize::try_from(u32::from_le_bytes(number)).ok().filter(|size| *size <= MESSAGE)
    };
    let (Some(body), Some(fields)) = (size(4), size(12)) else {
        return Err(broken("a message of the bus is too long"));
    };
    let begin = (16 + fields).next_multiple_of(8);
    let Some(content) = bytes.get(begin..begin + body) else { return Ok(None) };
    let mut message = Message { kind: head[1], body: content.to_vec(), ..Message::default() };
    let mut reader = Reader { bytes: &bytes[..16 + fields], at: 16 };
    read_fields(&mut reader, &mut message).ok_or_else(|| broken("a message of the bus has no such head"))?;
    Ok(Some((message, begin + body)))
}

fn read_fields(reader: &mut Reader<'_>, message: &mut Message) -> Option<()> {
    while reader.at < reader.bytes.len() {
        reader.align(8);
        let number = reader.take(1)?[0];
        match (reader.signature()?, number) {
            ("u", 5) => message.reply_to = reader.number()?,
            ("u", 9) => message.count = usize::try_from(reader.number()?).ok()?,
            ("u", _) => drop(reader.number()?),
            ("g", _) => drop(reader.signature()?),
            ("s", 3) => message.member = reader.text()?.to_owned(),
            ("s", 4) => message.error = reader.text()?.to_owned(),
            ("s" | "o", _) => drop(reader.text()?),
            _ => return None,
        }
    }
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd as _;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// The bus itself: one client, asked for and answered by a test.
    pub struct Server(Bus);

    impl Server {
        /// Takes a client, and greets it.
        pub async fn accept(listener: &tokio::net::UnixListener) -> Self {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 0);
            for (wanted, answer) in
                [("AUTH EXTERNAL ", "OK 1234\r\n"), ("NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD\r\n"), ("BEGIN", "")]
            {
                expect(&mut stream, wanted).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            let (bytes, descriptors, signals) = (Vec::new(), Vec::new(), VecDeque::new());
            let mut server = Self(Bus { stream, serial: 0, bytes, descriptors, signals });
            assert_eq!(server.next().await, "Hello");
            server.answer("s", |body| body.text(":1.1"), None);
            server
        }

        /// The next call: its member and arguments that are texts.
        pub async fn next(&mut self) -> String {
            let message = self.0.receive().await.unwrap();
            self.0.serial += 1;
            let mut reader = Reader { bytes: &message.body, at: 0 };
            let mut words = vec![message.member];
            while reader.at < message.body.len() {
                match reader.text() {
                    Some(text) => words.push(text.to_owned()),
                    None => break,
                }
            }
            words.join(" ")
        }

        fn send(&mut self, bytes: &[u8], descriptor: Option<OwnedFd>) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
            if !descriptors.is_empty() {
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
            }
            let flags = SendFlags::empty();
            let sent = sendmsg(&self.0.stream, &[IoSlice::new(bytes)], &mut ancillary, flags).unwrap();
            assert_eq!(sent, bytes.len());
        }

        fn answer(&mut self, signature: &str, write: impl FnOnce(&mut Writer), descriptor: Option<OwnedFd>) {
            let (mut fields, mut body) = (Writer::default(), Writer::default());
            fields.align(8);
            fields.0.push(5);
            fields.signature("u");
            fields.number(self.0.serial);
            if !signature.is_empty() {
                fields.field(8, "g", signature);
            }
            if descriptor.is_some() {
                fields.align(8);
                fields.0.push(9);
                fields.signature("u");
                fields.number(1);
            }
            write(&mut body);
            self.send(&message(ANSWER, 1, &fields, &body.0), descriptor);
        }

        pub fn nothing(&mut self) {
            self.answer("", |_| {}, None);
        }

        pub fn long(&mut self, value: u64) {
            let write = |body: &mut Writer| {
                body.signature("t");
                body.align(8);
                body.0.extend(value.to_le_bytes());
            };
            self.answer("v", write, None);
        }

        pub fn descriptor(&mut self, descriptor: OwnedFd) {
            self.answer("h", |body| body.number(0), Some(descriptor));
        }

        pub fn signal(&mut self, member: &str, value: bool) {
            let (mut fields, mut body) = (Writer::default(), Writer::default());
            fields.field(1, "o", "/org/freedesktop/login1");
            fields.field(2, "s", "org.freedesktop.login1.Manager");
            fields.field(3, "s", member);
            fields.field(8, "g", "b");
            body.number(u32::from(value));
            self.send(&message(SIGNAL, 1, &fields, &body.0), None);
        }
    }

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let text = request(1, of_bus("Hello"), &[]);
        let expected = [
            b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00".as_slice(),
            b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00",
            b"\x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00",
            b"\x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00",
            b"\x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00",
        ];
        assert_eq!(text, expected.concat());
        let (read, length) = parse(&text).unwrap().unwrap();
        assert_eq!((read.kind, read.member.as_str(), length), (CALL, "Hello", text.len()));
        assert!(parse(&text[..text.len() - 1]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut text = request(1, of_bus("Hello"), &[]);
        text[0] = b'B';
        assert!(parse(&text).is_err());
        let mut text = request(1, of_bus("Hello"), &[]);
        text[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&text).is_err());
        let mut text = request(1, of_bus("Hello"), &[]);
        text[18] = b'x';
        assert!(parse(&text).is_err());
        let mut text = request(1, of_bus("Hello"), &[]);
        text[20] = 0xff;
        assert!(parse(&text).is_err(), "a text that is longer than its message");
    }
}
