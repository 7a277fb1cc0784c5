//! Affinity between pods, spread constraints and preemption on made-up clusters: by example, and against a slow reading
//! of the rules on random ones.
use std::collections::BTreeMap;
use std::sync::Arc;

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use scheduler::evaluate::{Evaluator, Placement};
use scheduler::filter;
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::preemption::{self, Preemption};
use scheduler::profile::Profile;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

fn node(name: &str, labels: Value) -> Arc<Node> {
    let mut all = json!({"kubernetes.io/hostname": name});
    all.as_object_mut().expect("map").extend(labels.as_object().expect("map").clone());
    let value = json!({"metadata": {"name": name, "labels": all}, "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    Arc::new(serde_json::from_value(value).expect("node"))
}

fn pod_value(name: &str, ns: &str, labels: Value, spec: Value) -> Value {
    let mut value =
        json!({"metadata": {"name": name, "namespace": ns, "uid": name, "labels": labels}, "spec": spec});
    if value["spec"]["containers"].is_null() {
        value["spec"]["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]);
    }
    value
}

struct Cluster {
    snapshot: Snapshot,
    demands: Demands,
    evaluator: Evaluator,
}

impl Cluster {
    fn new(nodes: &[(&str, Value)]) -> Self {
        let mut snapshot = Snapshot::default();
        for (name, labels) in nodes {
            snapshot.set_node(&node(name, labels.clone()));
        }
        let evaluator = Evaluator::new(SmallRng::seed_from_u64(1), Profile::default());
        Self { snapshot, demands: Demands::default(), evaluator }
    }

    /// Two zones with two nodes each.
    fn zones() -> Self {
        let zone = |z: &str| json!({"zone": z});
        Self::new(&[("a1", zone("a")), ("a2", zone("a")), ("b1", zone("b")), ("b2", zone("b"))])
    }

    fn info(&mut self, value: Value) -> PodInfo {
        let pod: Pod = serde_json::from_value(value).expect("pod");
        self.demands.info(&Arc::new(pod))
    }

    fn on(&mut self, node: &str, value: Value) -> PodInfo {
        let pod = self.info(value);
        self.snapshot.place(&pod, node);
        pod
    }

    /// Nodes that take the pod, or why none does.
    fn fits(&mut self, value: Value) -> String {
        let pod = self.info(value);
        let mut names = Vec::new();
        for &slot in &self.snapshot.order().to_vec() {
            match self.evaluator.fits(&pod, slot, &self.snapshot) {
                Ok(()) => names.push(self.snapshot.node(slot).name.to_string()),
                Err(r) if self.snapshot.order().len() == 1 => {
                    let plugin = filter::FILTERS[r.filter].name;
                    return format!("{plugin}: {} ({})", r.reasons.join(", "), r.resolvable);
                }
                Err(_) => {}
            }
        }
        names.join(" ")
    }

    fn place(&mut self, value: Value) -> String {
        let pod = self.info(value);
        match self.evaluator.place(&pod, &self.snapshot) {
            Placement::Node(slot) => {
                let name = self.snapshot.node(slot).name.clone();
                self.snapshot.place(&pod, &name);
                name.to_string()
            }
            Placement::Nowhere(_) => "nowhere".to_owned(),
            Placement::NoNodes => "no nodes".to_owned(),
            Placement::Refused(refusal) => refusal.reason,
        }
    }
}

fn app(name: &str) -> Value {
    json!({"app": name})
}

/// A term on `app`, by `key`.
fn term(name: &str, key: &str) -> Value {
    json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": name}}})
}

fn affinity(kind: &str, terms: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn preferred(kind: &str, weight: i32, term: Value) -> Value {
    json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": term}]}}})
}

#[test]
fn required_affinity_follows_pods_by_domain() {
    let mut c = Cluster::zones();
    c.on("a1", pod_value("db", "d", app("db"), json!({})));
    let near = |key: &str| pod_value("p", "d", app("web"), affinity("podAffinity", json!([term("db", key)])));
    assert_eq!(c.fits(near("zone")), "a1 a2");
    assert_eq!(c.fits(near("kubernetes.io/hostname")), "a1");
    assert_eq!(c.fits(near("rack")), "", "no node has the label");
    let elsewhere = pod_value("p", "other", app("web"), affinity("podAffinity", json!([term("db", "zone")])));
    assert_eq!(c.fits(elsewhere), "", "terms speak of the pod's own namespace");
}

#[test]
fn the_first_of_a_series_may_go_anywhere() {
    let mut c = Cluster::zones();
    let own =
        |name: &str| pod_value(name, "d", app("web"), affinity("podAffinity", json!([term("web", "zone")])));
    assert_eq!(c.fits(own("p")), "a1 a2 b1 b2");
    let first = c.place(own("p1"));
    let zone = &first[..1];
    assert_eq!(c.fits(own("p2")), format!("{zone}1 {zone}2"));
}

#[test]
fn anti_affinity_holds_both_ways() {
    let mut c = Cluster::zones();
    let lonely = |name: &str| {
        pod_value(name, "d", app("web"), affinity("podAntiAffinity", json!([term("web", "zone")])))
    };
    c.on("a1", lonely("w1"));
    assert_eq!(c.fits(lonely("w2")), "b1 b2");
    let plain = pod_value("p", "d", app("web"), json!({}));
    assert_eq!(c.fits(plain.clone()), "b1 b2", "a pod without terms is kept out too");
    assert_eq!(c.fits(pod_value("p", "d", app("db"), json!({}))), "a1 a2 b1 b2");
    c.snapshot.remove("w1");
    assert_eq!(c.fits(plain), "a1 a2 b1 b2");
}

#[test]
fn namespaces_are_chosen_by_name_and_by_label() {
    let mut c = Cluster::zones();
    c.snapshot.set_namespace("x", Some(BTreeMap::from([("team".to_owned(), "red".to_owned())])));
    c.on("a1", pod_value("db", "x", app("db"), json!({})));
    let with = |extra: Value| {
        let mut t = term("db", "zone");
        t.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
        pod_value("p", "d", app("web"), affinity("podAffinity", json!([t])))
    };
    assert_eq!(c.fits(with(json!({}))), "");
    assert_eq!(c.fits(with(json!({"namespaces": ["x"]}))), "a1 a2");
    assert_eq!(c.fits(with(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}))), "a1 a2");
    assert_eq!(
        c.fits(with(json!({"namespaceSelector": {}}))),
        "a1 a2",
        "an empty selector is all namespaces"
    );
    c.snapshot.set_namespace("x", Some(BTreeMap::from([("team".to_owned(), "blue".to_owned())])));
    assert_eq!(c.fits(with(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}))), "");
}

#[test]
fn label_keys_are_added_to_a_terms_selector() {
    let mut c = Cluster::zones();
    let labels = |version: &str| json!({"app": "web", "version": version});
    c.on("a1", pod_value("old", "d", labels("1"), json!({})));
    let mut t = term("web", "zone");
    t["matchLabelKeys"] = json!(["version", "missing"]);
    let apart = |version: &str, t: &Value| {
        pod_value("p", "d", labels(version), affinity("podAntiAffinity", json!([t])))
    };
    assert_eq!(c.fits(apart("1", &t)), "b1 b2");
    assert_eq!(c.fits(apart("2", &t)), "a1 a2 b1 b2");
    let mut t = term("web", "zone");
    t["mismatchLabelKeys"] = json!(["version"]);
    assert_eq!(c.fits(apart("1", &t)), "a1 a2 b1 b2");
    assert_eq!(c.fits(apart("2", &t)), "b1 b2");
}

#[test]
fn objections_are_named_as_kubernetes_names_them() {
    let one = || Cluster::new(&[("n", json!({"zone": "a"}))]);
    let web = || pod_value("w", "d", app("web"), json!({}));
    let spread = |key: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "minDomains": 2, "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let mut lines = Vec::new();
    lines.push(one().fits(pod_value(
        "p",
        "d",
        app("x"),
        affinity("podAffinity", json!([term("db", "zone")])),
    )));
    let mut c = one();
    c.on("n", web());
    lines.push(c.fits(pod_value(
        "p",
        "d",
        app("x"),
        affinity("podAntiAffinity", json!([term("web", "zone")])),
    )));
    lines.push(c.fits(pod_value("p", "d", app("web"), spread("zone"))));
    lines.push(c.fits(pod_value("p", "d", app("web"), spread("rack"))));
    let mut c = one();
    c.on("n", pod_value("w", "d", app("web"), affinity("podAntiAffinity", json!([term("x", "zone")]))));
    lines.push(c.fits(pod_value("p", "d", app("x"), json!({}))));
    expect_test::expect![[r#"
        InterPodAffinity: node(s) didn't match pod affinity rules (false)
        InterPodAffinity: node(s) didn't match pod anti-affinity rules (true)
        PodTopologySpread: node(s) didn't match pod topology spread constraints (true)
        PodTopologySpread: node(s) didn't match pod topology spread constraints (missing required label) (false)
        InterPodAffinity: node(s) didn't satisfy existing pods anti-affinity rules (true)"#]]
    .assert_eq(&lines.join("\n"));
}

fn constraint(extra: Value) -> Value {
    let mut c = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    c.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
    c
}

fn spread_pod(name: &str, constraints: Value, spec: Value) -> Value {
    let mut value = pod_value(name, "d", app("web"), spec);
    value["spec"]["topologySpreadConstraints"] = constraints;
    value
}

#[test]
fn hard_spread_keeps_the_skew() {
    let mut c = Cluster::zones();
    let pod = |name: &str| spread_pod(name, json!([constraint(json!({}))]), json!({}));
    let mut zones = [0, 0];
    for n in 0..20 {
        let node = c.place(pod(&format!("p{n}")));
        zones[usize::from(node.starts_with('b'))] += 1;
        assert!(i32::abs(zones[0] - zones[1]) <= 1, "{zones:?}");
    }
    c.on("a1", pod_value("more", "d", app("web"), json!({})));
    assert_eq!(c.fits(pod("p")), "b1 b2");
    let terminating = {
        let mut value = pod_value("more", "d", app("web"), json!({}));
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        value
    };
    c.on("a1", terminating);
    assert_eq!(c.fits(pod("p")), "a1 a2 b1 b2", "pods on their way out do not count");
}

#[test]
fn spread_counts_the_nodes_its_policies_say() {
    let tainted = |name: &str, zone: &str| {
        let mut node: Value = serde_json::to_value(&*node(name, json!({"zone": zone}))).expect("json");
        node["spec"]["taints"] = json!([{"key": "t", "effect": "NoSchedule"}]);
        Arc::new(serde_json::from_value::<Node>(node).expect("node"))
    };
    let mut c = Cluster::zones();
    c.snapshot.set_node(&tainted("c1", "c"));
    c.on("a1", pod_value("w1", "d", app("web"), json!({})));
    c.on("b1", pod_value("w2", "d", app("web"), json!({})));
    let pod = |extra: Value, spec: Value| spread_pod("p", json!([constraint(extra)]), spec);
    assert_eq!(c.fits(pod(json!({}), json!({}))), "", "zone c counts as empty although its node is tainted");
    assert_eq!(c.fits(pod(json!({"nodeTaintsPolicy": "Honor"}), json!({}))), "a1 a2 b1 b2");
    let only_a = json!({"nodeSelector": {"zone": "a"}});
    assert_eq!(c.fits(pod(json!({}), only_a.clone())), "a1 a2", "other zones do not count");
    assert_eq!(c.fits(pod(json!({"nodeAffinityPolicy": "Ignore"}), only_a)), "");
    assert_eq!(c.fits(pod(json!({"nodeTaintsPolicy": "Honor", "minDomains": 3}), json!({}))), "");
    assert_eq!(c.fits(pod(json!({"nodeTaintsPolicy": "Honor", "minDomains": 2}), json!({}))), "a1 a2 b1 b2");
    let other_version = json!({"nodeTaintsPolicy": "Honor", "minDomains": 9, "matchLabelKeys": ["app"]});
    assert_eq!(c.fits(pod(other_version, json!({}))), "", "own pods still count");
}

#[test]
fn soft_spread_and_preferred_terms_steer() {
    let mut c = Cluster::zones();
    let soft = |name: &str| {
        spread_pod(name, json!([constraint(json!({"whenUnsatisfiable": "ScheduleAnyway"}))]), json!({}))
    };
    c.on("a1", soft("p0"));
    assert!(c.place(soft("p1")).starts_with('b'));
    let mut c = Cluster::zones();
    c.on("a1", pod_value("db", "d", app("db"), json!({})));
    let to = preferred("podAffinity", 100, term("db", "zone"));
    let from = preferred("podAntiAffinity", 100, term("db", "kubernetes.io/hostname"));
    assert!(c.place(pod_value("p1", "d", app("x"), to)).starts_with('a'));
    assert_ne!(c.place(pod_value("p2", "d", app("y"), from)), "a1");
    // The required affinity of a pod that is there draws others like those it wanted.
    let mut c = Cluster::zones();
    c.on(
        "b1",
        pod_value("w", "d", app("w"), affinity("podAffinity", json!([term("w", "kubernetes.io/hostname")]))),
    );
    assert_eq!(c.place(pod_value("p", "d", app("w"), json!({}))), "b1");
}

/// Random pods, departures and namespaces: what the counts say is what a slow reading of the rules says.
#[test]
fn counts_agree_with_a_slow_reading_of_the_rules() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut c = Cluster::new(&[]);
        for n in 0..8 {
            let mut labels = json!({"zone": format!("z{}", n % 3)});
            if n == 7 {
                labels = json!({});
            }
            c.snapshot.set_node(&node(&format!("n{n}"), labels));
        }
        for ns in ["d", "e"] {
            c.snapshot.set_namespace(ns, Some(BTreeMap::from([("name".to_owned(), ns.to_owned())])));
        }
        let mut placed: Vec<(Value, String)> = Vec::new();
        for step in 0..150 {
            if random.random_bool(0.3) && !placed.is_empty() {
                let (gone, _) = placed.swap_remove(random.random_range(0..placed.len()));
                c.snapshot.remove(gone["metadata"]["uid"].as_str().expect("uid"));
                continue;
            }
            let apps = ["a", "b", "c"];
            let some = |random: &mut StdRng| apps[random.random_range(0..3)];
            let key = |random: &mut StdRng| ["zone", "kubernetes.io/hostname"][random.random_range(0..2)];
            let mut spec = json!({});
            match random.random_range(0..6) {
                0 => spec = affinity("podAffinity", json!([term(some(&mut random), key(&mut random))])),
                1 => {
                    let mut t = term(some(&mut random), key(&mut random));
                    if random.random_bool(0.5) {
                        t["namespaceSelector"] = json!({"matchLabels": {"name": "e"}});
                    }
                    spec = affinity("podAntiAffinity", json!([t]));
                }
                2 | 3 => {
                    let c = json!({"maxSkew": random.random_range(1..3), "topologyKey": key(&mut random), "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": some(&mut random)}}});
                    spec = json!({"topologySpreadConstraints": [c]});
                }
                _ => {}
            }
            let ns = ["d", "e"][random.random_range(0..2)];
            let value = pod_value(&format!("p{step}"), ns, app(some(&mut random)), spec);
            let pod = c.info(value.clone());
            for slot in c.snapshot.order().to_vec() {
                let fits = c.evaluator.fits(&pod, slot, &c.snapshot).is_ok();
                let name = c.snapshot.node(slot).name.to_string();
                assert_eq!(
                    fits,
                    slow(&c.snapshot, &placed, &value, &name),
                    "seed {seed} step {step} node {name} {value}"
                );
            }
            if let Placement::Node(slot) = c.evaluator.place(&pod, &c.snapshot) {
                let name = c.snapshot.node(slot).name.to_string();
                c.snapshot.place(&pod, &name);
                placed.push((value, name));
            }
        }
    }
}

/// Whether the rules let `pod` onto `name`, pod by pod and node by node.
fn slow(snapshot: &Snapshot, placed: &[(Value, String)], pod: &Value, name: &str) -> bool {
    let label = |node: &str, key: &str| {
        snapshot.find(node).and_then(|s| snapshot.node(s).label(key)).map(str::to_owned)
    };
    let selects = |selector: &Value, pod: &Value| {
        LabelSelector::from_value(selector)
            .expect("selector")
            .matches(&api::meta::string_map(&pod["metadata"]["labels"]))
    };
    let means = |term: &Value, owner: &Value, other: &Value| {
        let ns = &other["metadata"]["namespace"];
        let by_label = &term["namespaceSelector"];
        let here = if by_label.is_null() {
            ns == &owner["metadata"]["namespace"]
        } else {
            ns == &by_label["matchLabels"]["name"]
        };
        here && selects(&term["labelSelector"], other)
    };
    let terms = |pod: &Value, kind: &str| {
        pod["spec"]["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let together = |a: &str, b: &str, key: &Value| {
        let key = key.as_str().expect("key");
        label(a, key).is_some() && label(a, key) == label(b, key)
    };
    for term in terms(pod, "podAffinity") {
        let there =
            placed.iter().any(|(o, n)| means(&term, pod, o) && together(n, name, &term["topologyKey"]));
        let labelled = |n: &str| label(n, term["topologyKey"].as_str().expect("key")).is_some();
        let none = !placed.iter().any(|(o, n)| means(&term, pod, o) && labelled(n));
        if !labelled(name) || !(there || none && means(&term, pod, pod)) {
            return false;
        }
    }
    for (other, node) in placed {
        let mine = terms(pod, "podAntiAffinity")
            .iter()
            .any(|t| means(t, pod, other) && together(node, name, &t["topologyKey"]));
        let theirs = terms(other, "podAntiAffinity")
            .iter()
            .any(|t| means(t, other, pod) && together(node, name, &t["topologyKey"]));
        if mine || theirs {
            return false;
        }
    }
    for c in pod["spec"]["topologySpreadConstraints"].as_array().into_iter().flatten() {
        let key = c["topologyKey"].as_str().expect("key");
        let Some(own) = label(name, key) else { return false };
        let mut domains: BTreeMap<String, i64> = BTreeMap::new();
        for slot in snapshot.order() {
            if let Some(value) = snapshot.node(*slot).label(key) {
                domains.entry(value.to_owned()).or_default();
            }
        }
        for (other, node) in placed {
            let counts = other["metadata"]["namespace"] == pod["metadata"]["namespace"]
                && selects(&c["labelSelector"], other);
            if let Some(value) = label(node, key).filter(|_| counts) {
                *domains.entry(value).or_default() += 1;
            }
        }
        let lowest = domains.values().min().copied().unwrap_or(0);
        let skew = domains[&own] + i64::from(selects(&c["labelSelector"], pod)) - lowest;
        if skew > c["maxSkew"].as_i64().expect("skew") {
            return false;
        }
    }
    true
}

fn sized(name: &str, priority: i32, cpu: &str, started: &str) -> Value {
    let mut value = pod_value(
        name,
        "d",
        app(name),
        json!({"priority": priority,
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}),
    );
    if !started.is_empty() {
        value["status"] = json!({"startTime": started});
    }
    value
}

impl Cluster {
    /// Node and victims, or what is said.
    fn preempts(&mut self, value: Value, budgets: &[Value]) -> String {
        let pod = self.info(value);
        let budgets: Vec<Arc<PodDisruptionBudget>> =
            budgets.iter().map(|b| Arc::new(serde_json::from_value(b.clone()).expect("budget"))).collect();
        let Placement::Nowhere(why) = self.evaluator.place(&pod, &self.snapshot) else {
            return "fits".to_owned();
        };
        match preemption::run(&mut self.evaluator, &pod, &self.snapshot, &why, &budgets, 0) {
            Preemption::NotEligible(text) => text.to_owned(),
            Preemption::NotHelpful(tried) => tried
                .iter()
                .flat_map(|r| r.reasons.iter().map(|r| r.to_string()))
                .collect::<Vec<_>>()
                .join(", "),
            Preemption::Found(v) => {
                let names: Vec<_> = v.pods.iter().map(PodInfo::name).collect();
                format!("{}: {} ({})", self.snapshot.node(v.slot).name, names.join(" "), v.violations)
            }
        }
    }
}

#[test]
fn victims_are_the_fewest_and_least_important() {
    let mut c = Cluster::new(&[("n", json!({}))]);
    c.on("n", sized("low", 1, "1", ""));
    c.on("n", sized("mid", 2, "2", ""));
    c.on("n", sized("high", 9, "1", ""));
    assert_eq!(c.preempts(sized("p", 5, "1", ""), &[]), "n: low (0)");
    assert_eq!(c.preempts(sized("p", 5, "2", ""), &[]), "n: mid (0)", "the important one stays if it can");
    assert_eq!(c.preempts(sized("p", 5, "3", ""), &[]), "n: mid low (0)");
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[]), "Insufficient cpu");
    assert_eq!(c.preempts(sized("p", 0, "1", ""), &[]), "No preemption victims found for incoming pod");
    let mut never = sized("p", 5, "1", "");
    never["spec"]["preemptionPolicy"] = json!("Never");
    assert_eq!(c.preempts(never, &[]), "not eligible due to preemptionPolicy=Never.");
    assert_eq!(c.snapshot.node(0).pod_count(), 3, "a decision changes nothing");
}

#[test]
fn a_node_is_chosen_by_budgets_importance_number_and_age() {
    let budget = |name: &str, allowed: i32| {
        json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"selector": {"matchLabels": {"app": name}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}})
    };
    let two = || Cluster::new(&[("x", json!({})), ("y", json!({}))]);
    let mut c = two();
    c.on("x", sized("x1", 1, "4", ""));
    c.on("y", sized("y1", 2, "4", ""));
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[]), "x: x1 (0)", "the least important victim");
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[budget("x1", 0)]), "y: y1 (0)", "budgets come first");
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[budget("x1", 1)]), "x: x1 (0)");
    let mut c = two();
    for n in 0..2 {
        c.on("x", sized(&format!("x{n}"), 1, "2", ""));
    }
    c.on("y", sized("y1", 1, "4", ""));
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[]), "y: y1 (0)", "fewer victims");
    let mut c = two();
    c.on("x", sized("x1", 1, "4", "2026-01-01T00:00:00Z"));
    c.on("y", sized("y1", 1, "4", "2026-01-02T00:00:00Z"));
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[]), "y: y1 (0)", "what ran the shortest");
}

#[test]
fn protected_pods_are_put_back_first() {
    let mut c = Cluster::new(&[("n", json!({}))]);
    c.on("n", sized("kept", 1, "2", ""));
    c.on("n", sized("other", 2, "2", ""));
    let budget = json!({"metadata": {"name": "b", "namespace": "d"}, "spec": {"selector": {"matchLabels": {"app": "kept"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    assert_eq!(c.preempts(sized("p", 5, "2", ""), std::slice::from_ref(&budget)), "n: other (0)");
    assert_eq!(c.preempts(sized("p", 5, "4", ""), &[budget]), "n: other kept (1)");
}

#[test]
fn preemption_knows_about_relations() {
    let mut c = Cluster::zones();
    for (node, name) in [("a1", "w1"), ("b1", "w2")] {
        let mut value =
            pod_value(name, "d", app("web"), affinity("podAntiAffinity", json!([term("web", "zone")])));
        value["spec"]["priority"] = json!(i32::from(name == "w2"));
        c.on(node, value);
    }
    let mut pod = pod_value("p", "d", app("web"), json!({}));
    pod["spec"]["priority"] = json!(5);
    assert_eq!(
        c.preempts(pod.clone(), &[]),
        "a1: w1 (0)",
        "only the pod that is in the way, only on its node"
    );
    // Counts are what they were.
    assert_eq!(c.fits(pod), "");
}

#[test]
fn promised_room_is_kept_for_the_more_important() {
    let mut c = Cluster::new(&[("n", json!({}))]);
    let promised = c.info(sized("promised", 5, "3", ""));
    c.snapshot.nominate(&promised, Some("n"));
    assert_eq!(c.place(sized("less", 1, "2", "")), "nowhere");
    assert_eq!(c.fits(sized("equal", 5, "2", "")), "NodeResourcesFit: Insufficient cpu (true)");
    assert_eq!(c.fits(sized("more", 6, "2", "")), "n");
    assert_eq!(c.place(sized("promised", 5, "3", "")), "n", "its own promise is not in its way");
    c.snapshot.nominate(&promised, None);
    assert_eq!(c.place(sized("less", 1, "1", "")), "n");
}

#[test]
fn a_pod_whose_victims_are_leaving_waits() {
    let mut c = Cluster::new(&[("n", json!({}))]);
    let mut victim = sized("v", 1, "4", "");
    victim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    victim["status"] = json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]});
    c.on("n", victim);
    let pod = c.info(sized("p", 5, "4", ""));
    c.snapshot.nominate(&pod, Some("n"));
    assert_eq!(
        c.preempts(sized("p", 5, "4", ""), &[]),
        "not eligible due to a terminating pod on the nominated node."
    );
}

/// Random preemptions: what the victims leave behind really fits, and no victim could have stayed.
#[test]
fn victims_suffice_and_none_is_needless() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut c = Cluster::new(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]);
        for n in 0..30 {
            let cpu = format!("{}m", random.random_range(1..12) * 100);
            c.place(sized(&format!("p{n}"), random.random_range(0..5), &cpu, ""));
        }
        let cpu = format!("{}m", random.random_range(5..40) * 100);
        let pod = c.info(sized("big", 4, &cpu, ""));
        let Placement::Nowhere(why) = c.evaluator.place(&pod, &c.snapshot) else { continue };
        let Preemption::Found(victims) = preemption::run(&mut c.evaluator, &pod, &c.snapshot, &why, &[], 0)
        else {
            continue;
        };
        assert!(!victims.pods.is_empty() && victims.pods.iter().all(|v| v.priority < 4));
        let name = c.snapshot.node(victims.slot).name.to_string();
        for victim in &victims.pods {
            c.snapshot.remove(&victim.uid);
        }
        assert!(c.evaluator.fits(&pod, victims.slot, &c.snapshot).is_ok(), "seed {seed}");
        for victim in &victims.pods {
            c.snapshot.place(victim, &name);
            assert!(
                c.evaluator.fits(&pod, victims.slot, &c.snapshot).is_err(),
                "seed {seed}: {} could stay",
                victim.name()
            );
            c.snapshot.remove(&victim.uid);
        }
    }
}
