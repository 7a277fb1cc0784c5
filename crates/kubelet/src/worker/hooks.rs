//! Lifecycle hooks: exec, HTTP and sleep, within a time.

use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler};

use crate::probes;

/// What hooks have to tell though they did not fail.
pub(super) const FALLBACK: &str = "LifecycleHTTPFallback";

/// Runs a hook of a container in the pod that is described by `pod`; the error is worded as upstream. What [`FALLBACK`] tells
/// comes with success.
pub(super) async fn run(
    mut runtime: cri::RuntimeClient,
    id: &str,
    (pod, spec): (&str, &Spec),
    ip: &str,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<Option<String>, String> {
    let of = format!("for Container {:?} in Pod {pod:?} failed - error: ", spec.name);
    if let Some(sleep) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(None);
    }
    if let Some(exec) = &hook.exec {
        let cmd = exec.command.clone().unwrap_or_default();
        let shown = cmd.join(" ");
        let failed = |why: String, said: &str| {
            Err(format!("Exec lifecycle hook ([{shown}]) {of}{why}, message: {said:?}"))
        };
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        let answer = match runtime.exec_sync(request).await {
            Ok(answer) => answer.into_inner(),
            Err(error) => return failed(error.message().to_owned(), ""),
        };
        let said = [answer.stdout, answer.stderr].concat();
        return match answer.exit_code {
            0 => Ok(None),
            code => {
                failed(format!("command '{shown}' exited with {code}: "), &String::from_utf8_lossy(&said))
            }
        };
    }
    if let Some(http) = &hook.http_get {
        let target = probes::Target {
            pod_ip: ip.to_owned(),
            container_id: id.to_owned(),
            container: spec.clone(),
            pod: Default::default(),
            age: Duration::ZERO,
            adopted: false,
        };
        let path = http.path.as_deref().unwrap_or_default();
        let asked = probes::call_once(http, &target, limit).await;
        let asked = asked.map_err(|why| format!("HTTP lifecycle hook ({path}) {of}{why}"))?;
        let text = |place| {
            crate::metrics::HOOK_FALLBACKS.add(&[]);
            format!("request to HTTPS lifecycle hook {place} got HTTP response, retry with HTTP succeeded")
        };
        return Ok(asked.map(text));
    }
    // a tcpSocket hook is accepted by the API for compatibility and does nothing, as documented
    Ok(None)
}
