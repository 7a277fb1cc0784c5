//! Two connections that are passed on to each other, byte for byte, as proxies do with WebSocket and SPDY.
//!
//! Each way has a life of its own: what one side has said is delivered although the other no longer listens. The last word
//! of a program that ended without having read its input is its exit code.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink, split};
use tokio::time::timeout;

/// Bytes in flight, each way.
const BUFFER: usize = 32 * 1024;
/// How long a side may take to end, once nothing that it says is of use to anybody.
const LINGER: Duration = Duration::from_secs(5);

/// How the way from a side ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It said that nothing follows, or who was to hear it is gone.
    Said,
    /// Its connection broke.
    Broke,
}

/// Passes on what either side says until both have ended. A side that has ended may go on listening.
pub async fn both_ways(one: impl AsyncRead + AsyncWrite, other: impl AsyncRead + AsyncWrite) {
    let ((one_says, one_hears), (other_says, other_hears)) = (split(one), split(other));
    let (there, back) = (pin!(one_way(one_says, other_hears)), pin!(one_way(other_says, one_hears)));
    let (end, rest) = match select(there, back).await {
        Either::Left((end, rest)) => (end, Either::Left(rest)),
        Either::Right((end, rest)) => (end, Either::Right(rest)),
    };
    match end {
        End::Said => {
            rest.await;
        }
        End::Broke => {
            // nobody is there to hear the rest; the other side has some time to find out
            let _ = timeout(LINGER, rest).await;
        }
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> End {
    let mut buffer = vec![0; BUFFER];
    let end = loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break End::Said,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "a connection that is passed on broke");
                break End::Broke;
            }
        };
        let passed_on = async {
            to.write_all(&buffer[..count]).await?;
            to.flush().await
        };
        if let Err(error) = passed_on.await {
            tracing::debug!(%error, "what is passed on is no longer heard");
            // A sender that is not listened to may not come to hear the end. And a connection that is closed before all of it
            // was read is reset, with what the other side has not read yet.
            let _ = timeout(LINGER, copy(&mut from, &mut sink())).await;
            return End::Said;
        }
    };
    // it may be gone
    let _ = to.shutdown().await;
    end
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::Ipv4Addr;

    use tokio::io::{DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection of the kernel's.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (dialled, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_last_word_of_a_side_that_does_not_listen_is_heard_whatever_is_still_said_to_it() {
        for _ in 0..20 {
            let ((mut client, near), (far, mut program)) = (connection().await, connection().await);
            let relay = tokio::spawn(both_ways(near, far));
            // all of it is said before anything is heard
            let client = tokio::spawn(async move {
                let said = client.write_all(&vec![0; 8_000_000]).await;
                let mut heard = Vec::new();
                let end = client.read_to_end(&mut heard).await;
                drop(client);
                (said.is_ok(), heard, end.is_ok())
            });
            // its window is full before it goes, so that the kernel resets the connection
            program.readable().await.unwrap();
            program.write_all(b"exit code 7").await.unwrap();
            drop(program);
            assert_eq!(client.await.unwrap(), (true, b"exit code 7".to_vec(), true));
            relay.await.unwrap();
        }
    }

    /// Says `length` bytes and hears as many, a few at a time.
    async fn talk(side: DuplexStream, length: usize) -> usize {
        let (mut hears, mut says) = split(side);
        let said = async {
            says.write_all(&vec![7; length]).await.unwrap();
            says.shutdown().await.unwrap();
        };
        let heard = async {
            let (mut count, mut buffer) = (0, [0; 10]);
            loop {
                match hears.read(&mut buffer).await.unwrap() {
                    0 => break count,
                    more => count += more,
                }
            }
        };
        tokio::join!(said, heard).1
    }

    #[tokio::test]
    async fn both_sides_may_say_more_than_anything_on_the_way_holds() {
        let ((client, near), (far, program)) = (duplex(16), duplex(16));
        let (length, relay) = (BUFFER * 3, both_ways(near, far));
        let (heard, answered, ()) = tokio::join!(talk(client, length), talk(program, length), relay);
        assert_eq!((heard, answered), (length, length));
    }

    #[tokio::test]
    async fn who_has_said_all_may_go_on_listening() {
        let ((mut client, near), (far, mut program)) = (duplex(100), duplex(100));
        let relay = tokio::spawn(both_ways(near, far));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        program.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        program.write_all(b"answer").await.unwrap();
        drop(program);
        heard.clear();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "answer");
        relay.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_says_nothing_does_not_outlive_a_connection_that_broke() {
        let reset = async { Err::<bytes::Bytes, io::Error>(io::ErrorKind::ConnectionReset.into()) };
        let says = tokio_util::io::StreamReader::new(futures_util::stream::once(reset));
        let (far, mut program) = duplex(100);
        both_ways(tokio::io::join(says, sink()), far).await;
        assert_eq!(program.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
