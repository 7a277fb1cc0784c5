//! A kubelet's way to the API, which tests may close.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, ListWatch, Selection, Transport, TransportError};
use tokio::sync::watch;

/// What does not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    Nothing,
    /// Lists of Services, which come once it is open.
    Services,
    /// Requests, which fail.
    Requests,
    /// These and all lists, which come once it is open.
    Everything,
}

pub struct Gate {
    inner: Arc<dyn Transport>,
    closed: watch::Receiver<Closed>,
}

impl Gate {
    /// The way of `client`, as far as `closed` says.
    pub fn client(client: &Client, closed: watch::Receiver<Closed>) -> Client {
        Client::new(Arc::new(Self { inner: client.transport().clone(), closed }))
    }
}

#[async_trait]
impl Transport for Gate {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, TransportError> {
        if matches!(*self.closed.borrow(), Closed::Requests | Closed::Everything) {
            return Err(TransportError::Broken("the gate is closed".into()));
        }
        self.inner.send(request).await
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, client::Error>> {
        let service = selection.plural == "services";
        let mut closed = self.closed.clone();
        let open =
            |closed: &Closed| *closed != Closed::Everything && !(service && *closed == Closed::Services);
        // the gate stays as it is where the test is over
        let _ = closed.wait_for(open).await;
        self.inner.list_watch(selection).await
    }
}
