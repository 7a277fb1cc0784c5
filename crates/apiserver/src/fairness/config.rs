//! Flows and levels, made of the API's objects as a whole whenever one of them changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, PolicyRulesWithSubjects, PriorityLevelConfiguration, PriorityLevelConfigurationSpec,
};
use serde_json::Value;

use super::metrics::FlowStats;
use super::queues::{Shape, Work};
use super::shares::{self, Seats, Shares};
use super::{Lines, matching};
use crate::auth::UserInfo;
use crate::bootstrap;
use crate::request_info::RequestInfo;

/// What tells the flows of a schema apart (`distinguisherMethod`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinguisher {
    /// Nothing: one flow.
    None,
    /// The user.
    User,
    /// The namespace.
    Namespace,
}

impl Distinguisher {
    /// Of a request.
    pub fn of<'a>(self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self {
            Self::None => "",
            Self::User => &user.name,
            Self::Namespace => &info.namespace,
        }
    }
}

/// A FlowSchema whose level is there.
pub struct Flow {
    /// Its name.
    pub name: String,
    pub(super) uid: HeaderValue,
    precedence: i32,
    pub(super) by: Distinguisher,
    rules: Vec<PolicyRulesWithSubjects>,
    /// Where its requests run.
    pub level: Arc<Level>,
    pub(super) stats: Arc<FlowStats>,
}

/// A PriorityLevelConfiguration.
pub struct Level {
    /// Its name.
    pub name: String,
    pub(super) uid: HeaderValue,
    /// Its lines, which outlive this.
    pub lines: Arc<Lines>,
}

impl Level {
    /// Estimates a request by the level's own seats; in an exempt level nothing depends on it.
    pub fn estimate(&self, estimate: impl FnOnce(u32) -> Work) -> Work {
        if self.lines.is_exempt() { Work::ONE } else { estimate(self.lines.adjusted().seats.nominal) }
    }
}

/// All flows and levels.
pub struct Config {
    /// By precedence, then by name. The last one takes every request.
    pub flows: Vec<Arc<Flow>>,
    /// By name.
    pub levels: BTreeMap<String, Arc<Level>>,
    total: u32,
    start: Instant,
}

/// The level and the schema that are always there.
pub const CATCH_ALL: &str = "catch-all";
/// The level whose requests never wait.
pub const EXEMPT: &str = "exempt";

fn header(uid: Option<&String>) -> HeaderValue {
    uid.and_then(|uid| uid.parse().ok()).unwrap_or(HeaderValue::from_static(""))
}

/// A default object, as its type.
fn prototype<T: serde::de::DeserializeOwned>(objects: Vec<Value>, name: &str) -> Option<T> {
    let found = objects.into_iter().find(|o| o["metadata"]["name"] == name)?;
    serde_json::from_value(found).ok()
}

impl Config {
    /// The mandatory flows and levels only.
    pub fn mandatory(total: u32, start: Instant) -> Self {
        Self { flows: Vec::new(), levels: BTreeMap::new(), total, start }.with(Vec::new(), Vec::new())
    }

    /// What these objects say. Lines of levels that were there before go on.
    pub fn with(
        &self,
        mut levels: Vec<Arc<PriorityLevelConfiguration>>,
        mut schemas: Vec<Arc<FlowSchema>>,
    ) -> Self {
        for name in [EXEMPT, CATCH_ALL] {
            if !levels.iter().any(|level| level.metadata.name.as_deref() == Some(name)) {
                levels.extend(prototype(bootstrap::priority_levels(), name).map(Arc::new));
            }
            if !schemas.iter().any(|schema| schema.metadata.name.as_deref() == Some(name)) {
                let all = bootstrap::flow_schemas(jiff::Timestamp::UNIX_EPOCH);
                schemas.extend(prototype(all, name).map(Arc::new));
            }
        }
        let levels = self.levels_of(&levels);
        let mut flows: Vec<Arc<Flow>> =
            schemas.iter().filter_map(|schema| self.flow_of(schema, &levels)).collect();
        flows.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self { flows, levels, total: self.total, start: self.start }
    }

    fn levels_of(&self, levels: &[Arc<PriorityLevelConfiguration>]) -> BTreeMap<String, Arc<Level>> {
        let specs: Vec<_> = levels
            .iter()
            .filter_map(|level| Some((level, level.metadata.name.as_ref()?, level.spec.as_ref()?)))
            .collect();
        let all: Vec<Shares> = specs.iter().map(|(_, _, spec)| shares_of(spec)).collect();
        let seats = shares::divide(self.total, &all);
        specs
            .into_iter()
            .zip(seats)
            .map(|((level, name, spec), seats)| {
                let lines = self.lines_of(name, shape_of(spec), seats);
                let level = Level { name: name.clone(), uid: header(level.metadata.uid.as_ref()), lines };
                (name.clone(), Arc::new(level))
            })
            .collect()
    }

    fn lines_of(&self, name: &str, shape: Option<Shape>, seats: Seats) -> Arc<Lines> {
        let before = self.levels.get(name).map(|level| &level.lines);
        match before.filter(|lines| lines.is_exempt() == shape.is_none()) {
            Some(lines) => {
                lines.set(shape, seats);
                lines.clone()
            }
            None => Arc::new(Lines::new(name, shape, seats, self.start)),
        }
    }

    fn flow_of(&self, schema: &FlowSchema, levels: &BTreeMap<String, Arc<Level>>) -> Option<Arc<Flow>> {
        let (name, spec) = (schema.metadata.name.clone()?, schema.spec.as_ref()?);
        let level = levels.get(&spec.priority_level_configuration.name)?.clone();
        let by = match spec.distinguisher_method.as_ref().map(|method| method.type_.as_str()) {
            Some("ByUser") => Distinguisher::User,
            Some("ByNamespace") => Distinguisher::Namespace,
            _ => Distinguisher::None,
        };
        let before = self.flows.iter().find(|flow| flow.name == name && flow.level.name == level.name);
        Some(Arc::new(Flow {
            uid: header(schema.metadata.uid.as_ref()),
            precedence: spec.matching_precedence.unwrap_or(1000),
            by,
            rules: spec.rules.clone().unwrap_or_default(),
            stats: before.map(|flow| flow.stats.clone()).unwrap_or_default(),
            name,
            level,
        }))
    }

    /// The flow of a request: the first that matches, the last where none does.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<Arc<Flow>> {
        let found = self.flows.iter().find(|flow| matching::matches(&flow.rules, user, info));
        found.or_else(|| self.flows.iter().find(|flow| flow.name == CATCH_ALL)).cloned()
    }
}

fn number(given: Option<i32>, default: u32) -> u32 {
    given.map_or(default, |n| u32::try_from(n).unwrap_or(0))
}

fn shares_of(spec: &PriorityLevelConfigurationSpec) -> Shares {
    match (&spec.limited, &spec.exempt) {
        (Some(limited), _) => Shares {
            shares: number(limited.nominal_concurrency_shares, 30),
            lendable: number(limited.lendable_percent, 0).min(100),
            borrowing: limited.borrowing_limit_percent.map(|n| u32::try_from(n).unwrap_or(0)),
        },
        (None, Some(exempt)) => Shares {
            shares: number(exempt.nominal_concurrency_shares, 0),
            lendable: number(exempt.lendable_percent, 0).min(100),
            borrowing: None,
        },
        (None, None) => Shares { shares: 0, lendable: 0, borrowing: None },
    }
}

/// None for a level whose requests never wait.
fn shape_of(spec: &PriorityLevelConfigurationSpec) -> Option<Shape> {
    if spec.type_ == "Exempt" {
        return None;
    }
    let queuing = spec.limited.as_ref().and_then(|l| l.limit_response.as_ref()?.queuing.as_ref());
    let shape = queuing.map(|queuing| Shape {
        queues: number(queuing.queues, 64).max(1) as usize,
        hand: number(queuing.hand_size, 8).max(1) as usize,
        length: number(queuing.queue_length_limit, 50).max(1) as usize,
    });
    Some(shape.unwrap_or(Shape { queues: 0, hand: 1, length: 0 }))
}
