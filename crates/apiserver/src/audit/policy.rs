//! The audit policy (`audit.k8s.io/v1`): how much of which request is recorded. The first rule that fits decides.
//!
//! Rule: Kubernetes documentation, "Auditing", audit policy.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::auth::UserInfo;
use crate::request_info::RequestInfo;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no policy.
    #[error("{path}: not a Policy of audit.k8s.io/v1: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and how it ended.
    Metadata,
    /// ... and the request's body.
    Request,
    /// ... and the answer's.
    RequestResponse,
}

impl Level {
    /// As events write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// The head of a long answer has been sent.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// The server has failed.
    Panic,
}

impl Stage {
    /// As events write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    kind: String,
    api_version: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What is recorded of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// How much.
    pub level: Level,
    /// When not.
    pub omit_stages: Vec<Stage>,
    /// Whether managed fields are left out of bodies.
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text =
            std::fs::read(path).map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, PolicyError> {
        let wrong = |reason: String| PolicyError::Syntax { path: path.to_owned(), reason };
        let (tree, _) = api::codec::parse_yaml(text).map_err(|e| wrong(e.to_string()))?;
        let policy: Self = serde_json::from_value(tree).map_err(|e| wrong(e.to_string()))?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(wrong(format!("it says {} of {}", policy.kind, policy.api_version)));
        }
        if policy.rules.is_empty() {
            return Err(wrong("loaded illegal policy with 0 rules".to_owned()));
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            let about_resources = !(rule.resources.is_empty() && rule.namespaces.is_empty());
            if about_resources && !rule.non_resource_urls.is_empty() {
                return Err(wrong(format!(
                    "rules[{i}].nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
                )));
            }
        }
        Ok(policy)
    }

    /// What is recorded of a request.
    pub fn of(&self, user: &UserInfo, info: &RequestInfo) -> Recorded {
        match self.rules.iter().find(|rule| rule.fits(user, info)) {
            Some(rule) => Recorded {
                level: rule.level,
                omit_stages: [self.omit_stages.as_slice(), &rule.omit_stages].concat(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
            None => Recorded { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: false },
        }
    }
}

impl Rule {
    fn fits(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let has = |list: &[String], value: &str| list.is_empty() || list.iter().any(|v| v == value);
        if !has(&self.users, &user.name) || !has(&self.verbs, &info.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|g| user.is_in(g)) {
            return false;
        }
        if !info.is_resource {
            let about_resources = !(self.resources.is_empty() && self.namespaces.is_empty());
            return !about_resources
                && (self.non_resource_urls.is_empty()
                    || self.non_resource_urls.iter().any(|url| path_fits(url, &info.path)));
        }
        if !self.non_resource_urls.is_empty() || !has(&self.namespaces, &info.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|r| r.fits(info))
    }
}

impl Resources {
    fn fits(&self, info: &RequestInfo) -> bool {
        let (plural, sub) = (info.resource.as_str(), info.subresource.as_str());
        let fits = |pattern: &String| match pattern.split_once('/') {
            None if pattern == "*" => true,
            None => pattern == plural && sub.is_empty(),
            Some((of, part)) => (of == "*" || of == plural) && (part == "*" || part == sub),
        };
        self.group == info.group
            && (self.resources.is_empty() || self.resources.iter().any(fits))
            && (self.resource_names.is_empty() || self.resource_names.contains(&info.name))
    }
}

fn path_fits(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let text = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [quiet]}
- {level: Metadata, resources: [{group: "", resources: [secrets, "pods/*"]}]}
- {level: Request, verbs: [create], namespaces: [a]}
- {level: None, nonResourceURLs: ["/healthz*"]}
- {level: RequestResponse, omitManagedFields: true}
"#;
        let policy = Policy::parse(Path::new("p"), text.as_bytes()).unwrap();
        let level = |user: &str, method: Method, path: &str| {
            policy.of(&UserInfo::new(user, &[]), &RequestInfo::parse(&method, path, None)).level
        };
        assert_eq!(level("quiet", Method::GET, "/api/v1/pods"), Level::None);
        assert_eq!(level("u", Method::POST, "/api/v1/namespaces/a/secrets"), Level::Metadata);
        assert_eq!(level("u", Method::GET, "/api/v1/namespaces/a/pods/p/log"), Level::Metadata);
        assert_eq!(level("u", Method::POST, "/api/v1/namespaces/a/configmaps"), Level::Request);
        assert_eq!(level("u", Method::GET, "/healthz/ping"), Level::None);
        // as upstream has it, `pods/*` names the pods, too
        assert_eq!(level("u", Method::GET, "/api/v1/namespaces/a/pods"), Level::Metadata);
        assert_eq!(level("u", Method::GET, "/api/v1/namespaces/b/events"), Level::RequestResponse);
    }
}
