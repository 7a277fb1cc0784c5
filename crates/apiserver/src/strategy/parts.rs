//! A strategy made of functions: most kinds differ from the generic behaviour in two or three places only.

use api::field::ErrorList;
use serde_json::Value;

use super::{Context, Deletion, NamespaceRule, Strategy, generic};

/// When the rules of new objects hold for updates too.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rules {
    /// They are reported after those of the change.
    AfterChange,
    /// They are reported before those of the change.
    BeforeChange,
    /// They are reported before those of the change, and again as a part of them.
    TwiceBeforeChange,
    /// They do not: what a stored object has was good when it was stored.
    OnCreate,
}

/// What a kind does differently.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) default: fn(&mut Value),
    /// After the generic preparation.
    pub(super) create: fn(&Context, &mut Value),
    /// After the generic preparation: new, old.
    pub(super) update: fn(&Context, &mut Value, &Value),
    /// A rule of new objects that the labels of their namespace decide.
    pub(super) in_namespace: Option<NamespaceRule>,
    /// Rules of new objects, and of updates as `rules` says.
    pub(super) validate: fn(&Value, &mut ErrorList),
    /// Further rules of updates (new, old).
    pub(super) validate_change: fn(&Value, &Value, &mut ErrorList),
    pub(super) rules: Rules,
    /// Members of metadata that an update of the status leaves as they are.
    pub(super) status_keeps: &'static [&'static str],
    /// After the generic preparation of an update of the status: new, old.
    pub(super) update_status: fn(&Context, &mut Value, &Value),
    pub(super) validate_status: fn(&Value, &Value, &mut ErrorList),
    /// Rules of updates through another subresource: its name, new, old.
    pub(super) validate_narrow: fn(&str, &Value, &Value, &mut ErrorList),
    /// Subresources that change one member only: name, path of the member.
    pub(super) narrow: &'static [(&'static str, &'static [&'static str])],
    pub(super) warn: fn(&Value, Option<&Value>) -> Vec<String>,
    pub(super) generation: bool,
    pub(super) status: bool,
    /// When deletion begins.
    pub(super) begin_deletion: fn(&Context, &mut Value),
    /// What counts as a change of the desired state; new, old.
    pub(super) desired_changed: fn(&Value, &Value) -> bool,
    pub(super) orphans: bool,
    pub(super) create_on_update: bool,
    pub(super) unconditional_update: bool,
}

impl Parts {
    pub(super) const PLAIN: Self = Self {
        default: |_| {},
        create: |_, _| {},
        update: |_, _, _| {},
        in_namespace: None,
        validate: |_, _| {},
        validate_change: |_, _, _| {},
        rules: Rules::AfterChange,
        status_keeps: &[],
        update_status: |_, _, _| {},
        validate_status: |_, _, _| {},
        validate_narrow: |_, _, _, _| {},
        narrow: &[],
        warn: |_, _| Vec::new(),
        generation: true,
        status: true,
        begin_deletion: |_, _| {},
        desired_changed: generic::desired_changed,
        orphans: false,
        create_on_update: false,
        unconditional_update: true,
    };
    /// A kind without status and generation.
    pub(super) const DATA: Self = Self { generation: false, status: false, ..Self::PLAIN };
    /// A kind with status, but without generation.
    pub(super) const UNCOUNTED: Self = Self { generation: false, ..Self::PLAIN };
}

impl Strategy for Parts {
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_create(&self, context: &Context, object: &mut Value) {
        generic::prepare_create(self.status, object);
        (self.create)(context, object);
    }

    fn namespace_rule(&self) -> Option<NamespaceRule> {
        self.in_namespace
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        (self.validate)(object, errors);
    }

    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) {
        if self.status {
            generic::copy("status", new, old);
        }
        (self.update)(context, new, old);
        if self.generation && (self.desired_changed)(new, old) {
            generic::count(new, old);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        let before = match self.rules {
            Rules::TwiceBeforeChange => 2,
            Rules::BeforeChange => 1,
            Rules::AfterChange | Rules::OnCreate => 0,
        };
        for _ in 0..before {
            (self.validate)(new, errors);
        }
        (self.validate_change)(new, old, errors);
        if self.rules == Rules::AfterChange {
            (self.validate)(new, errors);
        }
    }

    fn prepare_status_update(&self, context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_status_update(self.status_keeps, new, old);
        (self.update_status)(context, new, old);
    }

    fn status_keeps(&self) -> &'static [&'static str] {
        self.status_keeps
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        (self.validate_status)(new, old, errors);
    }

    fn prepare_subresource_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        if let Some((_, path)) = self.narrow.iter().find(|(name, _)| *name == subresource) {
            generic::take_only(path, new, old);
        }
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        errors: &mut ErrorList,
    ) {
        (self.validate_narrow)(subresource, new, old, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warn)(new, old)
    }

    fn begin_deletion(&self, context: &Context, object: &mut Value) {
        (self.begin_deletion)(context, object);
    }

    fn deletion(&self, _object: &Value) -> Deletion {
        Deletion::Immediate
    }

    fn orphans_by_default(&self) -> bool {
        self.orphans
    }

    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allows_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn allows_create_on_update(&self) -> bool {
        self.create_on_update
    }
}

/// The generic behaviour.
pub(super) static PLAIN: Parts = Parts::PLAIN;
/// The generic behaviour without generation.
pub(super) static UNCOUNTED: Parts = Parts::UNCOUNTED;
