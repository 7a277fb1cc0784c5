//! Labels of nodes: those that a kubelet may set itself.
//!
//! Rule: Kubernetes documentation, "Admission Control in Kubernetes", NodeRestriction; kubelet's `--node-labels`.

use crate::names;

/// Labels of Kubernetes that a kubelet may set, sorted.
pub const KUBELET_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// ... and where it may make up others.
const KUBELET_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The part of a label's name before `/`; empty where there is none.
pub fn prefix(label: &str) -> &str {
    label.split_once('/').map_or("", |(prefix, _)| prefix)
}

/// Whether a prefix is a domain, or one below it.
pub fn is_below(prefix: &str, domain: &str) -> bool {
    prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether a label is Kubernetes' own, and not a kubelet's to set.
pub fn is_of_others(label: &str) -> bool {
    let prefix = prefix(label);
    let of_kubernetes = is_below(prefix, "kubernetes.io") || is_below(prefix, "k8s.io");
    let of_kubelet =
        KUBELET_LABELS.contains(&label) || KUBELET_PREFIXES.iter().any(|domain| is_below(prefix, domain));
    of_kubernetes && !of_kubelet
}

/// Checks a label that a kubelet is told to set.
///
/// # Errors
/// The reference's words for what is wrong.
pub fn check(label: &str, value: &str) -> Result<(), String> {
    if is_of_others(label) {
        return Err(format!(
            "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [{label}]\n\
             --node-labels in the 'kubernetes.io' namespace must begin with an allowed prefix ({}) or be in the \
             specifically allowed set ({})",
            KUBELET_PREFIXES.join(", "),
            KUBELET_LABELS.join(", ")
        ));
    }
    let wrong =
        |text: &str, why: Vec<String>| Err(format!("invalid node labels: '{text}' - {}", why.join(", ")));
    match (names::qualified_name(label), names::label_value(value)) {
        (why, _) if !why.is_empty() => wrong(label, why),
        (_, why) if !why.is_empty() => wrong(value, why),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_sets_its_own_labels_and_those_of_others_than_kubernetes() {
        for label in [
            "kubernetes.io/os",
            "node.kubernetes.io/pool",
            "a.kubelet.kubernetes.io/b",
            "example.com/pool",
            "notkubernetes.io/x",
            "plain",
        ] {
            assert_eq!(check(label, "v"), Ok(()), "{label}");
        }
        let fails = |label: &str, value: &str, why: &str| {
            let error = check(label, value).expect_err(label);
            assert!(error.contains(why), "{error}");
        };
        fails("node-role.kubernetes.io/x", "", "--node-labels: [node-role.kubernetes.io/x]\n");
        fails("x.k8s.io/y", "", "unknown 'kubernetes.io' or 'k8s.io' labels");
        fails("a b", "", "invalid node labels: 'a b' - ");
        fails("a", "b c", "invalid node labels: 'b c' - ");
    }
}
