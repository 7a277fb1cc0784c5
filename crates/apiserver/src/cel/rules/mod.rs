//! The rules of custom resources: `x-kubernetes-validations` at any level of a schema.
//!
//! [`compile`] reads and checks them once, when the definition is stored; [`Rules::validate`] runs them on every write.
//! Rule: Kubernetes documentation, "Validation rules", "Transition rules", "Validation ratcheting"; texts as the
//! reference's.

mod compile;
mod field_path;
mod validate;

use std::collections::BTreeMap;

use api::field::Reason;

use super::Program;
use super::decl::Decl;

pub use compile::{check, compile};

/// What the rules of one version of a custom resource are.
#[derive(Debug, Default)]
pub struct Rules {
    root: Option<Node>,
}

impl Rules {
    /// Whether there are no rules at all.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

/// A level of the schema that has rules, or has some below.
#[derive(Debug)]
struct Node {
    rules: Vec<Rule>,
    decl: Decl,
    /// Whether errors show the value.
    shows_value: bool,
    properties: BTreeMap<String, Node>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
    all_of: Vec<Node>,
    /// What tells items of the list apart, where it is a map.
    keys: Option<Vec<String>>,
    /// Whether members are compared with those before.
    correlatable: bool,
}

#[derive(Debug)]
struct Rule {
    source: String,
    program: Program,
    /// Whether it compares with the state before.
    uses_old: bool,
    /// Whether `oldSelf` is an optional, so that the rule runs without a state before.
    optional_old: bool,
    message: String,
    message_expression: Option<(String, Program)>,
    reason: Reason,
    /// Where errors point to, below the level of the rule.
    field_path: String,
}

#[cfg(test)]
mod tests;
