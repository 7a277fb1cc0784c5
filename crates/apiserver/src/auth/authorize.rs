//! Whether a caller may do what it asks: `system:masters`, our own parts, kubelets by [`super::node`], then RBAC. No
//! rule, no power.
//!
//! Rule: Kubernetes documentation, "Using RBAC Authorization". Roles and bindings are read from the watch cache
//! at every decision, so a change counts at once.

use std::sync::Arc;

use api::kinds::Kind;
use api::object::Object;
use api::selector::LabelSelector;
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};

use super::node::NodeAuthorizer;
use super::webhook::Mode;
use super::{AUTHENTICATED, MASTERS, UserInfo};
use crate::request_info::RequestInfo;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// What is asked, as rules see it.
#[derive(Debug, Clone, Default)]
pub struct Attributes<'a> {
    /// Verb.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// `pods`, or `pods/log`.
    pub resource: String,
    /// Namespace; empty at cluster scope.
    pub namespace: &'a str,
    /// Object name; may be empty.
    pub name: &'a str,
    /// The path of a request that names no resource.
    pub path: Option<&'a str>,
    /// API version; not looked at by rules.
    pub version: &'a str,
    /// `fieldSelector` of a collection request.
    pub field_selector: &'a str,
    /// `labelSelector` of a collection request.
    pub label_selector: &'a str,
}

/// What an authorizer says, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes; nobody else is asked.
    Allowed(String),
    /// No; nobody else is asked.
    Denied(String),
    /// Others may know.
    NoOpinion(String),
}

impl<'a> Attributes<'a> {
    /// Of a request.
    pub fn of(info: &'a RequestInfo) -> Self {
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        let selector = |name: &str| if selects { info.query.get(name) } else { "" };
        // a stream into a pod is a write, whatever the method: a WebSocket begins with a GET
        let connects = info.group.is_empty()
            && matches!(resource.as_str(), "pods/exec" | "pods/attach" | "pods/portforward");
        let mut attributes = Self {
            verb: if connects { "create" } else { &info.verb },
            group: &info.group,
            resource,
            namespace: &info.namespace,
            name: &info.name,
            path: (!info.is_resource).then_some(info.path.as_str()),
            version: &info.version,
            field_selector: selector("fieldSelector"),
            label_selector: selector("labelSelector"),
        };
        // a collection of one is that one
        if attributes.name.is_empty() {
            attributes.name = attributes.required_field("metadata.name").unwrap_or_default();
        }
        attributes
    }

    /// The value that the field selector demands of a field.
    pub fn required_field(&self, field: &str) -> Option<&'a str> {
        self.field_selector.split(',').find_map(|term| {
            let value = term.trim().strip_prefix(field)?.strip_prefix('=')?;
            Some(value.strip_prefix('=').unwrap_or(value)).filter(|v| !v.contains('\\'))
        })
    }
}

/// Which binding gives a rule to whom.
pub struct Grant<'a> {
    binding: &'a str,
    namespace: &'a str,
    role: &'a RoleRef,
    subject: &'a Subject,
}

impl std::fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace {
            "" => write!(f, "ClusterRoleBinding {:?}", self.binding)?,
            namespace => write!(f, "RoleBinding \"{}/{namespace}\"", self.binding)?,
        }
        write!(f, " of {} {:?} to {} ", self.role.kind, self.role.name, self.subject.kind)?;
        match (self.subject.kind.as_str(), &self.subject.namespace) {
            ("ServiceAccount", Some(namespace)) => write!(f, "\"{}/{namespace}\"", self.subject.name),
            _ => write!(f, "{:?}", self.subject.name),
        }
    }
}

/// The grants of our own parts: user or group, verbs, `group/resource` (`*` for all).
///
/// They hold before any role object exists, so that a damaged RBAC configuration cannot stop the cluster's parts.
const PARTS: &[(&str, &[&str], &[&str])] = &[
    ("system:kube-controller-manager", &["*"], &["*"]),
    ("system:kube-scheduler", READ, &["*"]),
    (
        "system:kube-scheduler",
        &["create", "patch", "update"],
        &[
            "/events",
            "events.k8s.io/events",
            "/pods/binding",
            "/bindings",
            "/pods/status",
            "coordination.k8s.io/leases",
        ],
    ),
    ("system:kube-scheduler", &["delete"], &["/pods"]),
    ("system:kube-scheduler", &["patch", "update"], &["/persistentvolumes", "/persistentvolumeclaims"]),
    ("system:kube-proxy", READ, &["/services", "/endpoints", "/nodes", "discovery.k8s.io/endpointslices"]),
    ("system:kube-proxy", &["create", "patch", "update"], &["/events", "events.k8s.io/events"]),
    ("system:kube-network", READ, &["/pods", "/namespaces", "/nodes", "networking.k8s.io/networkpolicies"]),
    (
        "system:kube-dns",
        READ,
        &["/services", "/endpoints", "/namespaces", "/pods", "discovery.k8s.io/endpointslices"],
    ),
];

/// The same for single objects: user or group, verbs, `group/resource`, namespace, name.
const PARTS_NAMED: &[(&str, &[&str], &str, &str, &str)] = &[
    // which resolvers the cluster wants for which domains; joined nodes answer names as well
    ("system:kube-dns", READ, "/configmaps", "kube-system", "kube-dns"),
    ("system:nodes", READ, "/configmaps", "kube-system", "kube-dns"),
];

const READ: &[&str] = &["get", "list", "watch"];

/// Paths that every caller with a credential may read.
const DISCOVERY: &[&str] =
    &["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz", "/.well-known", "/openid"];

/// Paths that even a caller without a credential may read.
pub const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Reviews of one's own rights, open to every caller with a credential.
const SELF_REVIEWS: &[(&str, &str)] = &[
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

fn below(path: &str, root: &str) -> bool {
    path == root || path.strip_prefix(root).is_some_and(|r| r.starts_with('/'))
}

/// Decides requests.
pub struct Authorizer {
    cache: Arc<WatchCache>,
    nodes: NodeAuthorizer,
    modes: Vec<Mode>,
}

fn kind(plural: &str) -> Option<&'static Arc<Kind>> {
    api::kinds::find("rbac.authorization.k8s.io", "v1", plural)
}

impl Authorizer {
    /// Reads roles and bindings from `cache`.
    pub fn new(cache: Arc<WatchCache>) -> Self {
        Self::with_modes(cache, vec![Mode::Node, Mode::Rbac])
    }

    /// Asks these, in this order.
    pub fn with_modes(cache: Arc<WatchCache>, modes: Vec<Mode>) -> Self {
        Self { nodes: NodeAuthorizer::new(cache.clone()), cache, modes }
    }

    /// Refuses (403) what no authorizer allows, programs outside included; else says why it is allowed.
    pub async fn authorize(&self, user: &UserInfo, what: &Attributes<'_>) -> ApiResult<String> {
        match self.decide_fully(user, what).await {
            Decision::Allowed(why) => Ok(why),
            Decision::Denied(why) | Decision::NoOpinion(why) => Err(refusal(user, what, &why)),
        }
    }

    /// Whether some authorizer allows it, programs outside included.
    pub async fn admits(&self, user: &UserInfo, what: &Attributes<'_>) -> bool {
        matches!(self.decide_fully(user, what).await, Decision::Allowed(_))
    }

    /// What all authorizers together say, programs outside included.
    pub async fn decide_fully(&self, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        if self.allows_without_roles(user, what) {
            return Decision::Allowed(String::new());
        }
        let mut reasons = Vec::new();
        for mode in &self.modes {
            let decision = match mode {
                Mode::Webhook(hook) => hook.decide(&self.cache, user, what).await,
                own => self.own(own, user, what),
            };
            match decision {
                Decision::NoOpinion(why) => reasons.push(why),
                decided => return decided,
            }
        }
        no_opinion(reasons)
    }

    /// Refuses (403) what no rule of ours allows.
    pub fn check(&self, user: &UserInfo, what: &Attributes<'_>) -> ApiResult<()> {
        match self.decide(user, what) {
            Decision::Allowed(_) => Ok(()),
            Decision::Denied(why) | Decision::NoOpinion(why) => Err(refusal(user, what, &why)),
        }
    }

    /// Whether some rule of ours allows it.
    pub fn allows(&self, user: &UserInfo, what: &Attributes<'_>) -> bool {
        matches!(self.decide(user, what), Decision::Allowed(_))
    }

    /// What our own authorizers say, and why (empty where no role says so).
    pub fn decide(&self, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        if self.allows_without_roles(user, what) {
            return Decision::Allowed(String::new());
        }
        let mut reasons = Vec::new();
        for mode in &self.modes {
            match self.own(mode, user, what) {
                Decision::NoOpinion(why) => reasons.push(why),
                decided => return decided,
            }
        }
        no_opinion(reasons)
    }

    fn own(&self, mode: &Mode, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        match mode {
            Mode::Node => self.nodes.decide(user, what),
            Mode::Rbac => self.by_roles(user, what),
            Mode::AlwaysAllow => Decision::Allowed(String::new()),
            Mode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".to_owned()),
            Mode::Webhook(_) => Decision::NoOpinion(String::new()),
        }
    }

    fn by_roles(&self, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        let mut decision = Decision::NoOpinion(String::new());
        self.each_rule(user, what.namespace, |rule, grant| {
            let allows = rule_allows(rule, what);
            if allows {
                decision = Decision::Allowed(format!("RBAC: allowed by {grant}"));
            }
            allows
        });
        decision
    }

    fn allows_without_roles(&self, user: &UserInfo, what: &Attributes<'_>) -> bool {
        if user.is_in(MASTERS) {
            return true;
        }
        if let Some(path) = what.path {
            let reads = what.verb == "get" || what.verb == "head";
            let open = |list: &[&str]| list.iter().any(|root| below(path, root));
            if reads && (open(PUBLIC) || user.is_in(AUTHENTICATED) && open(DISCOVERY)) {
                return true;
            }
        } else if user.is_in(AUTHENTICATED)
            && what.verb == "create"
            && SELF_REVIEWS.contains(&(what.group, what.resource.as_str()))
        {
            return true;
        }
        part_may(user, what)
    }

    /// Visits every rule that holds for `user` in `namespace` until `visit` answers true.
    pub fn each_rule(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&PolicyRule, &Grant<'_>) -> bool,
    ) -> bool {
        let (Some(bindings), Some(cluster_bindings)) = (kind("rolebindings"), kind("clusterrolebindings"))
        else {
            return false;
        };
        let cluster = self.cache.list(cluster_bindings, &cluster_bindings.storage_prefix, None).items;
        for binding in cluster.iter().filter_map(|o| o.typed::<ClusterRoleBinding>().ok()) {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            if let Some(subject) = binding.subjects.iter().flatten().find(|s| subject_is(s, user, "")) {
                let grant = Grant { binding: name, namespace: "", role: &binding.role_ref, subject };
                if self.rules(&binding.role_ref, "").iter().any(|rule| visit(rule, &grant)) {
                    return true;
                }
            }
        }
        if namespace.is_empty() {
            return false;
        }
        let prefix = format!("{}{namespace}/", bindings.storage_prefix);
        let local = self.cache.list(bindings, &prefix, None).items;
        for binding in local.iter().filter_map(|o| o.typed::<RoleBinding>().ok()) {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            if let Some(subject) = binding.subjects.iter().flatten().find(|s| subject_is(s, user, namespace))
            {
                let grant = Grant { binding: name, namespace, role: &binding.role_ref, subject };
                if self.rules(&binding.role_ref, namespace).iter().any(|rule| visit(rule, &grant)) {
                    return true;
                }
            }
        }
        false
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Vec<PolicyRule> {
        let found = |plural: &str, ns: &str| {
            let kind = kind(plural)?;
            self.cache.get(kind, &kind.key(ns, &role.name))
        };
        match role.kind.as_str() {
            "ClusterRole" => found("clusterroles", "").map(|o| self.cluster_rules(&o, AGGREGATION_DEPTH)),
            "Role" if !namespace.is_empty() => {
                found("roles", namespace).and_then(|o| o.typed::<Role>().ok()).and_then(|r| r.rules.clone())
            }
            _ => None,
        }
        .unwrap_or_default()
    }

    /// The rules of a role (`roles` of a namespace, or `clusterroles`) as JSON; 404 where there is none.
    pub fn rules_of(&self, plural: &str, namespace: &str, name: &str) -> ApiResult<serde_json::Value> {
        let kind = kind(plural).ok_or_else(ApiError::no_such_resource)?;
        let namespace = if kind.namespaced { namespace } else { "" };
        let role = self
            .cache
            .get(kind, &kind.key(namespace, name))
            .ok_or_else(|| ApiError::not_found(kind, name))?;
        let rules = match plural {
            "roles" => role.typed::<Role>().ok().and_then(|r| r.rules.clone()).unwrap_or_default(),
            _ => self.cluster_rules(&role, AGGREGATION_DEPTH),
        };
        Ok(serde_json::to_value(rules).unwrap_or_default())
    }

    /// A cluster role's rules. Those of an aggregated role are the rules of the roles it selects, read at every
    /// decision: they hold whether or not a controller has copied them yet.
    fn cluster_rules(&self, object: &Object, depth: usize) -> Vec<PolicyRule> {
        let Ok(role) = object.typed::<ClusterRole>() else { return Vec::new() };
        let mut rules = role.rules.clone().unwrap_or_default();
        let selectors = role.aggregation_rule.as_ref().and_then(|a| a.cluster_role_selectors.as_ref());
        let (Some(selectors), Some(kind), true) = (selectors, kind("clusterroles"), depth > 0) else {
            return rules;
        };
        let selectors: Vec<LabelSelector> =
            selectors.iter().filter_map(|s| LabelSelector::from_typed(Some(s)).ok()).collect();
        for other in self.cache.list(kind, &kind.storage_prefix, None).items {
            if other.name() != object.name() && selectors.iter().any(|s| s.matches(other.labels())) {
                rules.extend(self.cluster_rules(&other, depth - 1));
            }
        }
        rules
    }
}

/// How often an aggregated role may aggregate others again.
const AGGREGATION_DEPTH: usize = 4;

fn no_opinion(reasons: Vec<String>) -> Decision {
    let said: Vec<String> = reasons.into_iter().filter(|r| !r.is_empty()).collect();
    Decision::NoOpinion(said.join(", "))
}

/// 403 in the reference's words.
fn refusal(user: &UserInfo, what: &Attributes<'_>, why: &str) -> ApiError {
    let (who, verb) = (&user.name, what.verb);
    if let Some(path) = what.path {
        let message = format!("forbidden: User {who:?} cannot {verb} path {path:?}");
        return ApiError::forbidden_text(because(message, why), "", "", "");
    }
    let (plural, _) = what.resource.split_once('/').unwrap_or((&what.resource, ""));
    let qualified =
        if what.group.is_empty() { plural.to_owned() } else { format!("{plural}.{}", what.group) };
    let subject = if what.name.is_empty() { qualified } else { format!("{qualified} {:?}", what.name) };
    let scope = match what.namespace {
        "" => "at the cluster scope".to_owned(),
        ns => format!("in the namespace {ns:?}"),
    };
    let message = format!(
        "{subject} is forbidden: User {who:?} cannot {verb} resource {:?} in API group {:?} {scope}",
        what.resource, what.group
    );
    ApiError::forbidden_text(because(message, why), what.group, plural, what.name)
}

fn because(message: String, why: &str) -> String {
    if why.is_empty() { message } else { format!("{message}: {why}") }
}

fn part_may(user: &UserInfo, what: &Attributes<'_>) -> bool {
    if what.path.is_some() {
        return false;
    }
    let resource = format!("{}/{}", what.group, what.resource);
    let named = PARTS_NAMED.iter().any(|(who, verbs, wanted, namespace, name)| {
        (user.name == *who || user.is_in(who))
            && verbs.contains(&what.verb)
            && (*wanted, *namespace, *name) == (resource.as_str(), what.namespace, what.name)
    });
    named
        || PARTS.iter().any(|(who, verbs, resources)| {
            (user.name == *who || user.is_in(who))
                && verbs.iter().any(|v| *v == "*" || *v == what.verb)
                && resources.iter().any(|r| *r == "*" || *r == resource)
        })
}

fn subject_is(subject: &Subject, user: &UserInfo, namespace: &str) -> bool {
    match subject.kind.as_str() {
        "User" => subject.name == user.name,
        "Group" => user.is_in(&subject.name),
        "ServiceAccount" => {
            let ns = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
            user.name.strip_prefix("system:serviceaccount:")
                == Some(format!("{ns}:{}", subject.name).as_str())
        }
        _ => false,
    }
}

/// Whether a rule allows it.
pub fn rule_allows(rule: &PolicyRule, what: &Attributes<'_>) -> bool {
    let has = |list: &Option<Vec<String>>, value: &str| {
        list.iter().flatten().any(|item| item == "*" || item == value)
    };
    if !rule.verbs.iter().any(|v| v == "*" || v == what.verb) {
        return false;
    }
    if let Some(path) = what.path {
        return rule.non_resource_urls.iter().flatten().any(|url| match url.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => url == path,
        });
    }
    let resource_fits = has(&rule.resources, &what.resource)
        || what.resource.split_once('/').is_some_and(|(_, sub)| {
            rule.resources.iter().flatten().any(|r| r.strip_prefix("*/") == Some(sub))
        });
    let names = rule.resource_names.as_deref().unwrap_or_default();
    has(&rule.api_groups, what.group)
        && resource_fits
        && (names.is_empty() || names.iter().any(|n| n == what.name))
}
