//! Who is at the other end of a connection, and whether he may ask what he asks.

use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use rustls_pki_types::CertificateDer;

use super::Server;
use super::access::{self, User};
use super::answers::Refusal;

/// Whose members may ask everything.
const MASTERS: &str = "system:masters";
/// The API server's name to nodes.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    Anonymous,
    /// Has a good certificate or token: the API server is asked about him.
    Known(User),
    Allowed,
}

impl Caller {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return Self::Anonymous;
        };
        let subject = parsed.subject();
        let name = subject.iter_common_name().find_map(|a| a.as_str().ok()).unwrap_or_default();
        let master = subject.iter_organization().any(|a| a.as_str() == Ok(MASTERS));
        if master || name == API_SERVER {
            return Self::Allowed;
        }
        let groups = subject.iter_organization().filter_map(|a| a.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Self::Known(User { name: name.to_owned(), groups, ..User::default() })
    }
}

impl Server {
    /// Whether the caller may ask this.
    pub(super) async fn authorize(
        &self,
        caller: &Caller,
        request: &Request<Incoming>,
        first: &str,
    ) -> Result<(), Refusal> {
        let broken = |why: String| {
            tracing::warn!(why, "a caller of the kubelet could not be checked");
            (StatusCode::INTERNAL_SERVER_ERROR, "Authorization error".to_owned())
        };
        let by_token;
        let user = match caller {
            Caller::Allowed => return Ok(()),
            Caller::Known(user) => user,
            Caller::Anonymous => {
                let unknown = || (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
                let named = match token_of(request).filter(|_| self.rules.tokens) {
                    Some(token) => self.access.authenticate(token).await.map_err(|why| {
                        tracing::warn!(why, "a token's owner is not known");
                        unknown()
                    })?,
                    None => self.rules.anonymous.then(User::anonymous),
                };
                by_token = named.ok_or_else(unknown)?;
                &by_token
            }
        };
        if self.rules.always_allow {
            return Ok(());
        }
        let (verb, subresources) = access::needed(request.method(), first);
        for subresource in &subresources {
            if self.access.allows(user, verb, subresource).await.map_err(broken)? {
                return Ok(());
            }
        }
        let why = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        );
        Err((StatusCode::FORBIDDEN, why))
    }
}

/// The bearer token that a request shows.
fn token_of(request: &Request<Incoming>) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}
