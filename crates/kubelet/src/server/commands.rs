//! Short calls of the runtime for one container: `/run`, and `/checkpoint`.

use std::os::unix::fs::DirBuilderExt as _;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::answers::{Body, Refusal, answer, full, json, refused};
use super::pods::Target;
use super::{Server, query};

impl Server {
    /// Runs the command of the parameter `cmd`, cut at blanks, and answers with what it wrote, errors last.
    pub(super) async fn run(&self, target: Target<'_>, query: &str) -> Result<Response<Body>, Refusal> {
        let container_id = self.running(target)?;
        let cmd = query::pairs(query).into_iter().find(|(name, _)| name == "cmd").map(|(_, value)| value);
        let cmd = cmd.unwrap_or_default();
        let ask = cri::v1::ExecSyncRequest {
            container_id,
            cmd: cmd.split(' ').map(str::to_owned).collect(),
            timeout: 0,
        };
        let ran = self.runtime.clone().exec_sync(ask).await.map_err(refused)?.into_inner();
        if ran.exit_code != 0 {
            let why = format!(
                "command '{cmd}' exited with {}: {}",
                ran.exit_code,
                String::from_utf8_lossy(&ran.stderr)
            );
            return Err((StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        let output = Bytes::from([ran.stdout, ran.stderr].concat());
        Ok(answer(StatusCode::OK, "application/json", full(output)))
    }

    /// Has the runtime write down the container's state. The parameter `timeout` is in seconds; the last one counts.
    pub(super) async fn checkpoint(
        &self,
        target: Target<'_>,
        query: &str,
    ) -> Result<Response<Body>, Refusal> {
        let Target { ns, pod, container, .. } = target;
        let container_id = self.running(target)?;
        let timeout = query::pairs(query).into_iter().rfind(|(name, _)| name == "timeout");
        let timeout = timeout.map_or(Ok(0), |(_, value)| value.parse::<i64>());
        let timeout = timeout
            .map_err(|_| (StatusCode::NOT_FOUND, "cannot parse value of timeout parameter".to_owned()))?;
        let name = format!("checkpoint-{pod}_{ns}-{container}-{}.tar", super::stats::now());
        let folder = self.about.root.join("checkpoints");
        // it holds what was in the memory of containers
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}", folder.display())))?;
        let location = folder.join(name).display().to_string();
        let request =
            cri::v1::CheckpointContainerRequest { container_id, location: location.clone(), timeout };
        match self.runtime.clone().checkpoint_container(request).await {
            Ok(_) => json(&serde_json::json!({"items": [location]})),
            Err(status) => {
                let why = format!("checkpointing of {ns}/{pod}/{container} failed ({})", status.message());
                Err((StatusCode::INTERNAL_SERVER_ERROR, why))
            }
        }
    }
}
