//! How issuers are configured: an `AuthenticationConfiguration` file, or the flags of one issuer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::mapping::{ClaimCheck, Rules, Source};
use super::{Issuer, OidcError};
use crate::cel::access::{About, Expression};

/// The flags of one issuer.
#[derive(Debug, Clone, Default)]
pub struct OidcFlags {
    /// `--oidc-issuer-url`.
    pub issuer_url: String,
    /// `--oidc-client-id`.
    pub client_id: String,
    /// `--oidc-ca-file`.
    pub ca_file: Option<PathBuf>,
    /// `--oidc-username-claim`.
    pub username_claim: String,
    /// `--oidc-username-prefix`.
    pub username_prefix: Option<String>,
    /// `--oidc-groups-claim`.
    pub groups_claim: String,
    /// `--oidc-groups-prefix`.
    pub groups_prefix: String,
    /// `--oidc-required-claim`, `key=value`.
    pub required_claims: Vec<String>,
    /// `--oidc-signing-algs`.
    pub signing_algs: Vec<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    jwt: Vec<JwtAuthenticator>,
    /// Who may come without a credential.
    #[serde(default)]
    pub anonymous: Anonymous,
}

/// Whether, and where, callers without a credential are let in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: String,
}

impl Anonymous {
    /// Whether a path is open. What may be done there is the authorizers' decision.
    pub fn admits(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JwtAuthenticator {
    pub(super) issuer: IssuerConfig,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
    /// What tokens may be signed with; any where empty.
    #[serde(skip)]
    pub(super) algorithms: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IssuerConfig {
    pub(super) url: String,
    #[serde(default, rename = "discoveryURL")]
    pub(super) discovery_url: String,
    #[serde(default)]
    pub(super) certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    #[serde(default)]
    egress_selector_type: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserRule {
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mappings {
    #[serde(default)]
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: Mapping,
    #[serde(default)]
    extra: Vec<ExtraMapping>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mapping {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    expression: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExtraMapping {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value_expression: String,
}

impl AuthenticationConfiguration {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, OidcError> {
        let text = std::fs::read(path).map_err(|source| OidcError::Read { path: path.to_owned(), source })?;
        let wrong = |why: String| OidcError::Config(format!("{}: {why}", path.display()));
        let (tree, _) = api::codec::parse_yaml(&text).map_err(|e| wrong(e.to_string()))?;
        let config: Self = serde_json::from_value(tree).map_err(|e| wrong(e.to_string()))?;
        if config.kind != "AuthenticationConfiguration"
            || !config.api_version.starts_with("apiserver.config.k8s.io/v1")
        {
            return Err(wrong("not an AuthenticationConfiguration of apiserver.config.k8s.io".to_owned()));
        }
        for (i, jwt) in config.jwt.iter().enumerate() {
            jwt.rules().map_err(|why| wrong(format!("jwt[{i}].{why}")))?;
        }
        if !config.anonymous.enabled && !config.anonymous.conditions.is_empty() {
            return Err(wrong("anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined".to_owned()));
        }
        Ok(config)
    }

    /// The issuer that the flags describe, or none.
    pub fn of_flags(flags: &OidcFlags) -> Result<Self, OidcError> {
        if flags.issuer_url.is_empty() {
            return Ok(Self::default());
        }
        if flags.client_id.is_empty() {
            return Err(OidcError::Config(
                "oidc-issuer-url and oidc-client-id must be specified together".to_owned(),
            ));
        }
        let authority = match &flags.ca_file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| OidcError::Read { path: path.clone(), source })?,
        };
        let claim = if flags.username_claim.is_empty() { "sub" } else { &flags.username_claim };
        let prefix = match flags.username_prefix.as_deref() {
            Some("-") => String::new(),
            None | Some("") if claim == "email" => String::new(),
            None | Some("") => format!("{}#", flags.issuer_url),
            Some(prefix) => prefix.to_owned(),
        };
        let mut rules = Vec::new();
        for required in &flags.required_claims {
            let (claim, value) = required.split_once('=').ok_or_else(|| {
                OidcError::Config(format!("--oidc-required-claim {required:?}: not of the form key=value"))
            })?;
            rules.push(ClaimRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimRule::default()
            });
        }
        let jwt = JwtAuthenticator {
            issuer: IssuerConfig {
                url: flags.issuer_url.clone(),
                certificate_authority: authority,
                audiences: vec![flags.client_id.clone()],
                ..IssuerConfig::default()
            },
            claim_validation_rules: rules,
            claim_mappings: Mappings {
                username: Mapping { claim: claim.to_owned(), prefix: Some(prefix), ..Mapping::default() },
                groups: Mapping {
                    claim: flags.groups_claim.clone(),
                    prefix: Some(flags.groups_prefix.clone()),
                    ..Mapping::default()
                },
                ..Mappings::default()
            },
            algorithms: flags.signing_algs.clone(),
            ..JwtAuthenticator::default()
        };
        jwt.rules().map_err(OidcError::Config)?;
        Ok(Self { jwt: vec![jwt], ..Self::default() })
    }

    /// The issuers, ready to use.
    pub fn issuers(&self) -> Result<Vec<Issuer>, OidcError> {
        self.jwt.iter().map(Issuer::new).collect()
    }
}

impl JwtAuthenticator {
    /// What its tokens must say, and what becomes of it; else what is wrong, with its field.
    pub(super) fn rules(&self) -> Result<Rules, String> {
        self.issuer.check()?;
        let claim_checks = self.claim_checks()?;
        let mappings = &self.claim_mappings;
        let username = mappings.username.source("claimMappings.username", true)?;
        let Some(username) = username else {
            return Err("claimMappings.username: Required value: claim or expression is required".to_owned());
        };
        let rules = Rules {
            audiences: self.issuer.audiences.clone(),
            claim_checks,
            username,
            groups: mappings.groups.source("claimMappings.groups", true)?,
            uid: mappings.uid.source("claimMappings.uid", false)?,
            extra: mappings.extra()?,
            user_checks: self.user_checks()?,
        };
        // an address that nobody has verified is anybody's
        if rules.trusts_unverified_email() {
            return Err(format!(
                "claimMappings.username.expression: Invalid value: {:?}: claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
                mappings.username.expression
            ));
        }
        Ok(rules)
    }

    fn claim_checks(&self) -> Result<Vec<ClaimCheck>, String> {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        let check = |(i, rule): (usize, &ClaimRule)| {
            let at = format!("claimValidationRules[{i}]");
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => Err(format!("{at}: Required value: claim or expression is required")),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let why = "message can't be set when claim is set";
                        return Err(format!("{at}.message: Invalid value: {:?}: {why}", rule.message));
                    }
                    if !claims.insert(claim.to_owned()) {
                        return Err(format!("{at}.claim: Duplicate value: {claim:?}"));
                    }
                    Ok(ClaimCheck::Equals(claim.to_owned(), rule.required_value.clone()))
                }
                ("", source) => {
                    if !rule.required_value.is_empty() {
                        let why = "requiredValue can't be set when expression is set";
                        return Err(format!(
                            "{at}.requiredValue: Invalid value: {:?}: {why}",
                            rule.required_value
                        ));
                    }
                    if !expressions.insert(source.to_owned()) {
                        return Err(format!("{at}.expression: Duplicate value: {source:?}"));
                    }
                    let at = format!("{at}.expression");
                    let condition = compiled(&at, source, Expression::condition(About::Claims, source))?;
                    Ok(ClaimCheck::Holds(condition, rule.message.clone()))
                }
                _ => Err(format!("{at}: Invalid value: \"\": claim and expression can't both be set")),
            }
        };
        self.claim_validation_rules.iter().enumerate().map(check).collect()
    }

    fn user_checks(&self) -> Result<Vec<(Expression, String)>, String> {
        let mut seen = HashSet::new();
        let check = |(i, rule): (usize, &UserRule)| {
            let (at, source) = (format!("userValidationRules[{i}].expression"), rule.expression.as_str());
            if source.is_empty() {
                return Err(format!("{at}: Required value: expression is required"));
            }
            if !seen.insert(source.to_owned()) {
                return Err(format!("{at}: Duplicate value: {source:?}"));
            }
            let condition = compiled(&at, source, Expression::condition(About::User, source))?;
            Ok((condition, rule.message.clone()))
        };
        self.user_validation_rules.iter().enumerate().map(check).collect()
    }
}

fn compiled(at: &str, source: &str, result: Result<Expression, String>) -> Result<Expression, String> {
    result.map_err(|why| format!("{at}: Invalid value: {source:?}: {why}"))
}

impl IssuerConfig {
    fn check(&self) -> Result<(), String> {
        if !self.url.starts_with("https://") {
            return Err(format!("issuer.url: Invalid value: {:?}: URL scheme must be https", self.url));
        }
        if self.audiences.is_empty() {
            return Err("issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"
                .to_owned());
        }
        if self.audiences.len() > 1 && self.audience_match_policy != "MatchAny" {
            return Err("issuer.audienceMatchPolicy: Invalid value: audienceMatchPolicy must be MatchAny for multiple audiences".to_owned());
        }
        if self.egress_selector_type.is_some() {
            return Err("issuer.egressSelectorType: Forbidden: no egress selector is configured".to_owned());
        }
        Ok(())
    }
}

impl Mapping {
    fn source(&self, at: &str, has_prefix: bool) -> Result<Option<Source>, String> {
        match (self.claim.as_str(), self.expression.as_str()) {
            ("", "") => match &self.prefix {
                Some(prefix) if !prefix.is_empty() => Err(format!(
                    "{at}.prefix: Invalid value: {prefix:?}: non-empty prefix can't be set when claim is not set"
                )),
                _ => Ok(None),
            },
            (claim, "") => {
                if has_prefix && self.prefix.is_none() {
                    return Err(format!(
                        "{at}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
                    ));
                }
                let prefix = self.prefix.clone().unwrap_or_default();
                Ok(Some(Source::Claim { name: claim.to_owned(), prefix }))
            }
            ("", source) => {
                if let Some(prefix) = &self.prefix {
                    let why = "prefix can't be set when expression is set";
                    return Err(format!("{at}.prefix: Invalid value: {prefix:?}: {why}"));
                }
                let at = format!("{at}.expression");
                let expression = compiled(&at, source, Expression::mapping(About::Claims, source))?;
                Ok(Some(Source::Expression(expression)))
            }
            _ => Err(format!("{at}: Invalid value: \"\": claim and expression can't both be set")),
        }
    }
}

impl Mappings {
    fn extra(&self) -> Result<Vec<(String, Expression)>, String> {
        let mut seen = HashSet::new();
        let check = |(i, mapping): (usize, &ExtraMapping)| {
            let (at, key) = (format!("claimMappings.extra[{i}]"), mapping.key.as_str());
            let wrong = |why: &str| Err(format!("{at}.key: Invalid value: {key:?}: {why}"));
            if key.is_empty() {
                return Err(format!("{at}.key: Required value"));
            }
            let Some((domain, _)) = key.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty())
            else {
                return wrong("must be a domain-prefixed path (such as \"acme.io/foo\")");
            };
            if let Some(why) = api::names::dns1123_subdomain(domain).first() {
                return wrong(why);
            }
            let is_below = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
            if is_below("k8s.io") || is_below("kubernetes.io") {
                return wrong("k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use");
            }
            if key.chars().any(char::is_uppercase) {
                return wrong("key must be lowercase");
            }
            if !seen.insert(key.to_owned()) {
                return Err(format!("{at}.key: Duplicate value: {key:?}"));
            }
            let (at, source) = (format!("{at}.valueExpression"), mapping.value_expression.as_str());
            if source.is_empty() {
                return Err(format!("{at}: Required value: valueExpression is required"));
            }
            let expression = compiled(&at, source, Expression::mapping(About::Claims, source))?;
            Ok((key.to_owned(), expression))
        };
        self.extra.iter().enumerate().map(check).collect()
    }
}
