//! Disks that an iSCSI target of the network has.
//!
//! The initiator is the machine's (open-iscsi): `iscsiadm` logs in and out, the kernel shows what that brought in `/sys`, and
//! udev names the disks in `/dev/disk/by-path`.
//!
//! Rule: Kubernetes documentation, "Volumes" (`iscsi`); open-iscsi's README.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource};
use serde::{Deserialize, Serialize};

use super::host::{Host, attribute, entries, file_name};
use super::multipath;
use crate::folder_watch::FolderWatch;

/// Two paths are enough of several, once all were tried so often.
const ENOUGH: (usize, u32) = (2, 2);
/// So often missing paths are tried.
const TRIES: u32 = 5;
/// A disk appears within this, or not at all.
const APPEARS: Duration = Duration::from_secs(10);
/// Between two looks where the kernel cannot tell of changes.
const LOOK: Duration = Duration::from_millis(500);

const DISCOVERY: [&str; 4] = ["username", "password", "username_in", "password_in"];

/// A disk of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Addresses with ports; the first is the one it is known by.
    pub portals: Vec<String>,
    /// The target's name.
    pub iqn: String,
    /// The disk's number.
    pub lun: i32,
    /// The initiator's interface.
    pub interface: String,
    /// The name the initiator is to have; the machine's own without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initiator: Option<String>,
    /// An interface of that name is made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_interface: Option<String>,
    /// Who asks for targets, and who logs in, proves who he is (CHAP).
    pub chap: (bool, bool),
}

fn with_port(portal: &str) -> String {
    if portal.contains(':') { portal.to_owned() } else { format!("{portal}:3260") }
}

impl Target {
    /// Of a volume of a pod, whose name is `volume`.
    pub fn of_pod(source: &ISCSIVolumeSource, volume: &str) -> Self {
        Self::of_claim(
            &ISCSIPersistentVolumeSource {
                chap_auth_discovery: source.chap_auth_discovery,
                chap_auth_session: source.chap_auth_session,
                initiator_name: source.initiator_name.clone(),
                iqn: source.iqn.clone(),
                iscsi_interface: source.iscsi_interface.clone(),
                lun: source.lun,
                portals: source.portals.clone(),
                target_portal: source.target_portal.clone(),
                ..ISCSIPersistentVolumeSource::default()
            },
            volume,
        )
    }

    /// Of a PersistentVolume, whose name is `volume`.
    pub fn of_claim(source: &ISCSIPersistentVolumeSource, volume: &str) -> Self {
        let mut portals = vec![with_port(&source.target_portal)];
        for portal in source.portals.iter().flatten().map(|portal| with_port(portal)) {
            if !portals.contains(&portal) {
                portals.push(portal);
            }
        }
        let initiator = source.initiator_name.clone().filter(|name| !name.is_empty());
        Self {
            own_interface: initiator.as_ref().map(|_| format!("{}:{volume}", portals[0])),
            portals,
            iqn: source.iqn.clone(),
            lun: source.lun,
            interface: source.iscsi_interface.clone().unwrap_or_else(|| "default".to_owned()),
            initiator,
            chap: (source.chap_auth_discovery == Some(true), source.chap_auth_session == Some(true)),
        }
    }

    /// What tells it from other disks.
    pub fn id(&self) -> String {
        format!("kubernetes.io/iscsi/{}:{}:{}", self.portals.first().map_or("", |p| p), self.iqn, self.lun)
    }

    fn interface(&self) -> &str {
        self.own_interface.as_deref().unwrap_or(&self.interface)
    }

    /// Logs in, and finds the disk.
    pub async fn attach(&self, host: &Host, secrets: &HashMap<String, String>) -> Result<PathBuf, String> {
        let shown = host.run("iscsiadm", &["-m", "iface", "-I", &self.interface, "-o", "show"]).await;
        let shown = shown.map_err(|error| error.to_string())?;
        let settings = settings(&shown);
        let transport = match settings.get("iface.transport_name") {
            Some(name) => name.as_str(),
            None if shown.contains("iface.transport_name") => "tcp",
            None => return Err(format!("Could not parse iface file for {}", self.interface)),
        };
        if let (Some(own), Some(initiator)) = (&self.own_interface, &self.initiator) {
            self.make_interface(host, own, initiator, &settings).await?;
        }
        let mut paths: BTreeMap<&str, PathBuf> = BTreeMap::new();
        let mut last = String::new();
        for round in 1..=TRIES {
            for portal in &self.portals {
                if paths.contains_key(portal.as_str()) {
                    continue;
                }
                match self.path(host, portal, transport, secrets).await {
                    Ok(path) => drop(paths.insert(portal, path)),
                    Err(why) => last = why,
                }
            }
            if paths.is_empty() || paths.len() == self.portals.len() {
                break;
            }
            if paths.len() >= ENOUGH.0 && round >= ENOUGH.1 {
                break;
            }
        }
        let Some(first) = paths.values().next().cloned() else {
            self.remove_interface(host).await;
            return Err(format!("failed to get any path for iscsi disk, last err seen:\n{last}"));
        };
        let joined = || paths.values().find_map(|path| multipath::above(host, path));
        if self.portals.len() == 1 {
            // of a disk that has one way only nobody waits for a second
            return Ok(joined().unwrap_or(first));
        }
        // the kernel tells nobody that it joins disks; what is joined has its name once that is done
        let mapper = host.dev.join("mapper");
        let found = tokio::time::timeout(APPEARS, named(&mapper, joined)).await;
        Ok(found.ok().or_else(joined).unwrap_or(first))
    }

    /// The disk by one of its portals.
    async fn path(
        &self,
        host: &Host,
        portal: &str,
        transport: &str,
        secrets: &HashMap<String, String>,
    ) -> Result<PathBuf, String> {
        if !self.sessions(host).iter().any(|session| session.portals.iter().any(|p| p == portal)) {
            self.log_in(host, portal, secrets).await?;
        }
        let sessions = self.sessions(host);
        let session = sessions.iter().find(|session| session.portals.iter().any(|p| p == portal));
        let session = session.ok_or_else(|| format!("no session with portal {portal} after logging in"))?;
        // this disk only: of others the node need not know
        let scan = host.sys.join("class/scsi_host").join(&session.host).join("scan");
        std::fs::write(&scan, format!("0 0 {}", self.lun))
            .map_err(|error| format!("{}: {error}", scan.display()))?;
        let folder = host.dev.join("disk/by-path");
        let end = format!("ip-{portal}-iscsi-{}-lun-{}", self.iqn, self.lun);
        let found = linked(&folder, |name| match transport {
            "tcp" => name == end,
            _ => name.starts_with("pci-") && name.ends_with(&format!("-{end}")),
        });
        tokio::time::timeout(APPEARS, found)
            .await
            .map_err(|_| "Could not attach disk: Timeout after 10s".to_owned())
    }

    async fn log_in(
        &self,
        host: &Host,
        portal: &str,
        secrets: &HashMap<String, String>,
    ) -> Result<(), String> {
        let interface = self.interface();
        let discovery = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", interface];
        let node = ["-m", "node", "-p", portal, "-T", &self.iqn, "-I", interface];
        // it may be there
        let _ = host.run("iscsiadm", &[&discovery[..], &["-o", "new"]].concat()).await;
        if self.chap.0 {
            prove(host, &discovery, "discovery.sendtargets", secrets).await.map_err(|why| {
                format!("iscsi: failed to update discoverydb to portal {portal} error: {why}")
            })?;
        }
        if let Err(error) = host.run("iscsiadm", &[&discovery[..], &["--discover"]].concat()).await {
            let _ = host.run("iscsiadm", &[&discovery[..], &["-o", "delete"]].concat()).await;
            return Err(format!("iscsi: failed to sendtargets to portal {portal} output: {error}"));
        }
        if self.chap.1 {
            prove(host, &node, "node.session", secrets).await.map_err(|why| {
                format!("iscsi: failed to update iscsi node to portal {portal} error: {why}")
            })?;
        }
        if let Err(error) = host.run("iscsiadm", &[&node[..], &["--login"]].concat()).await {
            let _ = host.run("iscsiadm", &[&node[..], &["-o", "delete"]].concat()).await;
            return Err(format!("iscsi: failed to attach disk: Error: {error}"));
        }
        // a machine that starts anew must not wait for it
        let manual = ["-o", "update", "-n", "node.startup", "-v", "manual"];
        if let Err(error) = host.run("iscsiadm", &[&node[..6], &manual[..]].concat()).await {
            tracing::warn!(%error, "iSCSI sessions are taken up again when the machine starts");
        }
        Ok(())
    }

    async fn make_interface(
        &self,
        host: &Host,
        own: &str,
        initiator: &str,
        settings: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let interface = ["-m", "iface", "-I", own];
        if let Err(error) = host.run("iscsiadm", &[&interface[..], &["-o", "new"]].concat()).await {
            // open-iscsi: it exists
            if error.code() != Some(15) {
                return Err(format!("iscsi: failed to create new iface: {error}"));
            }
        }
        let mut settings = settings.clone();
        settings.insert("iface.initiatorname".to_owned(), initiator.to_owned());
        for (name, value) in settings.iter().filter(|(name, _)| *name != "iface.iscsi_ifacename") {
            let update = ["-o", "update", "-n", name, "-v", value];
            if let Err(error) = host.run("iscsiadm", &[&interface[..], &update[..]].concat()).await {
                self.remove_interface(host).await;
                return Err(format!("iscsi: failed to update iface records: {error}"));
            }
        }
        Ok(())
    }

    async fn remove_interface(&self, host: &Host) {
        if let Some(own) = &self.own_interface
            && let Err(error) = host.run("iscsiadm", &["-m", "iface", "-I", own, "-o", "delete"]).await
        {
            tracing::warn!(%error, "an interface of the iSCSI initiator stays");
        }
    }

    /// Takes the disk from the kernel, and logs out where `last`: no other disk of the target is in use.
    pub async fn detach(&self, host: &Host, last: bool) -> Result<(), String> {
        let disks: Vec<PathBuf> =
            self.sessions(host).iter().flat_map(|session| session.disks(self.lun)).collect();
        multipath::forget(host, &disks).await;
        for disk in &disks {
            multipath::delete(host, disk);
        }
        if !last {
            return Ok(());
        }
        for portal in &self.portals {
            let node = ["-m", "node", "-p", portal, "-T", &self.iqn, "-I", self.interface()];
            for step in [&["--logout"][..], &["-o", "delete"]] {
                // what is not there needs no end
                if let Err(error) = host.run("iscsiadm", &[&node[..], step].concat()).await {
                    tracing::warn!(%error, portal, "an iSCSI session may be left");
                }
            }
        }
        self.remove_interface(host).await;
        Ok(())
    }

    /// Sessions with the target that the kernel has.
    fn sessions(&self, host: &Host) -> Vec<Session> {
        let mut found = Vec::new();
        for entry in entries(&host.sys.join("class/iscsi_host")) {
            for folder in entries(&entry.join("device")) {
                let name = file_name(&folder).to_owned();
                let about = folder.join("iscsi_session").join(&name);
                if !name.starts_with("session") || attribute(&about.join("targetname")) != self.iqn {
                    continue;
                }
                let mut portals = Vec::new();
                for connection in
                    entries(&folder).iter().filter(|path| file_name(path).starts_with("connection"))
                {
                    let about = connection.join("iscsi_connection").join(file_name(connection));
                    for kind in ["persistent_", ""] {
                        let value = |name: &str| attribute(&about.join(format!("{kind}{name}")));
                        let (address, port) = (value("address"), value("port"));
                        let address = if address.contains(':') { format!("[{address}]") } else { address };
                        portals.push(format!("{address}:{port}"));
                    }
                }
                found.push(Session { host: file_name(&entry).to_owned(), folder, portals });
            }
        }
        found
    }
}

/// A login at a target.
struct Session {
    /// `hostN`.
    host: String,
    folder: PathBuf,
    /// Where the target was reached.
    portals: Vec<String>,
}

impl Session {
    /// Folders of the disks of that number, in `/sys`.
    fn disks(&self, lun: i32) -> Vec<PathBuf> {
        let targets = entries(&self.folder);
        let targets = targets.iter().filter(|path| file_name(path).starts_with("target"));
        let units = targets.flat_map(|target| entries(target));
        let wanted =
            units.filter(|unit| file_name(unit).rsplit(':').next() == Some(lun.to_string().as_str()));
        wanted.flat_map(|unit| entries(&unit.join("block"))).collect()
    }
}

async fn prove(
    host: &Host,
    record: &[&str],
    kind: &str,
    secrets: &HashMap<String, String>,
) -> Result<(), String> {
    let method = format!("{kind}.auth.authmethod");
    let update = ["-o", "update", "-n", &method, "-v", "CHAP"];
    host.run("iscsiadm", &[record, &update[..]].concat()).await.map_err(|error| error.to_string())?;
    for name in DISCOVERY.map(|name| format!("{kind}.auth.{name}")) {
        let Some(value) = secrets.get(&name).filter(|value| !value.is_empty()) else { continue };
        let update = ["-o", "update", "-n", &name, "-v"];
        let told = host.run_secretly("iscsiadm", &[record, &update[..]].concat(), &[value]).await;
        told.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What `iscsiadm` shows of an interface, but for what is empty.
fn settings(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(" = "));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .filter(|(name, value)| name.starts_with("iface.") && value != "<empty>")
        .collect()
}

/// Waits for a file of that name in a folder of links to disks.
async fn linked(folder: &Path, is: impl Fn(&str) -> bool) -> PathBuf {
    named(folder, || entries(folder).into_iter().find(|path| is(file_name(path)))).await
}

/// Waits until `look` finds something, which it may have where a name has come into `folder`.
async fn named(folder: &Path, look: impl Fn() -> Option<PathBuf>) -> PathBuf {
    loop {
        // from before the look, so that no name comes between
        let watch = FolderWatch::for_names(folder);
        if let Some(found) = look() {
            return found;
        }
        let changed = match watch {
            Ok(watch) => watch.changed().await,
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            // pods may have taken all that root can watch
            tracing::warn!(%error, folder = %folder.display(), "not followed: looked at now and then");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether two disks are of one target.
pub fn same_target(a: &Target, b: &Target) -> bool {
    a.iqn == b.iqn && a.portals.first() == b.portals.first() && a.interface() == b.interface()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_of_several_ways_is_there_once_what_joins_them_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (dev, sys) = (dir.path().join("dev"), dir.path().join("sys"));
        let host = Host { programs: Vec::new(), dev: dev.clone(), sys: sys.clone(), ..Host::default() };
        std::fs::create_dir(&dev).unwrap();
        std::fs::write(dev.join("sdb"), "").unwrap();
        let mapper = dev.join("mapper");
        let waits = named(&mapper, || multipath::above(&host, &dev.join("sdb")));
        let joins = async {
            std::fs::create_dir_all(sys.join("block/dm-3/slaves/sdb")).unwrap();
            std::fs::create_dir(&mapper).unwrap();
            tokio::task::yield_now().await;
            std::os::unix::fs::symlink("../dm-3", mapper.join("mpatha")).unwrap();
        };
        let (found, ()) = tokio::join!(waits, joins);
        assert_eq!(found, dev.join("dm-3"));
    }

    #[test]
    fn portals_have_their_port_and_interfaces_their_settings() {
        let source = ISCSIPersistentVolumeSource {
            target_portal: "192.0.2.1".into(),
            portals: Some(vec!["192.0.2.1:3260".into(), "192.0.2.2:3261".into()]),
            iqn: "iqn.2026-01.example:disk".into(),
            lun: 3,
            initiator_name: Some("iqn.2026-01.example:me".into()),
            ..ISCSIPersistentVolumeSource::default()
        };
        let target = Target::of_claim(&source, "pv");
        assert_eq!(target.portals, ["192.0.2.1:3260", "192.0.2.2:3261"]);
        assert_eq!(target.id(), "kubernetes.io/iscsi/192.0.2.1:3260:iqn.2026-01.example:disk:3");
        assert_eq!(target.interface(), "192.0.2.1:3260:pv");
        let shown = "# BEGIN RECORD 2.1\niface.iscsi_ifacename = default\niface.transport_name = tcp\niface.mtu = <empty>\n";
        let settings = settings(shown);
        assert_eq!(settings.get("iface.transport_name").map(String::as_str), Some("tcp"));
        assert!(!settings.contains_key("iface.mtu"));
    }
}
