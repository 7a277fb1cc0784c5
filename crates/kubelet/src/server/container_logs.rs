//! `/containerLogs/`: what a container wrote, as far as it is asked for, and as it grows.

use futures_util::StreamExt;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::Server;
use super::answers::{Body, Refusal, answer};
use super::pods::has_container;
use crate::logs;

/// Blocks of a log that wait for a slow reader.
const LOG_QUEUE: usize = 4;

impl Server {
    pub(super) async fn logs(
        &self,
        ns: &str,
        pod: &str,
        container: &str,
        query: &str,
    ) -> Result<Response<Body>, Refusal> {
        let options = logs::parse(query).map_err(|refused| match refused {
            logs::Refused::Unreadable(why) => (StatusCode::BAD_REQUEST, why),
            logs::Refused::Invalid(why) => (StatusCode::UNPROCESSABLE_ENTITY, why),
        })?;
        let found = self.known(ns, pod, "", &format!("pod {pod:?} does not exist"))?;
        if !has_container(&found, container) {
            let why = format!("container {container:?} not found in pod {pod:?}");
            return Err((StatusCode::NOT_FOUND, why));
        }
        let path = self
            .pods
            .log_path(ns, pod, container, options.previous)
            .map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        if let Err(error) = tokio::fs::metadata(&path).await {
            return Err((StatusCode::BAD_REQUEST, format!("failed to open log file {path:?}: {error}")));
        }
        let (out, blocks) = tokio::sync::mpsc::channel(LOG_QUEUE);
        let running = {
            // the run whose log this is: a later one writes to another file
            let id = self.pods.container(ns, pod, container).map(|c| c.id);
            let (pods, previous) = (self.pods.clone(), options.previous);
            let name = [ns, pod, container].map(str::to_owned);
            move || {
                let now = pods.container(&name[0], &name[1], &name[2]);
                !previous && now.is_some_and(|c| c.running && Some(c.id) == id)
            }
        };
        let stop = self.stop.clone();
        let (failed, failure) = tokio::sync::oneshot::channel();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = logs::read(path, options, running, out) => ended,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::warn!(error = &error as &dyn std::error::Error, "reading a container's log");
                // nobody may be left to hear it
                let _ = failed.send(error);
            }
        });
        let blocks = tokio_stream::wrappers::ReceiverStream::new(blocks).map(Ok);
        // an error after the head cuts the answer off, so that it is not taken for the whole log
        let end = futures_util::stream::once(failure).filter_map(|e| async move { e.ok().map(Err) });
        let body = StreamBody::new(blocks.chain(end).map(|block| block.map(Frame::data)));
        Ok(answer(StatusCode::OK, "text/plain", BodyExt::boxed_unsync(body)))
    }
}
