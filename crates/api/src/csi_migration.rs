//! Volumes of clouds' plugins that are no longer part of Kubernetes, as the CSI drivers in their place know them.
//!
//! Rule: Kubernetes documentation, "Volumes" ("CSI migration"); handles and attributes are those that the drivers' own
//! documentation gives. Where a volume can be reached from stays as it stands in the volume: nodes have these labels, too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, CSIPersistentVolumeSource,
    GCEPersistentDiskVolumeSource, PersistentVolume, PortworxVolumeSource, SecretReference, Volume,
    VsphereVirtualDiskVolumeSource,
};

const EBS: &str = "ebs.csi.aws.com";
const PERSISTENT_DISK: &str = "pd.csi.storage.gke.io";
const AZURE_DISK: &str = "disk.csi.azure.com";
const AZURE_FILE: &str = "file.csi.azure.com";
const CINDER: &str = "cinder.csi.openstack.org";
const VSPHERE: &str = "csi.vsphere.vmware.com";
const PORTWORX: &str = "pxd.portworx.com";

/// The plugins, in order, and the drivers in their place.
const PLUGINS: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", EBS),
    ("kubernetes.io/azure-disk", AZURE_DISK),
    ("kubernetes.io/azure-file", AZURE_FILE),
    ("kubernetes.io/cinder", CINDER),
    ("kubernetes.io/gce-pd", PERSISTENT_DISK),
    ("kubernetes.io/portworx-volume", PORTWORX),
    ("kubernetes.io/vsphere-volume", VSPHERE),
];

/// Which zones a volume is in, `__` between them: today's label, and the old one.
const ZONES: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
/// For a part of a handle that the driver finds out itself.
const UNSPECIFIED: &str = "UNSPECIFIED";
const RESOURCE_GROUP: &str = "kubernetes.io/azure-file-resource-group";

/// A volume as its driver knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Migrated {
    /// The PersistentVolume's name, or one that stands for it.
    pub name: String,
    /// What the driver is told.
    pub source: CSIPersistentVolumeSource,
    /// How it may be used.
    pub access_modes: Vec<String>,
}

/// The names of all such plugins, in order.
pub fn plugins() -> impl Iterator<Item = &'static str> {
    PLUGINS.into_iter().map(|(plugin, _)| plugin)
}

/// The driver in a plugin's place.
pub fn driver_of(plugin: &str) -> Option<&'static str> {
    PLUGINS.into_iter().find(|(known, _)| *known == plugin).map(|(_, driver)| driver)
}

/// The plugin whose place a driver took.
pub fn plugin_of(driver: &str) -> Option<&'static str> {
    PLUGINS.into_iter().find(|(_, known)| *known == driver).map(|(plugin, _)| plugin)
}

/// Of a PersistentVolume; nothing where it is not one of a migrated plugin.
///
/// # Errors
/// It does not say what the driver must know.
pub fn of_volume(volume: &PersistentVolume) -> Result<Option<Migrated>, String> {
    let Some(spec) = &volume.spec else { return Ok(None) };
    let meta = &volume.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut access_modes = spec.access_modes.clone().unwrap_or_default();
    let source = if let Some(source) = &spec.aws_elastic_block_store {
        ebs(source)?
    } else if let Some(source) = &spec.gce_persistent_disk {
        access_modes = one_writer(&access_modes);
        let labels = meta.labels.as_ref();
        // the old label counts first, as volumes that have both were made with it
        let zones = ZONES.iter().rev().find_map(|key| labels?.get(*key)).filter(|zones| !zones.is_empty());
        persistent_disk(source, zones.map(String::as_str))?
    } else if let Some(source) = &spec.azure_disk {
        azure_disk(source)
    } else if let Some(source) = &spec.azure_file {
        let of_claim = spec.claim_ref.as_ref().and_then(|claim| claim.namespace.clone());
        let namespace =
            source.secret_namespace.clone().or(of_claim).filter(|namespace| !namespace.is_empty());
        let namespace = namespace
            .ok_or("could not find a secret namespace in PersistentVolumeSource or ClaimRef".to_owned())?;
        let group = meta.annotations.as_ref().and_then(|all| all.get(RESOURCE_GROUP));
        let place = (group.map_or("", String::as_str), name.as_str(), namespace.as_str());
        azure_file(place, &source.secret_name, &source.share_name, source.read_only)
    } else if let Some(source) = &spec.cinder {
        plain(CINDER, &source.volume_id, &source.fs_type, source.read_only)
    } else if let Some(source) = &spec.vsphere_volume {
        vsphere(source)
    } else if let Some(source) = &spec.portworx_volume {
        portworx(source)
    } else {
        return Ok(None);
    };
    Ok(Some(Migrated { name, source, access_modes }))
}

/// Of a volume that stands in a pod itself, of that namespace.
///
/// # Errors
/// As with [`of_volume`].
pub fn of_pod(volume: &Volume, namespace: &str) -> Result<Option<Migrated>, String> {
    let readers = |read_only: Option<bool>| match read_only {
        Some(true) => "ReadOnlyMany",
        _ => "ReadWriteOnce",
    };
    let (source, id, mode) = if let Some(source) = &volume.aws_elastic_block_store {
        let source = ebs(source)?;
        let id = source.volume_handle.clone();
        (source, id, "ReadWriteOnce")
    } else if let Some(source) = &volume.gce_persistent_disk {
        (persistent_disk(source, None)?, source.pd_name.clone(), readers(source.read_only))
    } else if let Some(source) = &volume.azure_disk {
        (azure_disk(source), source.disk_name.clone(), "ReadWriteOnce")
    } else if let Some(source) = &volume.azure_file {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let place = ("", volume.name.as_str(), namespace);
        let source = azure_file(place, &source.secret_name, &source.share_name, source.read_only);
        let id = source.volume_handle.clone();
        (source, id, "ReadWriteMany")
    } else if let Some(source) = &volume.cinder {
        let csi = plain(CINDER, &source.volume_id, &source.fs_type, source.read_only);
        (csi, source.volume_id.clone(), "ReadWriteOnce")
    } else if let Some(source) = &volume.vsphere_volume {
        (vsphere(source), source.volume_path.clone(), "ReadWriteOnce")
    } else if let Some(source) = &volume.portworx_volume {
        (portworx(source), source.volume_id.clone(), readers(source.read_only))
    } else {
        return Ok(None);
    };
    let name = format!("{}-{id}", source.driver);
    Ok(Some(Migrated { name, source, access_modes: vec![mode.to_owned()] }))
}

fn plain(
    driver: &str,
    handle: &str,
    fs_type: &Option<String>,
    read_only: Option<bool>,
) -> CSIPersistentVolumeSource {
    CSIPersistentVolumeSource {
        driver: driver.to_owned(),
        volume_handle: handle.to_owned(),
        fs_type: fs_type.clone(),
        read_only,
        volume_attributes: Some(BTreeMap::new()),
        ..CSIPersistentVolumeSource::default()
    }
}

fn with<const N: usize>(
    mut source: CSIPersistentVolumeSource,
    attributes: [(&str, Option<&str>); N],
) -> CSIPersistentVolumeSource {
    let told = attributes.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned())));
    source.volume_attributes.get_or_insert_default().extend(told);
    source
}

/// Ids are `vol-1`, or `aws://ZONE/vol-1`.
fn ebs(source: &AWSElasticBlockStoreVolumeSource) -> Result<CSIPersistentVolumeSource, String> {
    let text = source.volume_id.as_str();
    let handle = match text.strip_prefix("aws://") {
        None => text,
        Some(rest) => {
            let id = rest.split_once('/').map_or("", |(_, path)| path).trim_matches('/');
            if !id.starts_with("vol-") || id.contains('/') {
                return Err(format!(
                    "failed to translate Kubernetes ID to EBS Volume ID Invalid format for AWS volume ({text})"
                ));
            }
            id
        }
    };
    let partition = source.partition.unwrap_or(0).to_string();
    Ok(with(plain(EBS, handle, &source.fs_type, source.read_only), [("partition", Some(&partition))]))
}

/// A disk in several zones is one of their region.
fn persistent_disk(
    source: &GCEPersistentDiskVolumeSource,
    zones: Option<&str>,
) -> Result<CSIPersistentVolumeSource, String> {
    let zones: Vec<&str> = zones.map(|text| text.split("__").collect()).unwrap_or_default();
    let place = match zones[..] {
        [] => format!("zones/{UNSPECIFIED}"),
        [zone] => format!("zones/{zone}"),
        _ => format!(
            "regions/{}",
            region(&zones).map_err(|why| format!("failed to get region from zones: {why}"))?
        ),
    };
    let handle = format!("projects/{UNSPECIFIED}/{place}/disks/{}", source.pd_name);
    let partition = source.partition.filter(|partition| *partition != 0);
    let partition = partition.map(|partition| partition.to_string()).unwrap_or_default();
    let plain = plain(PERSISTENT_DISK, &handle, &source.fs_type, source.read_only);
    Ok(with(plain, [("partition", Some(&partition))]))
}

/// The region that all zones (`us-central1-a`) are of.
fn region<'a>(zones: &[&'a str]) -> Result<&'a str, String> {
    let mut found = None;
    for zone in zones {
        let region = zone.rsplit_once('-').map(|(region, _)| region).filter(|_| zone.split('-').count() == 3);
        let region = region.ok_or_else(|| {
            format!("zone in unexpected format, expected: {{locale}}-{{region}}-{{zone}}, got: {zone}")
        })?;
        if found.is_some_and(|known| known != region) {
            return Err(format!("multiple or no regions gotten from zones, got: {}", zones.join(" ")));
        }
        found = Some(region);
    }
    found.ok_or_else(|| "no zones specified".to_owned())
}

/// The plugin let every volume be claimed as one of many writers, and gave it to one; its driver refuses.
fn one_writer(modes: &[String]) -> Vec<String> {
    let reads = !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany");
    vec![if reads { "ReadOnlyMany" } else { "ReadWriteOnce" }.to_owned()]
}

fn azure_disk(source: &AzureDiskVolumeSource) -> CSIPersistentVolumeSource {
    let plain = plain(AZURE_DISK, &source.disk_uri, &source.fs_type, source.read_only);
    with(
        plain,
        [
            ("kind", Some(source.kind.as_deref().unwrap_or("Managed"))),
            ("csi-migration", Some("true")),
            ("cachingMode", source.caching_mode.as_deref().filter(|mode| !mode.is_empty())),
            ("fsType", source.fs_type.as_deref()),
        ],
    )
}

/// A share of an account, which the Secret is named after; `place`: resource group, volume, and the Secret's namespace.
fn azure_file(
    (group, volume, namespace): (&str, &str, &str),
    secret: &str,
    share: &str,
    read_only: Option<bool>,
) -> CSIPersistentVolumeSource {
    let account = secret
        .split_once("azure-storage-account-")
        .and_then(|(_, rest)| rest.rsplit_once("-secret"))
        .map(|(account, _)| account)
        .filter(|account| !account.is_empty())
        .unwrap_or(secret);
    let handle = format!("{group}#{account}#{share}#{volume}#{namespace}");
    let plain = plain(AZURE_FILE, &handle, &None, read_only);
    let mut source = with(plain, [("sharename", Some(share))]);
    source.node_stage_secret_ref =
        Some(SecretReference { name: Some(secret.to_owned()), namespace: Some(namespace.to_owned()) });
    source
}

fn vsphere(source: &VsphereVirtualDiskVolumeSource) -> CSIPersistentVolumeSource {
    let policy = source.storage_policy_name.as_deref().filter(|policy| !policy.is_empty());
    with(plain(VSPHERE, &source.volume_path, &source.fs_type, None), [("storagepolicyname", policy)])
}

fn portworx(source: &PortworxVolumeSource) -> CSIPersistentVolumeSource {
    plain(PORTWORX, &source.volume_id, &source.fs_type, None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(source: Value, meta: Value) -> Result<Option<Migrated>, String> {
        let mut spec = source;
        spec["accessModes"] = json!(["ReadWriteMany"]);
        let mut meta = meta;
        meta["name"] = json!("pv");
        of_volume(&serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
    }

    fn inline(source: Value) -> Migrated {
        let mut source = source;
        source["name"] = json!("v");
        of_pod(&serde_json::from_value(source).unwrap(), "d").unwrap().unwrap()
    }

    #[test]
    fn volumes_are_told_to_drivers_by_their_handles_and_attributes() {
        let check = |source: Value, meta: Value, driver: &str, handle: &str, attributes: Value| {
            let found = volume(source.clone(), meta).unwrap().unwrap();
            assert_eq!((found.name.as_str(), found.source.driver.as_str()), ("pv", driver), "{source}");
            assert_eq!(found.source.volume_handle, handle, "{source}");
            assert_eq!(json!(found.source.volume_attributes), attributes, "{source}");
            found
        };
        let ebs =
            |id: &str| json!({"awsElasticBlockStore": {"volumeID": id, "fsType": "ext4", "readOnly": true}});
        let partition = json!({"partition": "0"});
        let found = check(ebs("vol-1"), json!({}), EBS, "vol-1", partition.clone());
        assert_eq!((found.source.fs_type.as_deref(), found.source.read_only), (Some("ext4"), Some(true)));
        assert_eq!(found.access_modes, ["ReadWriteMany"]);
        check(ebs("aws://us-east-1a/vol-1"), json!({}), EBS, "vol-1", partition.clone());
        check(ebs("aws:///vol-1"), json!({}), EBS, "vol-1", partition);
        let disk = json!({"gcePersistentDisk": {"pdName": "d", "partition": 2}});
        let second = || json!({"partition": "2"});
        let zones = |text: &str| json!({"labels": {"topology.kubernetes.io/zone": text}});
        let handle = |place: &str| format!("projects/UNSPECIFIED/{place}/disks/d");
        let found = check(disk.clone(), json!({}), PERSISTENT_DISK, &handle("zones/UNSPECIFIED"), second());
        assert_eq!(found.access_modes, ["ReadWriteOnce"]);
        check(disk.clone(), zones("us-a1-b"), PERSISTENT_DISK, &handle("zones/us-a1-b"), second());
        check(disk, zones("us-a1-b__us-a1-c"), PERSISTENT_DISK, &handle("regions/us-a1"), second());
        check(
            json!({"azureDisk": {"diskName": "d", "diskURI": "/disks/d", "cachingMode": "None", "fsType": "xfs"}}),
            json!({}),
            AZURE_DISK,
            "/disks/d",
            json!({"kind": "Managed", "csi-migration": "true", "cachingMode": "None", "fsType": "xfs"}),
        );
        let file = json!({"azureFile": {"secretName": "azure-storage-account-me-secret", "shareName": "s",
            "secretNamespace": "n"}});
        let group = json!({"annotations": {"kubernetes.io/azure-file-resource-group": "g"}});
        let found = check(file, group, AZURE_FILE, "g#me#s#pv#n", json!({"sharename": "s"}));
        let secret = found.source.node_stage_secret_ref.unwrap();
        assert_eq!(secret.name.as_deref(), Some("azure-storage-account-me-secret"));
        assert_eq!(secret.namespace.as_deref(), Some("n"));
        check(json!({"cinder": {"volumeID": "c"}}), json!({}), CINDER, "c", json!({}));
        check(
            json!({"vsphereVolume": {"volumePath": "[ds] a/b.vmdk", "storagePolicyName": "gold"}}),
            json!({}),
            VSPHERE,
            "[ds] a/b.vmdk",
            json!({"storagepolicyname": "gold"}),
        );
        check(json!({"portworxVolume": {"volumeID": "p"}}), json!({}), PORTWORX, "p", json!({}));
    }

    #[test]
    fn plugins_and_the_drivers_in_their_place_name_each_other() {
        assert!(plugins().is_sorted());
        assert!(plugins().all(|plugin| driver_of(plugin).and_then(plugin_of) == Some(plugin)));
        assert_eq!(driver_of("kubernetes.io/gce-pd"), Some("pd.csi.storage.gke.io"));
        assert_eq!((driver_of("kubernetes.io/nfs"), plugin_of("disks.example.com")), (None, None));
    }

    #[test]
    fn volumes_in_pods_are_named_by_driver_and_disk() {
        let check = |source: Value, name: &str, handle: &str, mode: &str| {
            let found = inline(source);
            assert_eq!((found.name.as_str(), found.source.volume_handle.as_str()), (name, handle));
            assert_eq!(found.access_modes, [mode], "{name}");
        };
        let disk = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d";
        let source = json!({"gcePersistentDisk": {"pdName": "d", "readOnly": true}});
        check(source, "pd.csi.storage.gke.io-d", disk, "ReadOnlyMany");
        let source = json!({"awsElasticBlockStore": {"volumeID": "aws:///vol-1"}});
        check(source, "ebs.csi.aws.com-vol-1", "vol-1", "ReadWriteOnce");
        let source = json!({"azureFile": {"secretName": "x", "shareName": "s"}});
        check(source, "file.csi.azure.com-#x#s#v#d", "#x#s#v#d", "ReadWriteMany");
        let source = json!({"portworxVolume": {"volumeID": "p", "readOnly": true}});
        check(source, "pxd.portworx.com-p", "p", "ReadOnlyMany");
    }

    #[test]
    fn what_the_driver_could_not_find_is_said() {
        let check = |source: Value, meta: Value, why: &str| {
            let error = volume(source, meta).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        let id = json!({"awsElasticBlockStore": {"volumeID": "aws://zone/disk"}});
        check(id, json!({}), "Invalid format for AWS volume (aws://zone/disk)");
        let disk = || json!({"gcePersistentDisk": {"pdName": "d"}});
        let zones = |text: &str| json!({"labels": {"failure-domain.beta.kubernetes.io/zone": text}});
        check(disk(), zones("us-a1-b__eu-a1-b"), "multiple or no regions");
        check(disk(), zones("a__b"), "zone in unexpected format");
        let file = json!({"azureFile": {"secretName": "x", "shareName": "s"}});
        check(file, json!({}), "could not find a secret namespace");
        assert_eq!(volume(json!({"nfs": {"server": "a", "path": "/"}}), json!({})), Ok(None));
    }
}
