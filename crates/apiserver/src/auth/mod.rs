//! Who asks ([`authenticate`]), as whom ([`impersonate`]), and whether they may ([`authorize`]).

pub mod authenticate;
pub mod authorize;
pub mod impersonate;
pub mod legacy;
pub mod node;
pub mod oidc;
pub mod token;
pub mod webhook;

use std::collections::BTreeMap;

use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use x509_parser::prelude::FromDer as _;

/// Who a request comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name.
    pub name: String,
    /// User id; often empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
    /// The legacy token that was presented.
    pub legacy_token: Option<legacy::Use>,
}

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";
/// Every caller with a credential is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The name of a caller without a credential.
pub const ANONYMOUS: &str = "system:anonymous";
/// Every caller without one is in this group.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

impl UserInfo {
    /// A caller with a credential.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// A caller without a credential.
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// Whether the caller is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// As `userInfo` in reviews.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            value["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            value["extra"] = serde_json::json!(self.extra);
        }
        value
    }
}

/// The user of a client certificate that TLS has verified: common name and organizations.
pub fn certificate_user(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    (!name.is_empty()).then(|| UserInfo::new(name, &groups))
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|t| !t.is_empty())
}
