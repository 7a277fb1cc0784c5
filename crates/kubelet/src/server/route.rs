//! Which path means what: the request is counted, its caller checked, and passed to who answers it.

use std::sync::Arc;

use api::zpages::Page;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::{Body, answer, exposition, full, json, no_such_page, text};
use super::callers::Caller;
use super::pods::Target;
use super::{Server, health, metrics, query, stats};

/// Seconds after which a stream that there was no room for may be asked for again.
const RETRY_AFTER: &str = "60";
/// What `/statusz` names.
const PAGES: &[&str] = &["/configz", "/flagz", "/healthz", "/metrics"];

impl Server {
    pub(super) async fn answer(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Response<Body> {
        let begin = std::time::Instant::now();
        let (path, long) = shown_path(request.uri().path());
        let labels = [if long { "true" } else { "false" }, shown_method(request.method()), path, "readwrite"];
        crate::metrics::REQUESTS.add(&labels);
        let _inflight = crate::metrics::INFLIGHT.held(&labels);
        let answer = self.routed(caller, request, place).await;
        crate::metrics::REQUEST_DURATION.time(&labels, begin.elapsed());
        answer
    }

    async fn routed(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Response<Body> {
        let parts: Vec<String> =
            request.uri().path().trim_start_matches('/').split('/').map(decode_segment).collect();
        let mut parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let first = parts.first().copied().unwrap_or_default();
        if let Err((code, why)) = self.authorize(caller, &request, first).await {
            return text(code, why);
        }
        if !self.rules.debugging {
            match first {
                "run" | "exec" | "attach" | "portForward" | "containerLogs" | "runningpods" | "logs"
                | "debug" => {
                    return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
                }
                "checkpoint" | "configz" | "flagz" | "statusz" => {
                    let (code, why) = no_such_page();
                    return text(code, why);
                }
                _ => {}
            }
        }
        let allowed = methods(first);
        if !allowed.split(", ").any(|method| method == request.method().as_str()) {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return refusal;
        }
        // a folder of logs ends in a slash, for others it means nothing
        if first != "logs" && parts.len() > 1 && parts.last() == Some(&"") {
            parts.pop();
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answer = match parts[..] {
            ["exec", ref path @ ..] => self.exec(request, place, Target::of(path)).await,
            ["attach", ref path @ ..] => self.attach(request, place, Target::of(path)).await,
            ["portForward", ns, pod] => self.port_forward(request, place, [ns, pod, ""]).await,
            ["portForward", ns, pod, uid] => self.port_forward(request, place, [ns, pod, uid]).await,
            ["run", ref path @ ..] => match Target::of(path) {
                Ok(target) => self.run(target, &query).await,
                Err(refusal) => Err(refusal),
            },
            ["checkpoint", ns, pod, container] => {
                self.checkpoint(Target { ns, pod, uid: "", container }, &query).await
            }
            ["containerLogs", ns, pod, container] => self.logs(ns, pod, container, &query).await,
            ["healthz", ref checks @ ..] if checks.len() < 2 => {
                Ok(health::answer(checks.first().copied(), &query))
            }
            ["statusz"] => Ok(self.page(
                request.headers(),
                Page::Status { started: self.about.started, version: &self.about.version, paths: PAGES },
            )),
            ["flagz"] => Ok(self.page(request.headers(), Page::Flags(&self.about.flags))),
            ["pods"] => self.list_pods(),
            ["runningpods"] => self.running_pods().await,
            ["logs", ref path @ ..] if self.about.system_logs.is_some() => self.system_logs(path).await,
            ["logs", ..] => Err((StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n".to_owned())),
            ["configz"] => json(&serde_json::json!({"kubeletconfig": self.about.settings})),
            ["stats", "summary"] => self.stats(stats::Extent::of(&query)).await,
            ["metrics"] => self.own_metrics().await,
            ["metrics", "resource"] => {
                self.measure().await.map(|m| exposition(metrics::resource(&self.pods.pods(), &m)))
            }
            ["metrics", "cadvisor"] => self.cadvisor().await,
            ["metrics", "probes"] => Ok(exposition(metrics::probes())),
            ["metrics", "slis"] => Ok(exposition(metrics::slis())),
            _ => Err(no_such_page()),
        };
        answer.unwrap_or_else(|(code, why)| {
            let mut refusal = text(code, why);
            if code == StatusCode::TOO_MANY_REQUESTS {
                refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            refusal
        })
    }

    /// `/statusz` or `/flagz`.
    fn page(&self, headers: &HeaderMap, page: Page<'_>) -> Response<Body> {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let page = page.answer("kubelet", accept, jiff::Timestamp::now());
        let code = StatusCode::from_u16(page.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = answer(code, page.content_type, full(page.body));
        let warning = page.warning.and_then(|text| HeaderValue::from_str(&text).ok());
        response.headers_mut().extend(warning.map(|text| (header::WARNING, text)));
        response
    }
}

/// Which methods the first part of a path has.
fn methods(first: &str) -> &'static str {
    match first {
        "exec" | "attach" | "portForward" | "stats" => "GET, POST",
        "run" | "checkpoint" => "POST",
        _ => "GET",
    }
}

/// A method as metrics show it: clients may name any.
fn shown_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A path as metrics show it, and whether it counts as one that may take as long as the client likes. To the reference
/// port-forward and logs do not.
fn shown_path(path: &str) -> (&'static str, bool) {
    const KNOWN: [&str; 15] = [
        "attach",
        "checkpoint",
        "configz",
        "containerLogs",
        "exec",
        "flagz",
        "healthz",
        "logs",
        "metrics",
        "pods",
        "portForward",
        "run",
        "runningpods",
        "stats",
        "statusz",
    ];
    const METRICS: [&str; 3] = ["metrics/cadvisor", "metrics/probes", "metrics/resource"];
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    let shown = METRICS.into_iter().find(|known| *known == path);
    let shown = shown.or_else(|| KNOWN.into_iter().find(|known| *known == first)).unwrap_or("other");
    (shown, matches!(shown, "exec" | "attach"))
}

/// A path's part, decoded; `+` is itself there.
fn decode_segment(text: &str) -> String {
    query::decode(&text.replace('+', "%2B"))
}
