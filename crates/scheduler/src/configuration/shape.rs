//! Fields and types of `KubeSchedulerConfiguration` v1: what is unknown or of another type is an error, as a strict
//! decoder of Go says it.
use api::field::Cursor;
use serde_json::Value;

/// What may stand somewhere.
pub(super) enum Shape {
    Text,
    Flag,
    /// Go's name of the type.
    Number(&'static str),
    /// Looked at elsewhere.
    Any,
    List(&'static Shape),
    /// Go's name of the struct, and its fields.
    Object(&'static str, &'static [(&'static str, &'static Shape)]),
}

use Shape::{Any, Flag, List, Number, Object, Text};

const INT: &Shape = &Number("int32");
const INT64: &Shape = &Number("int64");
const TEXTS: &Shape = &List(&Text);

const PLUGIN: &Shape = &Object("Plugin", &[("name", &Text), ("weight", INT)]);
const SET: &Shape = &Object("PluginSet", &[("enabled", &List(PLUGIN)), ("disabled", &List(PLUGIN))]);
const PLUGINS: &Shape = &Object(
    "Plugins",
    &[
        ("preEnqueue", SET),
        ("queueSort", SET),
        ("preFilter", SET),
        ("filter", SET),
        ("postFilter", SET),
        ("preScore", SET),
        ("score", SET),
        ("reserve", SET),
        ("permit", SET),
        ("preBind", SET),
        ("bind", SET),
        ("postBind", SET),
        ("multiPoint", SET),
        ("placementGenerate", SET),
        ("placementScore", SET),
    ],
);
const PROFILE: &Shape = &Object(
    "KubeSchedulerProfile",
    &[
        ("schedulerName", &Text),
        ("percentageOfNodesToScore", INT),
        ("plugins", PLUGINS),
        ("pluginConfig", &List(&Object("PluginConfig", &[("name", &Text), ("args", &Any)]))),
    ],
);
const TLS: &Shape = &Object(
    "ExtenderTLSConfig",
    &[
        ("insecure", &Flag),
        ("serverName", &Text),
        ("certFile", &Text),
        ("keyFile", &Text),
        ("caFile", &Text),
        ("certData", &Text),
        ("keyData", &Text),
        ("caData", &Text),
    ],
);
const MANAGED: &Shape = &Object("ExtenderManagedResource", &[("name", &Text), ("ignoredByScheduler", &Flag)]);
const EXTENDER: &Shape = &Object(
    "Extender",
    &[
        ("urlPrefix", &Text),
        ("filterVerb", &Text),
        ("preemptVerb", &Text),
        ("prioritizeVerb", &Text),
        ("weight", INT64),
        ("bindVerb", &Text),
        ("enableHTTPS", &Flag),
        ("tlsConfig", TLS),
        ("httpTimeout", &Text),
        ("nodeCacheCapable", &Flag),
        ("managedResources", &List(MANAGED)),
        ("ignorable", &Flag),
    ],
);

/// The whole.
pub(super) const CONFIGURATION: &Shape = &Object(
    "KubeSchedulerConfiguration",
    &[
        ("apiVersion", &Text),
        ("kind", &Text),
        ("parallelism", INT),
        (
            "leaderElection",
            &Object(
                "LeaderElectionConfiguration",
                &[
                    ("leaderElect", &Flag),
                    ("leaseDuration", &Text),
                    ("renewDeadline", &Text),
                    ("retryPeriod", &Text),
                    ("resourceLock", &Text),
                    ("resourceName", &Text),
                    ("resourceNamespace", &Text),
                ],
            ),
        ),
        (
            "clientConnection",
            &Object(
                "ClientConnectionConfiguration",
                &[
                    ("kubeconfig", &Text),
                    ("acceptContentTypes", &Text),
                    ("contentType", &Text),
                    ("qps", &Any),
                    ("burst", INT),
                ],
            ),
        ),
        ("enableProfiling", &Flag),
        ("enableContentionProfiling", &Flag),
        ("percentageOfNodesToScore", INT),
        ("podInitialBackoffSeconds", INT64),
        ("podMaxBackoffSeconds", INT64),
        ("profiles", &List(PROFILE)),
        ("extenders", &List(EXTENDER)),
        ("delayCacheUntilActive", &Flag),
    ],
);

const RESOURCES: &Shape = &List(&Object("ResourceSpec", &[("name", &Text), ("weight", INT64)]));
const SHAPE: &Shape = &List(&Object("UtilizationShapePoint", &[("utilization", INT), ("score", INT)]));
const REQUIREMENTS: &Shape =
    &List(&Object("NodeSelectorRequirement", &[("key", &Text), ("operator", &Text), ("values", TEXTS)]));
const TERM: &Shape =
    &Object("NodeSelectorTerm", &[("matchExpressions", REQUIREMENTS), ("matchFields", REQUIREMENTS)]);
const AFFINITY: &Shape = &Object(
    "NodeAffinity",
    &[
        (
            "requiredDuringSchedulingIgnoredDuringExecution",
            &Object("NodeSelector", &[("nodeSelectorTerms", &List(TERM))]),
        ),
        (
            "preferredDuringSchedulingIgnoredDuringExecution",
            &List(&Object("PreferredSchedulingTerm", &[("weight", INT), ("preference", TERM)])),
        ),
    ],
);
const CONSTRAINT: &Shape = &Object(
    "TopologySpreadConstraint",
    &[
        ("maxSkew", INT),
        ("topologyKey", &Text),
        ("whenUnsatisfiable", &Text),
        ("labelSelector", &Any),
        ("minDomains", INT),
        ("nodeAffinityPolicy", &Text),
        ("nodeTaintsPolicy", &Text),
        ("matchLabelKeys", TEXTS),
    ],
);

/// The arguments of a plugin; `None`: it takes none, or is not one of ours, and nobody looks at them.
pub(super) fn args(plugin: &str) -> Option<&'static Shape> {
    Some(match plugin {
        "DefaultPreemption" => &Object(
            "DefaultPreemptionArgs",
            &[
                ("apiVersion", &Text),
                ("kind", &Text),
                ("minCandidateNodesPercentage", INT),
                ("minCandidateNodesAbsolute", INT),
            ],
        ),
        "InterPodAffinity" => &Object(
            "InterPodAffinityArgs",
            &[
                ("apiVersion", &Text),
                ("kind", &Text),
                ("hardPodAffinityWeight", INT),
                ("ignorePreferredTermsOfExistingPods", &Flag),
            ],
        ),
        "NodeAffinity" => &Object(
            "NodeAffinityArgs",
            &[("apiVersion", &Text), ("kind", &Text), ("addedAffinity", AFFINITY)],
        ),
        "NodeResourcesBalancedAllocation" => &Object(
            "NodeResourcesBalancedAllocationArgs",
            &[("apiVersion", &Text), ("kind", &Text), ("resources", RESOURCES)],
        ),
        "NodeResourcesFit" => &Object(
            "NodeResourcesFitArgs",
            &[
                ("apiVersion", &Text),
                ("kind", &Text),
                ("ignoredResources", TEXTS),
                ("ignoredResourceGroups", TEXTS),
                (
                    "scoringStrategy",
                    &Object(
                        "ScoringStrategy",
                        &[
                            ("type", &Text),
                            ("resources", RESOURCES),
                            (
                                "requestedToCapacityRatio",
                                &Object("RequestedToCapacityRatioParam", &[("shape", SHAPE)]),
                            ),
                        ],
                    ),
                ),
            ],
        ),
        "PodTopologySpread" => &Object(
            "PodTopologySpreadArgs",
            &[
                ("apiVersion", &Text),
                ("kind", &Text),
                ("defaultConstraints", &List(CONSTRAINT)),
                ("defaultingType", &Text),
            ],
        ),
        "VolumeBinding" => &Object(
            "VolumeBindingArgs",
            &[("apiVersion", &Text), ("kind", &Text), ("bindTimeoutSeconds", INT64), ("shape", SHAPE)],
        ),
        "DynamicResources" => &Object(
            "DynamicResourcesArgs",
            &[("apiVersion", &Text), ("kind", &Text), ("filterTimeout", &Text), ("bindingTimeout", &Text)],
        ),
        _ => return None,
    })
}

/// What is wrong with a value's shape.
#[derive(Default)]
pub(super) struct Misshapen {
    /// `unknown field "profiles[0].name"`, one by one.
    pub(super) unknown: Vec<String>,
    /// The first value of another type.
    pub(super) mistyped: Option<String>,
}

impl Shape {
    /// Go's name of the type.
    fn go(&self) -> String {
        match self {
            Text => "string".to_owned(),
            Flag => "bool".to_owned(),
            Number(name) => (*name).to_owned(),
            Any => "runtime.RawExtension".to_owned(),
            List(of) => format!("[]{}", of.go()),
            Object(name, _) => format!("v1.{name}"),
        }
    }

    /// Gathers what is wrong at `at`, a field of `parent` (Go's name) whose path without indexes is `field`.
    pub(super) fn check(&self, at: &Cursor<'_>, parent: &str, field: &str, found: &mut Misshapen) {
        let Some(value) = at.value else { return };
        match (self, value) {
            (Any, _) | (Text, Value::String(_)) | (Flag, Value::Bool(_)) => {}
            (Number(name), Value::Number(n)) => {
                let whole = n.as_i64().filter(|n| *name != "int32" || i32::try_from(*n).is_ok());
                if whole.is_none() {
                    self.mismatch(&format!("number {n}"), parent, field, found);
                }
            }
            (List(of), Value::Array(_)) => {
                for item in at.items() {
                    of.check(&item, parent, field, found);
                }
            }
            (Object(name, fields), Value::Object(map)) => {
                for key in map.keys() {
                    let field_at = at.key(key);
                    match fields.iter().find(|(known, _)| known == key) {
                        Some((_, shape)) => {
                            let inner = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                            shape.check(&field_at, name, &inner, found);
                        }
                        None => found.unknown.push(format!("unknown field {:?}", field_at.path)),
                    }
                }
            }
            (_, other) => {
                let kind = match other {
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    Value::Array(_) => "array",
                    _ => "object",
                };
                self.mismatch(kind, parent, field, found);
            }
        }
    }

    fn mismatch(&self, kind: &str, parent: &str, field: &str, found: &mut Misshapen) {
        let into = if field.is_empty() {
            format!("Go value of type {}", self.go())
        } else {
            format!("Go struct field {parent}.{field} of type {}", self.go())
        };
        found.mistyped.get_or_insert_with(|| format!("json: cannot unmarshal {kind} into {into}"));
    }
}
