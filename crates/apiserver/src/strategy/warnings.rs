//! What is accepted and yet worth a word: texts for `Warning` headers on objects of the core group.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use api::field::{Cursor, quote};
use api::names;
use serde_json::Value;

use super::core_service::TOPOLOGY_HINTS;
use super::pod_annotations::{APP_ARMOR, SECCOMP, SECCOMP_POD};
use super::pod_validate::all_containers;
use super::tree::text;
use super::{quantities, texts};

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const NO_POD: &str = "a null labelSelector results in matching no pod";

/// Labels of nodes that have other names by now.
const OLD_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Annotations of pods that mean nothing any more.
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// Volumes that no node mounts any more: field, its name in the text, what is said; in the order of a pod's volumes.
const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn old_label(label: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(old, _)| *old == label).map(|(_, why)| *why)
}

/// A new pod.
pub(super) fn pod(o: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let bad = names::dns1123_label(api::meta::name(o));
    if !bad.is_empty() {
        found.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            bad.join(" ")
        ));
    }
    of_pod(&Cursor::root(o), &mut found);
    found
}

/// The pod template at `path` of an object that is new, or whose desired state changed.
pub(super) fn template(new: &Value, old: Option<&Value>, path: &str) -> Vec<String> {
    let generation = |o: &Value| o["metadata"]["generation"].as_i64();
    if old.is_some_and(|old| generation(old) == generation(new)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let at = path.split('.').fold(Cursor::root(new), |at, key| at.key(key));
    if at.exists() {
        of_pod(&at, &mut found);
    }
    found
}

/// A workload whose name its pods carry: the name while it is new, and its pods' template.
pub(super) fn workload(new: &Value, old: Option<&Value>, path: &str) -> Vec<String> {
    let mut found = match old {
        None => texts::host_name_warning(api::meta::name(new)),
        Some(_) => Vec::new(),
    };
    found.extend(template(new, old, path));
    found
}

/// A replication controller; of a change the reference looks at the template that was.
pub(super) fn replication_controller(new: &Value, old: Option<&Value>) -> Vec<String> {
    match old {
        Some(old) => template(old, Some(new), "spec.template"),
        None => template(new, None, "spec.template"),
    }
}

/// A pod, or a template of pods at a path of its own.
fn of_pod(at: &Cursor<'_>, found: &mut Vec<String>) {
    let (spec, annotations) = (at.key("spec"), at.key("metadata").key("annotations"));
    nodes(&spec, found);
    for (key, why) in OLD_ANNOTATIONS {
        if annotations.key(key).exists() {
            found.push(format!("{}[{key}]: {why}", annotations.path));
        }
    }
    volumes(&spec, found);
    duplicates(&spec, found);
    let overhead = spec.key("overhead");
    fractions(&overhead, found);
    let context = spec.key("securityContext");
    const SECCOMP_FIELD: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if annotations.key(SECCOMP_POD).exists() && !context.key("seccompProfile").exists() {
        found.push(format!("{}[{SECCOMP_POD}]: {SECCOMP_FIELD}", annotations.path));
    }
    for (_, c) in all_containers(&spec) {
        let (name, own) = (c.key("name").str(), c.key("securityContext"));
        let key = format!("{SECCOMP}{name}");
        if annotations.key(&key).exists() && !own.key("seccompProfile").exists() {
            found.push(format!("{}[{key}]: {SECCOMP_FIELD}", annotations.path));
        }
        let key = format!("{APP_ARMOR}{name}");
        let has_field = context.key("appArmorProfile").exists() || own.key("appArmorProfile").exists();
        // a pod itself gets the field from the annotation
        if !at.path.is_empty() && annotations.key(&key).exists() && !has_field {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            found.push(format!("{}[{key}]: {why}", annotations.path));
        }
        for name in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                fraction(&c.key("resources").key(list), name, found);
            }
        }
        variables(&c.key("env"), found);
    }
    ports(&spec, found);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let terms = spec.key("affinity").key(kind);
        let required = terms.key("requiredDuringSchedulingIgnoredDuringExecution");
        let preferred = terms.key("preferredDuringSchedulingIgnoredDuringExecution");
        let all = required.items().chain(preferred.items().map(|t| t.key("podAffinityTerm")));
        for term in all.filter(|t| !t.key("labelSelector").exists()) {
            found.push(format!("{}: {NO_POD}", term.key("labelSelector").path));
        }
    }
}

/// What a pod asks of nodes by labels that they should no longer have.
fn nodes(spec: &Cursor<'_>, found: &mut Vec<String>) {
    for (key, at) in spec.key("nodeSelector").entries() {
        if let Some(why) = old_label(key) {
            found.push(format!("{}: {why}", at.path));
        }
    }
    let affinity = spec.key("affinity").key("nodeAffinity");
    for term in
        affinity.key("requiredDuringSchedulingIgnoredDuringExecution").key("nodeSelectorTerms").items()
    {
        node_term(&term, false, found);
    }
    for term in affinity.key("preferredDuringSchedulingIgnoredDuringExecution").items() {
        node_term(&term.key("preference"), true, found);
    }
    for constraint in spec.key("topologySpreadConstraints").items() {
        let (key, selector) = (constraint.key("topologyKey"), constraint.key("labelSelector"));
        if let Some(why) = old_label(key.str()) {
            found.push(format!("{}: {} is {why}", key.path, key.str()));
        }
        if !selector.exists() {
            found.push(format!("{}: {NO_POD}", selector.path));
        }
    }
}

/// `values`: whether values that no label can have are worth a word too.
fn node_term(term: &Cursor<'_>, values: bool, found: &mut Vec<String>) {
    for expression in term.key("matchExpressions").items() {
        let key = expression.key("key");
        if let Some(why) = old_label(key.str()) {
            found.push(format!("{}: {} is {why}", key.path, key.str()));
        }
        for value in expression.key("values").items().filter(|_| values) {
            for why in names::label_value(value.str()) {
                found.push(format!("{}: {} is invalid, {why}", value.path, value.str()));
            }
        }
    }
}

fn sources<'a>(volume: &Cursor<'a>) -> Cursor<'a> {
    volume.key("projected").key("sources")
}

fn volumes(spec: &Cursor<'_>, found: &mut Vec<String>) {
    let list = spec.key("volumes");
    for volume in list.items() {
        let old = |(key, name, why): &(&str, &str, &str)| {
            volume.key(key).exists().then(|| format!("{}: {why}", volume.key(name).path))
        };
        found.extend(OLD_VOLUMES[..7].iter().filter_map(old));
        let template = volume.key("ephemeral").key("volumeClaimTemplate");
        if template.exists() {
            claim_spec(&template.key("spec"), found);
        }
        found.extend(OLD_VOLUMES[7..].iter().filter_map(old));
    }
    let tokens: BTreeSet<&str> = list
        .items()
        .flat_map(|volume| sources(&volume).items().collect::<Vec<_>>())
        .map(|source| source.key("serviceAccountToken"))
        .filter(Cursor::exists)
        .map(|token| token.key("path").str())
        .collect();
    for volume in list.items() {
        for source in sources(&volume).items() {
            // these paths leave out which source it is
            let at = sources(&volume).path;
            let said = |path: &str| format!("has duplicated path with ServiceAccountToken {}", quote(path));
            for (key, name) in
                [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")]
            {
                for (i, item) in source.key(key).key("items").items().enumerate() {
                    let path = item.key("path").str();
                    if tokens.contains(path) {
                        found.push(format!("{at}.{name}[{i}]: {}", said(path)));
                    }
                }
            }
            for (key, name, file) in [
                ("clusterTrustBundle", "ClusterTrustBundle", "path"),
                ("podCertificate", "podCertificate", "credentialBundlePath"),
            ] {
                let path = source.key(key).key(file);
                if source.key(key).exists() && tokens.contains(path.str()) {
                    found.push(format!("{at}.{name}: {}", said(path.str())));
                }
            }
        }
    }
}

fn duplicates(spec: &Cursor<'_>, found: &mut Vec<String>) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = BTreeSet::new();
        for item in spec.key(list).items().map(|item| item.key(key)) {
            if !seen.insert(item.str()) {
                found.push(format!("{}: duplicate {key} {}", item.path, quote(item.str())));
            }
        }
    }
    for secret in spec.key("imagePullSecrets").items().map(|secret| secret.key("name")) {
        if secret.str().is_empty() {
            found.push(format!("{}: invalid empty name \"\"", secret.path));
        }
    }
}

/// Bytes do not come in parts.
fn fraction(list: &Cursor<'_>, name: &str, found: &mut Vec<String>) {
    let at = list.key(name);
    if let Some(amount) = quantities::parse(at.json()).filter(|q| q.millis() % 1000 != 0) {
        let shown = quote(&amount.to_string());
        found.push(format!(
            "{}[{name}]: fractional byte value {shown} is invalid, must be an integer",
            list.path
        ));
    }
}

fn fractions(list: &Cursor<'_>, found: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        fraction(list, name, found);
    }
}

/// A variable that stands twice hides the first, unless it is made of it.
fn variables(list: &Cursor<'_>, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for variable in list.items() {
        let (name, value) = (variable.key("name").str(), variable.key("value").str());
        let reference = format!("$({name})");
        let is_made_of_it = value.contains(&reference) && value != reference;
        if !seen.insert(name) && (variable.key("valueFrom").exists() || !is_made_of_it) {
            let why = "which may be dropped when using apply";
            found.push(format!("{}: hides previous definition of {}, {why}", variable.path, quote(name)));
        }
    }
}

fn ports(spec: &Cursor<'_>, found: &mut Vec<String>) {
    struct Port<'a> {
        path: String,
        host: (&'a str, i64),
    }
    let mut all: BTreeMap<(i64, &str), Vec<Port<'_>>> = BTreeMap::new();
    for (_, container) in all_containers(spec) {
        for port in container.key("ports").items() {
            let number = |key: &str| port.key(key).i64().unwrap_or_default();
            let (ip, host, protocol) =
                (port.key("hostIP").str(), number("hostPort"), port.key("protocol").str());
            if !ip.is_empty() && host == 0 {
                found.push(format!(
                    "{}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{protocol} HostIP:{ip}}}",
                    port.path,
                    port.key("name").str(),
                    number("containerPort"),
                ));
            }
            let others = all.entry((number("containerPort"), protocol)).or_default();
            for other in others.iter() {
                let how = if other.host == (ip, host) {
                    "duplicate"
                } else if host == 0 || other.host.1 == 0 {
                    "overlapping"
                } else if host == other.host.1 && ip.is_empty() != other.host.0.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                found.push(format!("{}: {how} port definition with {}", port.path, other.path));
            }
            others.push(Port { path: port.path, host: (ip, host) });
        }
    }
}

/// A service.
pub(super) fn service(o: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = Cursor::root(o).key("spec");
    if o["metadata"]["annotations"].get(TOPOLOGY_HINTS).is_some() {
        found.push(format!(
            "annotation {TOPOLOGY_HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let (kind, external) = (spec.key("type").str(), spec.key("externalIPs"));
    let single = spec.key("clusterIP").str();
    let headless = kind == "ClusterIP" && single == "None";
    if !matches!(single, "" | "None") {
        spec.key("clusterIPs").items().for_each(|ip| address(&ip, &mut found));
    }
    let balancer = spec.key("loadBalancerIP");
    if headless {
        if !balancer.str().is_empty() {
            found.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !external.is_empty() {
            found.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec.key("sessionAffinity").str() != "None" {
            found.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    external.items().for_each(|ip| address(&ip, &mut found));
    if !external.is_empty() && !headless && kind != "ExternalName" {
        let why = "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
        found.push(why.to_owned());
    }
    if !balancer.str().is_empty() {
        address(&balancer, &mut found);
    }
    spec.key("loadBalancerSourceRanges").items().for_each(|range| self::range(&range, &mut found));
    if kind == "ExternalName" && !external.is_empty() {
        found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec.key("externalName").str().is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.key("trafficDistribution").str() == "PreferClose" {
        found.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    found
}

/// Endpoints, unless the control plane made them.
pub(super) fn endpoints(o: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if o["metadata"]["labels"].get("endpoints.kubernetes.io/managed-by").is_some() {
        return found;
    }
    for subset in Cursor::root(o).key("subsets").items() {
        for list in ["addresses", "notReadyAddresses"] {
            subset.key(list).items().for_each(|a| address(&a.key("ip"), &mut found));
        }
    }
    found
}

/// A node.
pub(super) fn node(o: &Value) -> Vec<String> {
    if text(&o["spec"], "externalID").is_empty() {
        return Vec::new();
    }
    vec!["spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned()]
}

fn class_annotation(o: &Value, found: &mut Vec<String>) {
    if o["metadata"]["annotations"].get(CLASS).is_some() {
        let why = "deprecated since v1.8; use \"storageClassName\" attribute instead";
        found.push(format!("metadata.annotations[{CLASS}]: {why}"));
    }
}

/// A claim.
pub(super) fn claim(o: &Value) -> Vec<String> {
    let mut found = Vec::new();
    class_annotation(o, &mut found);
    claim_spec(&Cursor::root(o).key("spec"), &mut found);
    found
}

fn claim_spec(spec: &Cursor<'_>, found: &mut Vec<String>) {
    for list in ["requests", "limits"] {
        fraction(&spec.key("resources").key(list), "storage", found);
    }
}

/// A volume.
pub(super) fn volume(o: &Value) -> Vec<String> {
    let mut found = Vec::new();
    class_annotation(o, &mut found);
    let spec = Cursor::root(o).key("spec");
    let policy = spec.key("persistentVolumeReclaimPolicy");
    if policy.str() == "Recycle" {
        found.push(format!(
            "{}: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
            policy.path
        ));
    }
    for term in spec.key("nodeAffinity").key("required").key("nodeSelectorTerms").items() {
        node_term(&term, false, &mut found);
    }
    for name in ["cephfs", "photonPersistentDisk", "scaleIO", "storageos", "glusterfs", "rbd"] {
        let old = OLD_VOLUMES.iter().find(|(key, _, _)| *key == name && spec.key(key).exists());
        found.extend(old.map(|(_, shown, why)| format!("{}: {why}", spec.key(shown).path)));
    }
    found
}

/// A secret with a certificate and its key, as far as it can be seen without reading them.
pub(super) fn secret(o: &Value) -> Vec<String> {
    use base64::Engine as _;
    if o["type"] != "kubernetes.io/tls" {
        return Vec::new();
    }
    let blocks = |key: &str| -> Vec<String> {
        let text = o["data"][key].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let begin = |line: &str| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----").map(str::to_owned);
        text.lines().filter_map(|line| begin(line.trim_end())).collect()
    };
    let (certificates, keys) = (blocks("tls.crt"), blocks("tls.key"));
    let is_key = |kind: &String| kind == "PRIVATE KEY" || kind.ends_with(" PRIVATE KEY");
    let is_certificate = |kind: &String| kind == "CERTIFICATE";
    let why = if !certificates.iter().any(is_certificate) {
        match &certificates[..] {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if one.ends_with("PRIVATE KEY") => "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned(),
            others => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
                others.join(" ")
            ),
        }
    } else if !keys.iter().any(is_key) {
        match &keys[..] {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            [one] if one == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
            }
            others => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
                others.join(" ")
            ),
        }
    } else {
        return Vec::new();
    };
    vec![why]
}

/// An address in another form than its own.
fn address(at: &Cursor<'_>, found: &mut Vec<String>) {
    let value = at.str();
    let odd = |plain: &str| {
        format!(
            "{}: non-standard IP address {} will be considered invalid in a future Kubernetes release: use {}",
            at.path,
            quote(value),
            quote(plain)
        )
    };
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(four) => found.push(odd(&four.to_string())),
            None if ip.to_string() != value => found.push(format!(
                "{}: IPv6 address {} should be in RFC 5952 canonical format ({})",
                at.path,
                quote(value),
                quote(&ip.to_string())
            )),
            None => {}
        },
        Ok(IpAddr::V4(_)) => {}
        Err(_) => found.extend(without_leading_zeros(value).map(|ip| odd(&ip.to_string()))),
    }
}

/// An IPv4 address some of whose parts begin with zeros.
fn without_leading_zeros(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u8> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(parts).ok()?))
}

/// A range in another form than its own.
fn range(at: &Cursor<'_>, found: &mut Vec<String>) {
    let value = at.str();
    let Some((ip, bits)) = super::addresses::parse_cidr(value) else { return };
    let network = super::addresses::network(ip, bits);
    let before = found.len();
    if network != ip {
        found.push(format!(
            "{}: CIDR value {} is ambiguous in this context (should be \"{network}/{bits}\" or \"{ip}/{}\"?)",
            at.path,
            quote(value),
            if ip.is_ipv4() { 32 } else { 128 }
        ));
    }
    let canonical = format!("{ip}/{bits}");
    if found.len() == before && ip.is_ipv6() && canonical != value {
        found.push(format!(
            "{}: IPv6 CIDR value {} should be in RFC 5952 canonical format ({})",
            at.path,
            quote(value),
            quote(&canonical)
        ));
    }
}
