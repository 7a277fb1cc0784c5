//! `proxy` of pods, services and nodes: any HTTP request, passed on to what the name stands for.
//!
//! Rule: Kubernetes documentation, "Access Services Running on Clusters" (`[scheme:]name[:port]`); response paths are
//! rewritten as the reference does. Bodies are streamed both ways and have no limit of their own; redirects are the
//! client's to follow.
//!
//! Deviation: the path after `proxy` reaches the backend as it was sent, escapes included.

use std::net::IpAddr;
use std::str::FromStr as _;

use api::object::Object;
use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use crate::answer;
use crate::auth::authorize::Attributes;
use crate::backend::{self, Peer, Place, StreamedBody, Unreachable};
use crate::html_links::{self, Links};
use crate::node_proxy;
use crate::pipeline::Call;
use crate::registry::Target;
use crate::request_info::RequestInfo;
use crate::status::{ApiError, ApiResult};

/// Headers of answers that would let pages of other sites act on the API server's.
const CROSS_ORIGIN: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];
/// Paths of kubelets that run or change something, whatever the method.
const KUBELET_STREAMS: &[&str] = &["/exec/", "/attach/", "/portForward/", "/run/", "/cri/"];

/// Whether the body of a request is for somebody else.
pub fn is_proxied(parts: &http::request::Parts) -> bool {
    let path = parts.uri.path();
    path.contains("/proxy") && {
        let info = RequestInfo::parse(&parts.method, path, None);
        info.group.is_empty() && info.subresource == "proxy"
    }
}

/// Which way a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Plain,
    /// TLS, whoever is there.
    Tls,
    /// TLS, known to each other.
    Kubelet,
}

/// Answers with what the backend answers.
pub async fn run(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let (speech, place) = match call.kind.plural.as_str() {
        "pods" => pod(call).await?,
        "services" => service(call).await?,
        _ => node(call).await?,
    };
    let parts = call.parts;
    let upgrading = backend::is_upgrade(&parts.headers);
    let (prefix, path) = split_path(call.info);
    if path.is_empty() && !upgrading && matches!(parts.method, Method::GET | Method::HEAD) {
        // so that relative links of the page stay behind the proxy
        return redirect(&format!("{}/", call.info.path), parts.uri.query());
    }
    if speech == Speech::Kubelet && (upgrading || KUBELET_STREAMS.iter().any(|p| path.starts_with(p))) {
        let attributes = Attributes { verb: "create", ..Attributes::of(call.info) };
        call.server.authorizer.authorize(call.user, &attributes).await?;
    }
    let path = if path.is_empty() { "/".to_owned() } else { path };
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut onward = Request::builder().method(parts.method.clone()).uri(format!("{path}{query}"));
    let asked = asked_host(parts);
    if let Some(headers) = onward.headers_mut() {
        *headers = onward_headers(call, upgrading, &asked, &format!("{prefix}{path}"))?;
    }
    let body = parts.extensions.get::<StreamedBody>().and_then(StreamedBody::take);
    let body = body.unwrap_or_else(|| answer::full(call.body.clone()));
    let onward = onward.body(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let client_side = if upgrading {
        let mut request = Request::new(());
        *request.extensions_mut() = parts.extensions.clone();
        Some(hyper::upgrade::on(request))
    } else {
        None
    };
    let nodes = &call.server.nodes;
    let tls = match speech {
        Speech::Plain => None,
        Speech::Tls => Some(nodes.trusting.clone()),
        Speech::Kubelet => Some(nodes.tls.clone()),
    };
    let answer = nodes.dialer.clone().exchange(place.clone(), tls, onward, client_side).await.map_err(
        |e| match e {
            Unreachable::Busy => ApiError::too_many_requests(e.to_string(), 1),
            other => ApiError::unavailable(format!("error trying to reach service: {other}")),
        },
    )?;
    if upgrading {
        return match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => Ok(answer),
            code if code.is_client_error() || code.is_server_error() => Ok(answer),
            code => {
                Err(ApiError::internal(format!("invalid upgrade response: status code {}", code.as_u16())))
            }
        };
    }
    Ok(returned(answer, Links { prefix, backend: place.to_string(), asked }))
}

/// The path up to `proxy`, and what follows it. A request without a path may name one in its query.
fn split_path(info: &RequestInfo) -> (String, String) {
    let whole = &info.path;
    let prefix = whole.strip_suffix(info.rest.as_str()).unwrap_or(whole);
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let path = match (whole.get(prefix.len()..), info.query.get("path")) {
        (Some("") | None, "") => String::new(),
        (Some("") | None, named) => format!("/{}", named.trim_start_matches('/')),
        (Some(path), _) => format!("/{}", path.trim_start_matches('/')),
    };
    (prefix.to_owned(), path)
}

fn redirect(path: &str, query: Option<&str>) -> ApiResult<Response<Body>> {
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    let location =
        HeaderValue::from_str(&format!("{path}{query}")).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let mut response = Response::new(answer::full(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The host that the client asked: of the URL in HTTP/2, of the header before.
fn asked_host(parts: &http::request::Parts) -> String {
    let header = parts.headers.get(header::HOST).and_then(|v| v.to_str().ok());
    header.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default().to_owned()
}

fn onward_headers(call: &Call<'_>, upgrading: bool, asked: &str, uri: &str) -> ApiResult<HeaderMap> {
    let mut headers = call.parts.headers.clone();
    let upgrade = headers.get(header::UPGRADE).cloned();
    backend::remove_hop_by_hop(&mut headers);
    backend::remove_credentials(&mut headers);
    // answered by our own server when the body is read
    headers.remove(header::EXPECT);
    if let (true, Some(upgrade)) = (upgrading, upgrade) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    let mut set = |name: &'static str, value: &str| -> ApiResult<()> {
        let value = HeaderValue::from_str(value).map_err(|e| ApiError::bad_request(e.to_string()))?;
        headers.insert(name, value);
        Ok(())
    };
    set("host", asked)?;
    set("x-forwarded-uri", uri)?;
    if let Some(Peer(peer)) = call.parts.extensions.get::<Peer>() {
        let before = call.parts.headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
        let mut all: Vec<String> = before.map(str::to_owned).collect();
        all.push(peer.ip().to_string());
        set("x-forwarded-for", &all.join(", "))?;
    }
    Ok(headers)
}

/// The answer with its own URLs brought behind the proxy.
fn returned(answer: Response<Body>, links: Links) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    for name in CROSS_ORIGIN {
        parts.headers.remove(*name);
    }
    let text = |headers: &HeaderMap, name| {
        headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let location = text(&parts.headers, header::LOCATION);
    if !location.is_empty() {
        if let Some(moved) = links.rewrite(&location).and_then(|l| HeaderValue::from_str(&l).ok()) {
            parts.headers.insert(header::LOCATION, moved);
        }
        return Response::from_parts(parts, body);
    }
    let media = text(&parts.headers, header::CONTENT_TYPE);
    if media.split(';').next().unwrap_or_default().trim() != "text/html" {
        return Response::from_parts(parts, body);
    }
    match html_links::rewrite_body(body, &text(&parts.headers, header::CONTENT_ENCODING), links) {
        Ok(body) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, body)
        }
        Err(body) => Response::from_parts(parts, body),
    }
}

/// `[scheme:]name[:port]`.
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(what: &str, text: &'a str) -> ApiResult<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let named = match parts[..] {
            [name] => Some(Self { scheme: "", name, port: "" }),
            [name, port] => Some(Self { scheme: "", name, port }),
            [scheme, name, port] => Some(Self { scheme, name, port }),
            _ => None,
        };
        named
            .filter(|n| !n.name.is_empty() && matches!(n.scheme, "" | "http" | "https"))
            .ok_or_else(|| ApiError::bad_request(format!("invalid {what} request {text:?}")))
    }

    fn speech(&self) -> Speech {
        if self.scheme == "https" { Speech::Tls } else { Speech::Plain }
    }

    fn default_port(&self) -> u16 {
        if self.scheme == "https" { 443 } else { 80 }
    }
}

fn unknown_port(port: &str) -> ApiError {
    ApiError::unavailable(format!("error trying to reach service: dial tcp: lookup tcp/{port}: unknown port"))
}

/// Refuses addresses that lead to the API server's own machine or to its link.
fn check_address(host: &str) -> ApiResult<()> {
    let global = IpAddr::from_str(host).is_ok_and(|ip| {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
    });
    if global { Ok(()) } else { Err(ApiError::bad_request("address not allowed")) }
}

async fn pod(call: &Call<'_>) -> ApiResult<(Speech, Place)> {
    let named = Named::parse("pod", &call.info.name)?;
    let target = Target { name: named.name, subresource: "", ..call.target() };
    let pod = call.server.registry.get(target).await?.to_value();
    let ports = || {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.flat_map(|c| c["ports"].as_array().into_iter().flatten())
    };
    let number = |port: &Value| port["containerPort"].as_u64().and_then(|p| u16::try_from(p).ok());
    let port = match named.port {
        "" => ports().find_map(number).unwrap_or_else(|| named.default_port()),
        text => match text.parse() {
            Ok(port) => port,
            Err(_) => {
                let own = ports().find(|p| p["name"] == text).and_then(number);
                own.ok_or_else(|| unknown_port(text))?
            }
        },
    };
    let host = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    check_address(&host)?;
    Ok((named.speech(), Place { host, port, name: None }))
}

async fn service(call: &Call<'_>) -> ApiResult<(Speech, Place)> {
    let named = Named::parse("service", &call.info.name)?;
    let target = Target { name: named.name, subresource: "", ..call.target() };
    let service = call.server.registry.get(target).await?.to_value();
    let port_name = match named.port.parse::<u64>() {
        Err(_) => named.port.to_owned(),
        Ok(number) => {
            let ports = service["spec"]["ports"].as_array();
            let port = ports.into_iter().flatten().find(|p| p["port"].as_u64() == Some(number));
            let Some(port) = port else {
                let name = named.name;
                let why = format!("no service port {number} found for service {name:?}");
                return Err(ApiError::unavailable(why));
            };
            port["name"].as_str().unwrap_or_default().to_owned()
        }
    };
    let mut places = endpoints(call, named.name, &port_name);
    if places.is_empty() {
        let why = format!("no endpoints available for service {:?}", call.info.name);
        return Err(ApiError::unavailable(why));
    }
    let chosen = places.swap_remove(rand::random::<u32>() as usize % places.len());
    Ok((named.speech(), chosen))
}

/// The ready endpoints of a service's port that are pods of its namespace: an endpoint slice alone, which many may
/// write, must not lead the API server anywhere else.
fn endpoints(call: &Call<'_>, service: &str, port_name: &str) -> Vec<Place> {
    let cache = call.server.registry.cache();
    let (Some(slices), Some(pods)) =
        (api::kinds::find("discovery.k8s.io", "v1", "endpointslices"), api::kinds::find("", "v1", "pods"))
    else {
        return Vec::new();
    };
    let namespace = call.info.namespace.as_str();
    let is_address_of = |pod: &str, address: &str| {
        let pod = cache.get(pods, &pods.key(namespace, pod));
        pod.is_some_and(|pod| has_address(&pod, address))
    };
    let mut places = Vec::new();
    for slice in cache.list(slices, &format!("{}{namespace}/", slices.storage_prefix), None).items {
        if slice.labels().get("kubernetes.io/service-name").is_none_or(|name| name != service) {
            continue;
        }
        let Ok(slice) = slice.typed::<EndpointSlice>() else { continue };
        let port = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == port_name);
        let Some(port) = port.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let pod = endpoint.target_ref.as_ref().filter(|r| {
                r.kind.as_deref() == Some("Pod") && r.namespace.as_deref().is_none_or(|ns| ns == namespace)
            });
            let Some(pod) = pod.and_then(|r| r.name.as_deref()).filter(|_| ready) else { continue };
            let host = endpoint.addresses.iter().find(|address| is_address_of(pod, address));
            places.extend(host.map(|host| Place { host: host.clone(), port, name: None }));
        }
    }
    places
}

fn has_address(pod: &Object, address: &str) -> bool {
    let pod = pod.to_value();
    pod["status"]["podIPs"].as_array().is_some_and(|ips| ips.iter().any(|ip| ip["ip"] == address))
}

async fn node(call: &Call<'_>) -> ApiResult<(Speech, Place)> {
    let named = Named::parse("node", &call.info.name)?;
    let kubelet = node_proxy::endpoint(&call.server.registry, named.name).await?;
    if named.port.is_empty() || named.port == kubelet.port.to_string() {
        return Ok((Speech::Kubelet, kubelet));
    }
    let addresses = tokio::net::lookup_host((kubelet.host.clone(), kubelet.port)).await;
    let addresses = addresses.map_err(|_| ApiError::bad_request("No addresses for hostname"))?;
    for address in addresses {
        check_address(&address.ip().to_string())?;
    }
    let port = named.port.parse().map_err(|_| unknown_port(named.port))?;
    Ok((named.speech(), Place { port, ..kubelet }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_path(url: &str, expected: (&str, &str)) {
        let (path, query) = url.split_once('?').map_or((url, None), |(p, q)| (p, Some(q)));
        let (prefix, rest) = split_path(&RequestInfo::parse(&Method::GET, path, query));
        assert_eq!((prefix.as_str(), rest.as_str()), expected);
    }

    #[test]
    fn the_path_after_proxy_is_the_backends() {
        const P: &str = "/api/v1/namespaces/a/pods/p:80/proxy";
        check_path(P, (P, ""));
        check_path(&format!("{P}/"), (P, "/"));
        check_path(&format!("{P}/x/proxy/y/"), (P, "/x/proxy/y/"));
        check_path(&format!("{P}/x%2Fy"), (P, "/x%2Fy"));
        check_path(&format!("{P}?path=x/y"), (P, "/x/y"));
        check_path("/api/v1/nodes/n/proxy/pods", ("/api/v1/nodes/n/proxy", "/pods"));
    }

    #[test]
    fn names_may_carry_scheme_and_port() {
        let parse = |text| {
            Named::parse("pod", text)
                .map(|n| format!("{}|{}|{}", n.scheme, n.name, n.port))
                .map_err(|e| e.to_string())
        };
        assert_eq!(parse("p").as_deref(), Ok("|p|"));
        assert_eq!(parse("p:web").as_deref(), Ok("|p|web"));
        assert_eq!(parse("https:p:").as_deref(), Ok("https|p|"));
        assert_eq!(parse("ftp:p:1"), Err("invalid pod request \"ftp:p:1\"".to_owned()));
        assert!(parse(":1").is_err() && parse("a:b:c:d").is_err());
    }

    #[test]
    fn addresses_of_the_servers_own_machine_are_refused() {
        for bad in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1", "", "localhost"]
        {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        assert!(check_address("10.0.0.1").is_ok() && check_address("fd00::1").is_ok());
    }
}
