//! Questions to the authorizer: `authorizer.group('apps').resource('deployments').check('create').allowed()`.

use std::fmt;
use std::sync::Arc;

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::value::Value;
use super::{Opaque, made, opaque, text};

/// One question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// The service account to ask for (namespace, name); none: who makes the request.
    pub service_account: Option<(String, String)>,
    /// Verb.
    pub verb: String,
    /// The path of a question about no resource.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// May be empty.
    pub subresource: String,
    /// May be empty.
    pub namespace: String,
    /// May be empty.
    pub name: String,
    /// `metadata.name=a`; may be empty.
    pub field_selector: String,
    /// `app=a`; may be empty.
    pub label_selector: String,
}

/// What answers questions: whether it is allowed, and why.
pub trait Answers: Send + Sync {
    /// The answer, without I/O.
    fn ask(&self, question: &Question) -> (bool, String);
}

/// `authorizer`.
#[derive(Clone)]
pub(in super::super) struct Authorizer {
    answers: Arc<dyn Answers>,
    service_account: Option<(String, String)>,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer").field("service_account", &self.service_account).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub(in super::super) struct PathCheck {
    authorizer: Authorizer,
    path: String,
}

#[derive(Debug, Clone)]
pub(in super::super) struct GroupCheck {
    authorizer: Authorizer,
    group: String,
}

#[derive(Debug, Clone)]
pub(in super::super) struct ResourceCheck {
    authorizer: Authorizer,
    question: Box<Question>,
}

#[derive(Debug, Clone)]
pub(in super::super) struct Decision {
    allowed: bool,
    reason: String,
}

impl Authorizer {
    /// The variable `authorizer`.
    pub(in super::super) fn value<'a>(answers: Arc<dyn Answers>) -> Value<'a> {
        made(Opaque::Authorizer(Authorizer { answers, service_account: None }))
    }

    /// The variable `authorizer.requestResource`.
    pub(in super::super) fn request_resource<'a>(answers: Arc<dyn Answers>, question: Question) -> Value<'a> {
        let authorizer = Authorizer { answers, service_account: None };
        made(Opaque::ResourceCheck(ResourceCheck { authorizer, question: Box::new(question) }))
    }

    fn ask<'a>(&self, question: Question) -> Value<'a> {
        let question = Question { service_account: self.service_account.clone(), ..question };
        let (allowed, reason) = self.answers.ask(&question);
        made(Opaque::Decision(Decision { allowed, reason }))
    }
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "path",
        signatures: "Authorizer.(string):PathCheck",
        body: |_, args| {
            let (authorizer, path) = (authorizer(args)?, text(args, 1)?);
            if path.is_empty() {
                return Err(Error::new("path must not be empty"));
            }
            Ok(made(Opaque::PathCheck(PathCheck { authorizer: authorizer.clone(), path: path.to_owned() })))
        },
    },
    Declared {
        name: "group",
        signatures: "Authorizer.(string):GroupCheck",
        body: |_, args| {
            let (authorizer, group) = (authorizer(args)?, text(args, 1)?);
            Ok(made(Opaque::GroupCheck(GroupCheck {
                authorizer: authorizer.clone(),
                group: group.to_owned(),
            })))
        },
    },
    Declared {
        name: "serviceAccount",
        signatures: "Authorizer.(string,string):Authorizer",
        body: |_, args| {
            let (authorizer, namespace, name) = (authorizer(args)?, text(args, 1)?, text(args, 2)?);
            if let Some(wrong) = api::names::dns1123_subdomain(name).first() {
                return Err(Error::new(format!("Invalid service account name: {wrong}")));
            }
            if let Some(wrong) = api::names::dns1123_label(namespace).first() {
                return Err(Error::new(format!("Invalid service account namespace: {wrong}")));
            }
            Ok(made(Opaque::Authorizer(Authorizer {
                service_account: Some((namespace.to_owned(), name.to_owned())),
                ..authorizer.clone()
            })))
        },
    },
    Declared {
        name: "resource",
        signatures: "GroupCheck.(string):ResourceCheck",
        body: |_, args| {
            let Opaque::GroupCheck(check) = opaque(args, 0)? else { return Err(Error::no_overload()) };
            let question = Question {
                group: check.group.clone(),
                resource: text(args, 1)?.to_owned(),
                ..Question::default()
            };
            let authorizer = check.authorizer.clone();
            Ok(made(Opaque::ResourceCheck(ResourceCheck { authorizer, question: Box::new(question) })))
        },
    },
    Declared {
        name: "subresource",
        signatures: NARROWED,
        body: |_, args| narrowed(args, |q, s| q.subresource = s),
    },
    Declared {
        name: "namespace",
        signatures: NARROWED,
        body: |_, args| narrowed(args, |q, s| q.namespace = s),
    },
    Declared { name: "name", signatures: NARROWED, body: |_, args| narrowed(args, |q, s| q.name = s) },
    Declared {
        name: "fieldSelector",
        signatures: NARROWED,
        body: |_, args| narrowed(args, |q, s| q.field_selector = s),
    },
    Declared {
        name: "labelSelector",
        signatures: NARROWED,
        body: |_, args| narrowed(args, |q, s| q.label_selector = s),
    },
    Declared {
        name: "check",
        signatures: "PathCheck.(string):Decision ResourceCheck.(string):Decision",
        body: |_, args| {
            let verb = text(args, 1)?.to_owned();
            match opaque(args, 0)? {
                Opaque::PathCheck(check) => {
                    let question = Question { path: Some(check.path.clone()), verb, ..Question::default() };
                    Ok(check.authorizer.ask(question))
                }
                Opaque::ResourceCheck(check) => {
                    Ok(check.authorizer.ask(Question { verb, ..(*check.question).clone() }))
                }
                _ => Err(Error::no_overload()),
            }
        },
    },
    Declared {
        name: "allowed",
        signatures: "Decision.():bool",
        body: |_, args| decision(args).map(|d| Value::Bool(d.allowed)),
    },
    Declared {
        name: "reason",
        signatures: "Decision.():string",
        body: |_, args| decision(args).map(|d| Value::text(d.reason.as_str())),
    },
    Declared {
        name: "errored",
        signatures: "Decision.():bool",
        body: |_, args| decision(args).map(|_| Value::Bool(false)),
    },
    Declared {
        name: "error",
        signatures: "Decision.():string",
        body: |_, args| decision(args).map(|_| Value::text("")),
    },
];

const NARROWED: &str = "ResourceCheck.(string):ResourceCheck";

fn authorizer<'v>(args: &'v [Value<'_>]) -> Result<&'v Authorizer, Error> {
    match opaque(args, 0)? {
        Opaque::Authorizer(authorizer) => Ok(authorizer),
        _ => Err(Error::no_overload()),
    }
}

fn decision<'v>(args: &'v [Value<'_>]) -> Result<&'v Decision, Error> {
    match opaque(args, 0)? {
        Opaque::Decision(decision) => Ok(decision),
        _ => Err(Error::no_overload()),
    }
}

fn narrowed<'a>(args: &[Value<'a>], set: fn(&mut Question, String)) -> Result<Value<'a>, Error> {
    let Opaque::ResourceCheck(check) = opaque(args, 0)? else { return Err(Error::no_overload()) };
    let mut check = check.clone();
    set(&mut check.question, text(args, 1)?.to_owned());
    Ok(made(Opaque::ResourceCheck(check)))
}
