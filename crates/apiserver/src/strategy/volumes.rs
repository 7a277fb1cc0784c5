//! Volumes of pods and sources of persistent volumes.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
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

/// A pod's volumes; returns them by name, as rules on mounts need them.
pub(super) fn validate<'a>(list: &Cursor<'a>, errors: &mut ErrorList) -> Vec<(&'a str, &'a Value)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for volume in list.items() {
        let name = volume.key("name");
        // a volume with a fault is not there for those that mount it
        let mut own = ErrorList::default();
        source(&volume, &mut own);
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
    }
    found
}

fn source(volume: &Cursor<'_>, errors: &mut ErrorList) {
    let mut given = 0;
    for kind in SOURCES {
        let at = volume.key(kind);
        if !at.exists() {
            continue;
        }
        given += 1;
        if given > 1 {
            errors.forbidden(&at.path, "may not specify more than 1 volume type");
        } else {
            one_source(kind, &at, errors);
        }
    }
    if given == 0 {
        errors.required(&volume.path, "must specify a volume type");
    }
}

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
            for (key, _) in
                template.key("metadata").entries().filter(|(k, _)| !matches!(*k, "labels" | "annotations"))
            {
                errors.forbidden(&template.key("metadata").key(key).path, "cannot be set");
            }
            core_storage::claim_spec(&template.key("spec"), errors);
        }
        "image" => {
            let policy = at.key("pullPolicy");
            if at.key("reference").str().is_empty() {
                errors.required(&at.key("reference").path, "");
            }
            if !matches!(policy.str(), "" | "Always" | "IfNotPresent" | "Never") {
                errors.not_supported(&policy.path, policy.json(), &["Always", "IfNotPresent", "Never"]);
            }
        }
        "csi" => {
            required(at, &["driver"], errors);
            if at.key("nodePublishSecretRef").exists()
                && at.key("nodePublishSecretRef").key("name").str().is_empty()
            {
                errors.required(&at.key("nodePublishSecretRef").key("name").path, "");
            }
        }
        _ => persistent_source(kind, at, errors),
    }
}

/// The sources that persistent volumes share with pods.
pub(super) fn persistent_source(kind: &str, at: &Cursor<'_>, errors: &mut ErrorList) {
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
            if !at.key("path").str().starts_with('/') && !at.key("path").str().is_empty() {
                errors.invalid(&at.key("path").path, at.key("path").json(), "must be an absolute path");
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
        "iscsi" => {
            required(at, &["targetPortal"], errors);
            let name = at.key("iqn");
            if name.str().is_empty() {
                errors.required(&name.path, "");
            } else if !["iqn.", "eui.", "naa."].iter().any(|p| name.str().starts_with(p)) {
                errors.invalid(
                    &name.path,
                    name.json(),
                    "must be valid format starting with iqn, eui, or naa",
                );
            }
            if at.key("lun").i64().is_some_and(|n| !(0..=255).contains(&n)) {
                errors.invalid(
                    &at.key("lun").path,
                    at.key("lun").json(),
                    "must be between 0 and 255, inclusive",
                );
            }
        }
        "glusterfs" => required(at, &["endpoints", "path"], errors),
        "flocker" => match (at.key("datasetName").str().is_empty(), at.key("datasetUUID").str().is_empty()) {
            (true, true) => errors.required(&at.path, "one of datasetName and datasetUUID is required"),
            (false, false) => errors.invalid(
                &at.path,
                &json!("resource"),
                "datasetName and datasetUUID can not be specified simultaneously",
            ),
            _ => {}
        },
        "rbd" => required(at, &["monitors", "image"], errors),
        "cinder" => required(at, &["volumeID"], errors),
        "cephfs" => required(at, &["monitors"], errors),
        "quobyte" => {
            required(at, &["registry"], errors);
            required(at, &["volume"], errors);
        }
        "fc" => {
            let (targets, wwids) = (at.key("targetWWNs"), at.key("wwids"));
            let why = "must specify either targetWWNs or wwids, but not both";
            match (targets.is_empty(), wwids.is_empty()) {
                (true, true) => errors.required(&targets.path, why),
                (false, false) => errors.invalid(&targets.path, targets.json(), why),
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
                let host = key.split('/').next().unwrap_or_default();
                if key.contains('/')
                    && ["kubernetes.io", "k8s.io"]
                        .iter()
                        .any(|d| host == *d || host.ends_with(&format!(".{d}")))
                {
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
        "storageos" => required(at, &["volumeName"], errors),
        "scaleIO" => required(at, &["gateway", "system", "volumeName"], errors),
        "csi" => {
            required(at, &["driver"], errors);
            let driver = at.key("driver");
            if !driver.str().is_empty() {
                let name = driver.str().to_lowercase();
                errors.invalid_all(&driver.path, driver.json(), names::dns1123_subdomain(&name));
            }
            required(at, &["volumeHandle"], errors);
        }
        _ => {}
    }
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
    match kind.str() {
        "" | "Shared" | "Dedicated" => {
            if kind.exists() && !uri.str().starts_with("https://") {
                errors.not_supported(
                    &uri.path,
                    uri.json(),
                    &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"],
                );
            }
        }
        "Managed" => {
            if !uri.str().starts_with("/subscriptions") {
                errors.not_supported(
                    &uri.path,
                    uri.json(),
                    &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"],
                );
            }
        }
        _ => errors.not_supported(&kind.path, kind.json(), &["Dedicated", "Managed", "Shared"]),
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
    if at.str().starts_with("..") && !at.str().starts_with("../") && at.str() != ".." {
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
    mode(&at.key("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    for source in at.key("sources").items() {
        let mut given = 0;
        let mut count = |at: &Cursor<'_>, errors: &mut ErrorList| {
            given += 1;
            if given > 1 {
                errors.forbidden(&at.path, "may not specify more than 1 volume type");
            }
        };
        for key in ["secret", "configMap"] {
            let part = source.key(key);
            if part.exists() {
                count(&part, errors);
                required(&part, &["name"], errors);
                items(&part.key("items"), errors);
                for item in part.key("items").items() {
                    conflict(&mut paths, item.key("path").str(), part.key("name").str(), &at.path, errors);
                }
            }
        }
        for key in ["clusterTrustBundle", "podCertificate"] {
            let part = source.key(key);
            if part.exists() {
                count(&part, errors);
                if key == "clusterTrustBundle" {
                    trust_bundle(&part, errors);
                } else {
                    pod_certificate(&part, errors);
                }
                for file in ["path", "credentialBundlePath", "keyPath", "certificateChainPath"] {
                    let file = part.key(file);
                    if !file.str().is_empty() {
                        file_path(&file, errors);
                        conflict(&mut paths, file.str(), file.str(), &at.path, errors);
                    }
                }
            }
        }
        let api = source.key("downwardAPI");
        if api.exists() {
            count(&api, errors);
            for item in api.key("items").items() {
                downward(&item, &api.path, errors);
                conflict(&mut paths, item.key("path").str(), item.key("path").str(), &at.path, errors);
            }
        }
        let token = source.key("serviceAccountToken");
        if token.exists() {
            count(&token, errors);
            let seconds = token.key("expirationSeconds");
            if seconds.i64().is_some_and(|s| s < 600) {
                errors.invalid(
                    &seconds.path,
                    seconds.json(),
                    "may not specify a duration less than 10 minutes",
                );
            }
            if seconds.i64().is_some_and(|s| s > 1 << 32) {
                errors.invalid(
                    &seconds.path,
                    seconds.json(),
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            if token.key("path").str().is_empty() {
                errors.required(&token.key("path").path, "");
            } else {
                file_path(&token.key("path"), errors);
                conflict(&mut paths, token.key("path").str(), token.key("path").str(), &at.path, errors);
            }
        }
    }
}

/// Trust anchors of one bundle, or of all bundles of a signer.
fn trust_bundle(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, signer, selector) = (at.key("name"), at.key("signerName"), at.key("labelSelector"));
    match (name.exists(), signer.exists()) {
        (true, true) => {
            errors.invalid(&at.path, at.json(), "only one of name and signerName may be used");
        }
        (true, false) => {
            if name.str().is_empty() {
                errors.required(&name.path, "must be a valid object name");
            } else {
                let last = name.str().rsplit(':').next().unwrap_or_default();
                errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(last));
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
