//! A client that writes frames by hand.

use tokio::io::DuplexStream;

use super::*;

struct Client {
    io: DuplexStream,
    blocks: headers::Writer,
    parser: Parser,
    input: BytesMut,
}

fn connect() -> (Client, Connection<DuplexStream>) {
    let (a, b) = tokio::io::duplex(1 << 20);
    let client =
        Client { io: a, blocks: headers::Writer::new(), parser: Parser::default(), input: BytesMut::new() };
    (client, Connection::new(b))
}

impl Client {
    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut out = BytesMut::new();
        frame::put_syn_stream(&mut out, id, &self.blocks.write(headers));
        self.io.write_all(&out).await.unwrap();
    }

    async fn send(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        put(&mut out);
        self.io.write_all(&out).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.parser.next(&mut self.input).unwrap() {
                return frame;
            }
            assert_ne!(self.io.read_buf(&mut self.input).await.unwrap(), 0, "the server closed");
        }
    }
}

#[tokio::test]
async fn a_stream_is_opened_answered_and_closed_both_ways() {
    let (mut client, mut server) = connect();
    client.open(1, &[("StreamType", "error")]).await;
    client.send(|out| frame::put_data(out, 1, b"hello", true)).await;
    let headers = vec![("streamtype".to_owned(), "error".to_owned())];
    assert_eq!(server.next(true).await.unwrap(), Some(Event::Opened { id: 1, headers }));
    server.reply(1);
    let data = Event::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: true };
    assert_eq!(server.next(true).await.unwrap(), Some(data));
    server.send(1, b"bye", true);
    assert!(server.streams.is_empty() && !server.takes(1));
    server.flush().await.unwrap();
    assert!(matches!(client.next().await, Frame::Block(_)));
    assert_eq!(client.next().await, Frame::Data { id: 1, bytes: Bytes::from_static(b"bye"), fin: true });
    drop(client);
    assert_eq!(server.next(true).await.unwrap(), None);
}

#[tokio::test]
async fn pings_are_answered_while_the_next_event_is_awaited() {
    let (mut client, mut server) = connect();
    client.send(|out| frame::put_ping(out, 7)).await;
    let (_, frame) = tokio::join!(
        async { tokio::time::timeout(std::time::Duration::from_millis(200), server.next(true)).await },
        client.next()
    );
    assert_eq!(frame, Frame::Ping { id: 7 });
}

#[tokio::test]
async fn a_window_counts_once_the_client_speaks_of_one() {
    let (mut client, mut server) = connect();
    client.open(1, &[]).await;
    server.next(true).await.unwrap();
    assert_eq!(server.room(1), MAX_OUT);
    server.send(1, &[0; 60 * 1024], false);
    client.send(|out| frame::put_window_update(out, 1, 1)).await;
    // the first room may be that of written output
    while !server.windowed() {
        assert_eq!(server.next(true).await.unwrap(), Some(Event::Room));
    }
    server.flush().await.unwrap();
    assert_eq!(server.room(1), 4 * 1024, "the session's window is the smaller one");
    client.send(|out| frame::put_window_update(out, 0, 1 << 20)).await;
    server.next(true).await.unwrap();
    assert_eq!(server.room(1), 4 * 1024 + 1);
    // and then the client gets room too
    client.send(|out| frame::put_data(out, 1, b"12345", false)).await;
    server.next(true).await.unwrap();
    server.flush().await.unwrap();
    while !matches!(client.next().await, Frame::WindowUpdate { id: 1, delta: 5 }) {}
    client.send(|out| frame::put_window_update(out, 1, i32::MAX as u32)).await;
    assert!(matches!(server.next(true).await, Err(SpdyError::TooLarge(_))));
}

#[tokio::test]
async fn hostile_frames_end_the_connection() {
    let hostile: &[(&str, fn(&mut BytesMut))] = &[
        ("an even stream", |out| frame::put_syn_stream(out, 2, &headers::Writer::new().write(&[]))),
        ("a stream again", |out| {
            let mut blocks = headers::Writer::new();
            for _ in 0..2 {
                frame::put_syn_stream(out, 1, &blocks.write(&[]));
            }
        }),
        ("another version", |out| out.extend_from_slice(&[0x80, 2, 0, 1, 0, 0, 0, 0])),
        ("a huge control frame", |out| out.extend_from_slice(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])),
        ("a short control frame", |out| out.extend_from_slice(&[0x80, 3, 0, 6, 0, 0, 0, 1, 9])),
        ("settings that lie", |out| {
            out.extend_from_slice(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]);
        }),
        ("no zlib", |out| frame::put_syn_stream(out, 1, b"rubbish")),
    ];
    for (what, put) in hostile {
        let (mut client, mut server) = connect();
        client.send(put).await;
        let ended = async {
            loop {
                match server.next(true).await {
                    Ok(Some(_)) => {}
                    other => return other,
                }
            }
        };
        assert!(ended.await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn too_many_streams_are_refused_one_by_one() {
    let (mut client, mut server) = connect();
    let opened = async {
        let mut count = 0;
        while let Ok(Some(event)) = server.next(true).await {
            count += usize::from(matches!(event, Event::Opened { .. }));
        }
        count
    };
    let flood = async {
        for n in 0..=MAX_STREAMS as u32 {
            client.open(n * 2 + 1, &[]).await;
        }
        assert_eq!(client.next().await, Frame::Reset { id: MAX_STREAMS as u32 * 2 + 1 });
        client.io.shutdown().await.unwrap();
    };
    assert_eq!(tokio::join!(opened, flood).0, MAX_STREAMS);
}

#[tokio::test]
async fn data_of_unknown_streams_is_dropped_or_refused() {
    let (mut client, mut server) = connect();
    client.send(|out| frame::put_data(out, 9, b"x", false)).await;
    client.open(1, &[]).await;
    assert!(matches!(server.next(true).await.unwrap(), Some(Event::Opened { .. })));
    server.flush().await.unwrap();
    assert_eq!(client.next().await, Frame::Reset { id: 9 });
}
