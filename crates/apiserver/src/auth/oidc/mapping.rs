//! What the claims of a verified token must say, and what they make of its holder.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::UserInfo;
use crate::cel::access::Expression;

/// Seconds that an issuer's clock may be ahead.
const SKEW: f64 = 300.0;

/// A condition on claims.
pub(super) enum ClaimCheck {
    /// A claim is this text.
    Equals(String, String),
    /// An expression holds, else this is the reason.
    Holds(Expression, String),
}

/// Where a part of the user comes from.
pub(super) enum Source {
    Claim { name: String, prefix: String },
    Expression(Expression),
}

/// What an issuer's tokens are held against.
pub(super) struct Rules {
    /// The token must be for one of these.
    pub(super) audiences: Vec<String>,
    pub(super) claim_checks: Vec<ClaimCheck>,
    pub(super) username: Source,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Expression)>,
    /// Conditions on the user, and the reasons for who does not meet them.
    pub(super) user_checks: Vec<(Expression, String)>,
}

impl Rules {
    /// Whether names are made of addresses without a look at `email_verified`.
    pub(super) fn trusts_unverified_email(&self) -> bool {
        let Source::Expression(username) = &self.username else { return false };
        let checked = self.claim_checks.iter().filter_map(|check| match check {
            ClaimCheck::Holds(expression, _) => Some(expression),
            ClaimCheck::Equals(..) => None,
        });
        let mut looking = checked.chain(self.extra.iter().map(|(_, e)| e)).chain([username]);
        username.reads("email") && !looking.any(|e| e.reads("email_verified"))
    }

    /// Who the holder is; else why the token is refused.
    pub(super) fn user(&self, claims: &Value, now: Timestamp) -> Result<UserInfo, String> {
        self.check_time_and_audience(claims, now)?;
        for check in &self.claim_checks {
            check.verify(claims)?;
        }
        let name = self.name(claims)?;
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Source::Expression(expression)) => expression.texts(claims)?,
            Some(Source::Claim { name, prefix }) => {
                claimed_groups(claims, name)?.iter().map(|g| format!("{prefix}{g}")).collect()
            }
        };
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Expression(expression)) => expression.text(claims)?,
            Some(Source::Claim { name, .. }) => claims[name].as_str().unwrap_or_default().to_owned(),
        };
        let mut extra = BTreeMap::new();
        if let Some(id) = claims["jti"].as_str() {
            let key = "authentication.kubernetes.io/credential-id".to_owned();
            extra.insert(key, vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = expression.texts(claims)?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let shown = json!({"username": name, "uid": uid, "groups": groups, "extra": extra});
        for (expression, message) in &self.user_checks {
            if !expression.holds(&shown)? {
                return Err(failed(expression, message));
            }
        }
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        Ok(UserInfo { uid, extra, ..UserInfo::new(&name, &groups) })
    }

    fn check_time_and_audience(&self, claims: &Value, now: Timestamp) -> Result<(), String> {
        let second = now.as_second() as f64;
        if claims["exp"].as_f64().is_none_or(|exp| second >= exp) {
            return Err("expired".to_owned());
        }
        if claims["nbf"].as_f64().is_some_and(|nbf| second + SKEW < nbf) {
            return Err("not valid yet".to_owned());
        }
        let of_token: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        match self.audiences.iter().any(|a| of_token.contains(&a.as_str())) {
            true => Ok(()),
            false => Err(format!("for {of_token:?}")),
        }
    }

    fn name(&self, claims: &Value) -> Result<String, String> {
        match &self.username {
            Source::Expression(expression) => match expression.text(claims)? {
                name if name.is_empty() => Err("empty username via CEL expression is not allowed".to_owned()),
                name => Ok(name),
            },
            Source::Claim { name: claim, prefix } => {
                let name = claims[claim].as_str().filter(|n| !n.is_empty());
                let name = name.ok_or_else(|| format!("no claim {claim:?} that is text"))?;
                if claim == "email" && claims.get("email_verified").is_some_and(|v| *v != true) {
                    return Err("email not verified".to_owned());
                }
                Ok(format!("{prefix}{name}"))
            }
        }
    }
}

impl ClaimCheck {
    fn verify(&self, claims: &Value) -> Result<(), String> {
        match self {
            ClaimCheck::Equals(claim, wanted) => match claims.get(claim) {
                Some(Value::String(value)) if value == wanted => Ok(()),
                None => Err(format!("required claim {claim} not present")),
                Some(other) => Err(format!("required claim {claim} value does not match: {other}")),
            },
            ClaimCheck::Holds(expression, message) => match expression.holds(claims)? {
                true => Ok(()),
                false => Err(failed(expression, message)),
            },
        }
    }
}

fn failed(expression: &Expression, message: &str) -> String {
    let source = expression.source();
    match message {
        "" => format!("validation expression '{source}' failed"),
        message => format!("validation expression '{source}' failed: {message}"),
    }
}

/// The groups that a claim names: one text or a list.
fn claimed_groups(claims: &Value, claim: &str) -> Result<Vec<String>, String> {
    let wrong = || "groups are no texts".to_owned();
    match &claims[claim] {
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|g| g.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        Value::Null => Ok(Vec::new()),
        _ => Err(wrong()),
    }
}
