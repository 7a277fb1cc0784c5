//! Volumes of pods and sources of persistent volumes.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList, quote};
use api::names;
use serde_json::{Value, json};

use super::{containers, core_storage, env, quantities};

/// The sources in the order in which the reference looks at them; the second word is the path it prints.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// The volumes of a pod of this name (none for a template); returns them by name, as rules on mounts need them.
pub(super) fn validate<'a>(
    list: &Cursor<'a>,
    pod: Option<&str>,
    errors: &mut ErrorList,
) -> Vec<(&'a str, &'a Value)> {
    // the claims that will be made for the pod
    let made: Vec<String> = list
        .items()
        .filter(|v| v.key("ephemeral").exists())
        .filter_map(|v| Some(format!("{}-{}", pod?, v.key("name").str())))
        .collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for volume in list.items() {
        let name = volume.key("name");
        // a volume with a fault is not there for those that mount it
        let mut own = ErrorList::default();
        source(&volume, pod, &mut own);
        if name.str().is_empty() {
            own.required(&name.path, "");
        } else {
            own.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
        }
        if seen.contains(name.str()) {
            own.duplicate(&name.path, name.json());
        }
        if own.is_empty() {
            seen.insert(name.str());
            found.push((name.str(), volume.json()));
        }
        errors.0.append(&mut own.0);
        let claim = volume.key("persistentVolumeClaim").key("claimName");
        if made.iter().any(|name| name == claim.str()) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&claim.path, claim.json(), why);
        }
    }
    found
}

fn source(volume: &Cursor<'_>, pod: Option<&str>, errors: &mut ErrorList) {
    let mut given = 0;
    for kind in SOURCES {
        let at = volume.key(kind);
        if !at.exists() {
            continue;
        }
        given += 1;
        if given > 1 {
            // two paths are spelled in ways of their own
            let path = match kind {
                "cephfs" => volume.key("cephFS").path,
                "downwardAPI" => volume.key("downwarAPI").path,
                _ => at.path.clone(),
            };
            errors.forbidden(&path, "may not specify more than 1 volume type");
        } else {
            one_source(kind, &at, errors);
            let name = volume.key("name");
            if let Some(pod) = pod.filter(|_| kind == "ephemeral" && !name.str().is_empty()) {
                let claim = format!("{pod}-{}", name.str());
                for message in names::dns1123_subdomain(&claim) {
                    errors.invalid(
                        &name.path,
                        name.json(),
                        &format!("PVC name {}: {message}", quote(&claim)),
                    );
                }
            }
        }
        let portal = at.key("targetPortal").str();
        if kind == "iscsi"
            && at.key("initiatorName").exists()
            && volume.key("name").str().len() + 1 + portal.len() > 64
        {
            let name = volume.key("name");
            errors.invalid(&name.path, &json!(name.str()), PORTAL_TOO_LONG);
        }
    }
    if given == 0 {
        errors.required(&volume.path, "must specify a volume type");
    }
}

/// What is said of an initiator whose volume's name and portal do not fit into one name.
pub(super) const PORTAL_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

fn required(at: &Cursor<'_>, keys: &[&str], errors: &mut ErrorList) {
    for key in keys {
        let field = at.key(key);
        if !field.exists() || field.value == Some(&json!("")) || (field.json().is_array() && field.is_empty())
        {
            errors.required(&field.path, "");
        }
    }
}

fn one_source(kind: &str, at: &Cursor<'_>, errors: &mut ErrorList) {
    match kind {
        "emptyDir" => {
            if quantities::parse(at.key("sizeLimit").json()).is_some_and(|q| q.signum() < 0) {
                errors.forbidden(
                    &at.key("sizeLimit").path,
                    "SizeLimit field must be a valid resource quantity",
                );
            }
        }
        "gitRepo" => {
            required(at, &["repository"], errors);
            containers::local_path(&at.key("directory"), errors);
        }
        "secret" => {
            required(at, &["secretName"], errors);
            mode(&at.key("defaultMode"), errors);
            items(&at.key("items"), errors);
        }
        "configMap" => {
            required(at, &["name"], errors);
            mode(&at.key("defaultMode"), errors);
            items(&at.key("items"), errors);
        }
        "persistentVolumeClaim" => required(at, &["claimName"], errors),
        "downwardAPI" => {
            mode(&at.key("defaultMode"), errors);
            for item in at.key("items").items() {
                downward(&item, &at.path, errors);
            }
        }
        "projected" => projected(at, errors),
        "ephemeral" => {
            let template = at.key("volumeClaimTemplate");
            if !template.exists() {
                errors.required(&template.path, "");
                return;
            }
            super::devices::template_meta(&template.key("metadata"), errors);
            core_storage::claim_spec(&template.key("spec"), errors);
        }
        "image" => {
            let policy = at.key("pullPolicy");
            // a template may leave the image to whoever makes pods of it
            if at.key("reference").str().is_empty() && at.path.starts_with("spec.volumes") {
                errors.required(&at.key("reference").path, "");
            }
            containers::pull_policy(&policy, errors);
        }
        "csi" => {
            super::devices::driver_name(&at.key("driver"), errors);
            let secret = at.key("nodePublishSecretRef");
            if secret.exists() {
                let name = secret.key("name");
                if name.str().is_empty() {
                    errors.required(&name.path, "");
                } else {
                    let messages = names::dns1123_subdomain(name.str());
                    errors.invalid_all(&at.key("name").path, name.json(), messages);
                }
            }
        }
        _ => persistent_source(kind, at, false, errors),
    }
}

/// The sources that persistent volumes share with pods; `persistent`: with what only they may or must say.
pub(super) fn persistent_source(kind: &str, at: &Cursor<'_>, persistent: bool, errors: &mut ErrorList) {
    match kind {
        "hostPath" => {
            if at.key("path").str().is_empty() {
                return errors.required(&at.key("path").path, "");
            }
            containers::no_back_steps(&at.key("path").path, at.key("path").str(), errors);
            const TYPES: [&str; 8] = [
                "",
                "DirectoryOrCreate",
                "Directory",
                "FileOrCreate",
                "File",
                "Socket",
                "CharDevice",
                "BlockDevice",
            ];
            let kind = at.key("type");
            if !TYPES.contains(&kind.str()) {
                errors.not_supported(
                    &kind.path,
                    kind.json(),
                    &[
                        "",
                        "BlockDevice",
                        "CharDevice",
                        "Directory",
                        "DirectoryOrCreate",
                        "File",
                        "FileOrCreate",
                        "Socket",
                    ],
                );
            }
        }
        "local" => {
            if at.key("path").str().is_empty() {
                return errors.required(&at.key("path").path, "");
            }
            containers::no_back_steps(&at.key("path").path, at.key("path").str(), errors);
        }
        "nfs" => {
            required(at, &["server", "path"], errors);
            let path = at.key("path");
            if !path.str().starts_with('/') {
                errors.invalid(&path.path, &json!(path.str()), "must be an absolute path");
            }
        }
        // The reference prints the name of its internal field here.
        "gcePersistentDisk" => {
            let path = at.path.replace("gcePersistentDisk", "persistentDisk");
            let at = Cursor { value: at.value, path };
            required(&at, &["pdName"], errors);
            partition(&at, errors);
        }
        "awsElasticBlockStore" => {
            required(at, &["volumeID"], errors);
            partition(at, errors);
        }
        "iscsi" => iscsi(at, persistent, errors),
        "glusterfs" => {
            required(at, &["endpoints", "path"], errors);
            let namespace = at.key("endpointsNamespace");
            if namespace.exists() && namespace.str().is_empty() {
                let why = "if the endpointnamespace is set, it must be a valid namespace name";
                errors.invalid(&namespace.path, &json!(""), why);
            } else if namespace.exists() {
                let messages = names::dns1123_label(namespace.str());
                errors.invalid_all(&namespace.path, namespace.json(), messages);
            }
        }
        "flocker" => flocker(at, errors),
        "rbd" => required(at, &["monitors", "image"], errors),
        "cinder" => {
            required(at, &["volumeID"], errors);
            secret_ref(&at.key("secretRef"), persistent, errors);
        }
        "cephfs" => required(at, &["monitors"], errors),
        "quobyte" => quobyte(at, errors),
        "fc" => {
            let (targets, wwids) = (at.key("targetWWNs"), at.key("wwids"));
            match (targets.is_empty(), wwids.is_empty()) {
                (true, true) => {
                    errors.required(&targets.path, "must specify either targetWWNs or wwids, but not both")
                }
                (false, false) => errors.invalid(
                    &targets.path,
                    targets.json(),
                    "targetWWNs and wwids can not be specified simultaneously",
                ),
                _ => {}
            }
            if !targets.is_empty() {
                match at.key("lun").i64() {
                    None => {
                        errors.required(&at.key("lun").path, "lun is required if targetWWNs is specified")
                    }
                    Some(n) if !(0..=255).contains(&n) => errors.invalid(
                        &at.key("lun").path,
                        at.key("lun").json(),
                        "must be between 0 and 255, inclusive",
                    ),
                    Some(_) => {}
                }
            }
        }
        "flexVolume" => {
            required(at, &["driver"], errors);
            for (key, value) in at.key("options").entries() {
                let host = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if [".kubernetes.io", ".k8s.io"].iter().any(|domain| host.ends_with(domain)) {
                    errors.invalid(
                        &value.path,
                        &json!(key),
                        "kubernetes.io and k8s.io namespaces are reserved",
                    );
                }
            }
        }
        "azureFile" => {
            required(at, &["secretName", "shareName"], errors);
            let namespace = at.key("secretNamespace");
            if namespace.exists() && namespace.str().is_empty() {
                errors.required(&namespace.path, "");
            }
        }
        "vsphereVolume" => required(at, &["volumePath"], errors),
        "photonPersistentDisk" => required(at, &["pdID"], errors),
        "portworxVolume" => required(at, &["volumeID"], errors),
        "azureDisk" => azure_disk(at, errors),
        "storageos" => {
            let (name, namespace) = (at.key("volumeName"), at.key("volumeNamespace"));
            if name.str().is_empty() {
                errors.required(&name.path, "");
            } else {
                errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
            }
            if !namespace.str().is_empty() {
                let messages = names::dns1123_label(namespace.str());
                errors.invalid_all(&namespace.path, namespace.json(), messages);
            }
            secret_ref(&at.key("secretRef"), persistent, errors);
        }
        "scaleIO" => required(at, &["gateway", "system", "volumeName"], errors),
        "csi" => {
            super::devices::driver_name(&at.key("driver"), errors);
            required(at, &["volumeHandle"], errors);
            for key in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                let secret = at.key(key);
                if !secret.exists() {
                    continue;
                }
                let rules: [(&str, fn(&str) -> Vec<String>); 2] =
                    [("name", names::dns1123_subdomain), ("namespace", names::dns1123_label)];
                for (key, rule) in rules {
                    let part = secret.key(key);
                    if part.str().is_empty() {
                        errors.required(&part.path, "");
                    } else {
                        errors.invalid_all(&part.path, part.json(), rule(part.str()));
                    }
                }
            }
        }
        _ => {}
    }
}

/// A reference to a secret says its name, and from outside of a namespace that too.
fn secret_ref(at: &Cursor<'_>, persistent: bool, errors: &mut ErrorList) {
    if at.exists() {
        required(at, if persistent { &["name", "namespace"] } else { &["name"] }, errors);
    }
}

fn flocker(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, uuid) = (at.key("datasetName"), at.key("datasetUUID"));
    match (name.str().is_empty(), uuid.str().is_empty()) {
        (true, true) => errors.required(&at.path, "one of datasetName and datasetUUID is required"),
        (false, false) => errors.invalid(
            &at.path,
            &json!("resource"),
            "datasetName and datasetUUID can not be specified simultaneously",
        ),
        _ => {}
    }
    if name.str().contains('/') {
        errors.invalid(&name.path, name.json(), "must not contain '/'");
    }
}

fn quobyte(at: &Cursor<'_>, errors: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, tenant) = (at.key("registry"), at.key("tenant"));
    if registry.str().is_empty() {
        errors.required(&registry.path, PAIRS);
    } else if tenant.str().len() >= 65 {
        errors.required(&tenant.path, "must be a UUID and may not exceed a length of 64 characters");
    } else {
        let is_pair = |pair: &&str| pair.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':'));
        for _ in registry.str().split(',').filter(|p| !is_pair(p)) {
            errors.invalid(&registry.path, registry.json(), PAIRS);
        }
    }
    required(at, &["volume"], errors);
}

/// Names of initiators and targets: `iqn.`, `eui.` and `naa.`, each with a form of its own.
fn iscsi(at: &Cursor<'_>, persistent: bool, errors: &mut ErrorList) {
    required(at, &["targetPortal"], errors);
    let name = at.key("iqn");
    let prefix = if persistent {
        "must be valid format"
    } else {
        "must be valid format starting with iqn, eui, or naa"
    };
    let check = |name: &str, path: &str, errors: &mut ErrorList| {
        if !["iqn", "eui", "naa"].iter().any(|p| name.starts_with(p)) {
            errors.invalid(path, &json!(name), prefix);
        } else if !is_iscsi_name(name) {
            errors.invalid(path, &json!(name), "must be valid format");
        }
    };
    if name.str().is_empty() {
        errors.required(&name.path, "");
    } else {
        check(name.str(), &name.path, errors);
    }
    let lun = at.key("lun");
    if lun.i64().is_some_and(|n| !(0..=255).contains(&n)) {
        errors.invalid(&lun.path, lun.json(), "must be between 0 and 255, inclusive");
    }
    let secret = at.key("secretRef");
    let authenticates =
        ["chapAuthDiscovery", "chapAuthSession"].iter().any(|k| at.key(k).bool() == Some(true));
    if authenticates && !secret.exists() {
        errors.required(&secret.path, "");
    }
    if persistent && secret.exists() {
        required(&secret, &["name"], errors);
    }
    if at.key("initiatorName").exists() {
        check(at.key("initiatorName").str(), &at.key("initiatorname").path, errors);
    }
}

fn is_iscsi_name(name: &str) -> bool {
    let hex = |digits: &str, n: usize| digits.len() == n && digits.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(rest) = name.strip_prefix("iqn.") {
        let (date, rest) = rest.split_at_checked(8).unwrap_or((rest, ""));
        let b = date.as_bytes();
        let dated = b.len() == 8
            && b[..4].iter().all(u8::is_ascii_digit)
            && b[4] == b'-'
            && b[5..7].iter().all(u8::is_ascii_digit)
            && b[7] == b'.';
        let Some((authority, unique)) = rest.split_once(':') else { return false };
        return dated
            && !authority.is_empty()
            && authority.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
            && !unique.is_empty()
            && !unique.chars().any(|c| ",;*&$|".contains(c) || c.is_whitespace());
    }
    let rest = name.get(4..).unwrap_or_default();
    name.starts_with("eui") && hex(rest, 16) || name.starts_with("naa") && hex(rest, 32)
}

fn partition(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.key("partition").i64().is_some_and(|n| !(0..=255).contains(&n)) {
        errors.invalid(
            &at.key("partition").path,
            at.key("partition").json(),
            "must be between 0 and 255, inclusive",
        );
    }
}

fn azure_disk(at: &Cursor<'_>, errors: &mut ErrorList) {
    required(at, &["diskName", "diskURI"], errors);
    let caching = at.key("cachingMode");
    if caching.exists() && !matches!(caching.str(), "None" | "ReadOnly" | "ReadWrite") {
        errors.not_supported(&caching.path, caching.json(), &["None", "ReadOnly", "ReadWrite"]);
    }
    let (kind, uri) = (at.key("kind"), at.key("diskURI"));
    if kind.exists() && !matches!(kind.str(), "Dedicated" | "Managed" | "Shared") {
        errors.not_supported(&kind.path, kind.json(), &["Dedicated", "Managed", "Shared"]);
    }
    let (start, form) = match kind.str() {
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    if kind.exists() && !uri.str().starts_with(start) {
        errors.not_supported(&uri.path, &json!(uri.str()), &[form]);
    }
}

fn mode(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        errors.invalid(&at.path, at.json(), "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A file's path in a volume: relative, without `..` at the start of a segment.
fn file_path(at: &Cursor<'_>, errors: &mut ErrorList) {
    containers::local_path(at, errors);
    if at.str().starts_with("..") && !at.str().starts_with("../") {
        errors.invalid(&at.path, at.json(), "must not start with '..'");
    }
}

fn items(list: &Cursor<'_>, errors: &mut ErrorList) {
    for item in list.items() {
        required(&item, &["key"], errors);
        if item.key("path").str().is_empty() {
            errors.required(&item.key("path").path, "");
        }
        file_path(&item.key("path"), errors);
        mode(&item.key("mode"), errors);
    }
}

/// One file of the downward API; its errors carry the volume's path, not the item's.
fn downward(item: &Cursor<'_>, path: &str, errors: &mut ErrorList) {
    let under = |key: &str| Cursor { value: item.key(key).value, path: format!("{path}.{key}") };
    let file = under("path");
    if file.str().is_empty() {
        errors.required(&file.path, "");
    }
    file_path(&file, errors);
    let (field, resource) = (under("fieldRef"), under("resourceFieldRef"));
    match (field.exists(), resource.exists()) {
        (true, both) => {
            env::volume_field_ref(&field, errors);
            if both {
                errors.invalid(
                    path,
                    &json!("resource"),
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (false, true) => env::resource_ref(&resource, true, errors),
        (false, false) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(&under("mode"), errors);
}

fn projected(at: &Cursor<'_>, errors: &mut ErrorList) {
    const KINDS: [&str; 6] =
        ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    mode(&at.key("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    for source in at.key("sources").items() {
        for key in ["secret", "configMap"] {
            let part = source.key(key);
            if part.exists() {
                required(&part, &["name"], errors);
                items(&part.key("items"), errors);
                for item in part.key("items").items() {
                    conflict(&mut paths, item.key("path").str(), part.key("name").str(), &at.path, errors);
                }
            }
        }
        let api = source.key("downwardAPI");
        for item in api.key("items").items() {
            downward(&item, &api.path, errors);
            conflict(&mut paths, item.key("path").str(), item.key("path").str(), &at.path, errors);
        }
        let token = source.key("serviceAccountToken");
        if token.exists() {
            let seconds = token.key("expirationSeconds");
            if seconds.i64().is_some_and(|s| s < 600) {
                let why = "may not specify a duration less than 10 minutes";
                errors.invalid(&seconds.path, seconds.json(), why);
            }
            if seconds.i64().is_some_and(|s| s > 1 << 32) {
                let why = "may not specify a duration larger than 2^32 seconds";
                errors.invalid(&seconds.path, seconds.json(), why);
            }
            // this path names the volume, not the source
            let file = Cursor { value: token.key("path").value, path: at.key("path").path };
            if file.str().is_empty() {
                errors.required(&file.path, "");
            } else {
                file_path(&file, errors);
            }
        }
        for (key, check) in [
            ("clusterTrustBundle", trust_bundle as fn(&Cursor<'_>, &mut ErrorList)),
            ("podCertificate", pod_certificate),
        ] {
            let part = source.key(key);
            if !part.exists() {
                continue;
            }
            check(&part, errors);
            for file in ["path", "credentialBundlePath", "keyPath", "certificateChainPath"] {
                let file = part.key(file);
                if !file.str().is_empty() {
                    file_path(&file, errors);
                    conflict(&mut paths, file.str(), file.str(), &at.path, errors);
                }
            }
        }
        if KINDS.iter().filter(|k| source.key(k).exists()).count() > 1 {
            errors.forbidden(&source.path, "may not specify more than 1 volume type per source");
        }
    }
}

/// Trust anchors of one bundle, or of all bundles of a signer.
fn trust_bundle(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, signer, selector) = (at.key("name"), at.key("signerName"), at.key("labelSelector"));
    match (name.exists(), signer.exists()) {
        (true, true) => {
            let shown = super::internal::show("ClusterTrustBundleProjection", at.json());
            errors.invalid_shown(&at.path, &shown, "only one of name and signerName may be used");
        }
        (true, false) => {
            if name.str().is_empty() {
                errors.required(&name.path, "must be a valid object name");
            }
            let last = name.str().rsplit(':').next().unwrap_or_default();
            for message in names::dns1123_subdomain(last) {
                let why = format!("not a valid clustertrustbundlename: {message}");
                errors.invalid(&name.path, &json!(name.str()), &why);
            }
            if selector.exists() {
                let shown = super::internal::show("LabelSelector", selector.json());
                let why = "labelSelector must be unset if name is specified";
                errors.invalid_shown(&selector.path, &shown, why);
            }
        }
        (false, true) => {
            if signer.str().is_empty() {
                errors.required(&signer.path, "must be a valid signer name");
            } else {
                super::certificates::signer_name(&signer, errors);
            }
            super::label_selector::validate(&selector, errors);
        }
        (false, false) => errors.required(&at.path, "either name or signerName must be specified"),
    }
    if at.key("path").str().is_empty() {
        errors.required(&at.key("path").path, "");
    }
}

/// A key and a certificate that the node gets for the pod.
fn pod_certificate(at: &Cursor<'_>, errors: &mut ErrorList) {
    const KEYS: [&str; 6] = ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"];
    super::certificates::signer_name(&at.key("signerName"), errors);
    let kind = at.key("keyType");
    if !KEYS.contains(&kind.str()) {
        errors.not_supported(&kind.path, &json!(kind.str()), &KEYS);
    }
    let life = at.key("maxExpirationSeconds");
    if let Some(seconds) = life.i64() {
        let longest =
            if at.key("signerName").str().starts_with("kubernetes.io/") { 86_400 } else { 7_862_400 };
        if seconds < 3600 {
            errors.invalid(&life.path, life.json(), "if provided, maxExpirationSeconds must be >= 3600");
        } else if seconds > longest {
            let why = format!("if provided, maxExpirationSeconds must be <= {longest}");
            errors.invalid(&life.path, life.json(), &why);
        }
    }
    if ["credentialBundlePath", "keyPath", "certificateChainPath"].iter().all(|k| at.key(k).str().is_empty())
    {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(&at.path, why);
    }
}

fn conflict<'a>(paths: &mut BTreeSet<&'a str>, path: &'a str, shown: &str, at: &str, errors: &mut ErrorList) {
    if !path.is_empty() && !paths.insert(path) {
        errors.invalid(at, &json!(shown), "conflicting duplicate paths");
    }
}
