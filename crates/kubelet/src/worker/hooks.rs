//! Lifecycle hooks: exec, HTTP and sleep, within a time.

use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler, Probe};

use crate::probes;

/// Runs a hook; the error is its words.
pub(super) async fn run(
    mut runtime: cri::RuntimeClient,
    id: &str,
    spec: &Spec,
    ip: &str,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    if let Some(sleep) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        let cmd = exec.command.clone().unwrap_or_default();
        let shown = cmd.join(" ");
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: seconds };
        let answer = runtime.exec_sync(request).await.map_err(|e| e.message().to_owned())?.into_inner();
        return match answer.exit_code {
            0 => Ok(()),
            code => {
                let said = String::from_utf8_lossy(&answer.stderr).into_owned();
                Err(format!("command '{shown}' exited with {code}: {said}"))
            }
        };
    }
    if let Some(http) = &hook.http_get {
        let probe = Probe {
            http_get: Some(http.clone()),
            timeout_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            ..Probe::default()
        };
        let target = probes::Target {
            pod_ip: ip.to_owned(),
            container_id: id.to_owned(),
            container: spec.clone(),
            pod: Default::default(),
        };
        let outcome = probes::run_once(&probe, &target, &mut runtime).await;
        return if outcome.success { Ok(()) } else { Err(outcome.message) };
    }
    // a tcpSocket hook is accepted by the API for compatibility and does nothing, as documented
    Ok(())
}
