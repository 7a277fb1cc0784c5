//! A client of SPDY/3.1, as old kubectls and tunnels are: it compresses its headers without the protocol's dictionary,
//! which a server has to take, and does not look at those of the server.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What came, by stream.
pub type Received = BTreeMap<u32, Vec<u8>>;

pub struct Client {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    compress: Compress,
    last: u32,
    received: Received,
}

impl Client {
    /// The error is the refusal.
    pub async fn connect(url: &str, protocol: &str) -> Result<Client, String> {
        let uri: http::Uri = url.parse().unwrap();
        let host = uri.authority().unwrap().as_str();
        let stream = TcpStream::connect(host).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n",
            uri.path()
        );
        writer.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(reader.read_u8().await.map_err(|error| error.to_string())?);
        }
        let head = String::from_utf8(head).unwrap();
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(head);
        }
        let compress = Compress::new(Compression::fast(), true);
        Ok(Client { reader, writer, compress, last: 0, received: Received::new() })
    }

    /// Opens a stream; its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.last + if self.last == 0 { 1 } else { 2 };
        self.last = id;
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 256);
        self.compress.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        let body = [&id.to_be_bytes()[..], &[0; 6], &block].concat();
        // version 3, SYN_STREAM
        self.frame(&[0x80, 3, 0, 1], 0, &body).await.unwrap();
        id
    }

    pub async fn send(&mut self, id: u32, content: &[u8], fin: bool) {
        self.frame(&id.to_be_bytes(), u8::from(fin), content).await.unwrap();
    }

    async fn frame(&mut self, head: &[u8], flags: u8, body: &[u8]) -> std::io::Result<()> {
        put(&mut self.writer, head, flags, body).await
    }

    /// Reads until the server closes.
    pub async fn rest(&mut self) -> Received {
        while take(&mut self.reader, &mut self.received).await.is_some() {}
        std::mem::take(&mut self.received)
    }

    /// Reads until a stream has said `text`.
    pub async fn until(&mut self, id: u32, text: &str) {
        let said = |received: &Received| {
            received.get(&id).is_some_and(|bytes| String::from_utf8_lossy(bytes).contains(text))
        };
        while !said(&self.received) {
            take(&mut self.reader, &mut self.received).await.expect("the server closed");
        }
    }

    /// Sends as much as is taken, and reads until the server closes.
    pub async fn flood(mut self, id: u32) -> Received {
        let sending = async {
            let block = vec![b'x'; 32 * 1024];
            while put(&mut self.writer, &id.to_be_bytes(), 0, &block).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let reading = async { while take(&mut self.reader, &mut self.received).await.is_some() {} };
        tokio::select! {
            () = sending => {}
            () = reading => {}
        }
        self.received
    }
}

async fn put(writer: &mut OwnedWriteHalf, head: &[u8], flags: u8, body: &[u8]) -> std::io::Result<()> {
    let length = (body.len() as u32).to_be_bytes();
    let frame = [head, &[flags], &length[1..], body].concat();
    writer.write_all(&frame).await
}

/// The next frame; `None` at the end.
async fn take(reader: &mut OwnedReadHalf, received: &mut Received) -> Option<()> {
    let mut head = [0; 8];
    reader.read_exact(&mut head).await.ok()?;
    let [a, b, c, d, _, rest @ ..] = head;
    let length = rest.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    let id = u32::from_be_bytes([a, b, c, d]);
    if id >> 31 == 0 {
        received.entry(id).or_default().extend(body);
    }
    Some(())
}
