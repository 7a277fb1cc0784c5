//! The SELinux label that a volume is mounted with, in the place of giving each of its files that label.
//!
//! As in v1.36, that is volumes of mode ReadWriteOncePod alone, whose driver says that it can. Of others it is counted which
//! pods would stand in each other's way.
//!
//! Rule: KEP-1710; Kubernetes documentation, "Efficient SELinux volume relabeling".

use client::metrics::Gauge;
use k8s_openapi::api::core::v1::Pod;

use super::driver_volume::Csi;
use super::{Problem, Storage, record};
use crate::metrics;

impl Storage {
    /// The label that a pod needs which does not have the volume yet; none where it is not known, or the pod wants its files
    /// to be given theirs. The volume's driver can mount with one.
    ///
    /// # Errors
    /// The containers of the pod need several, or a pod that has the volume needs another.
    pub(super) fn label(&self, pod: &Pod, csi: &Csi) -> Result<Option<String>, Problem> {
        let Some(policy) = self.host.file_label.as_ref().filter(|_| !csi.inline && !csi.block) else {
            return Ok(None);
        };
        let (mode, plugin) = (short(&csi.access_modes), format!("kubernetes.io/csi/{}", csi.driver));
        let refused = |why: String, error: &Gauge, warning: &Gauge, series: &[&str]| {
            if csi.is_of_one_pod() {
                error.add(series);
                return Err(Problem::Claim(why));
            }
            warning.add(series);
            tracing::debug!(volume = csi.name, why, "the volume could not be mounted with a SELinux label");
            Ok(())
        };
        let label = match policy.of_volume(pod, &csi.volume) {
            Ok(label) => label.filter(|_| !is_recursive(pod)),
            Err(why) => {
                refused(why, &metrics::SELINUX_POD_ERRORS, &metrics::SELINUX_POD_WARNINGS, &[mode])?;
                None
            }
        };
        let series = [mode, plugin.as_str()];
        match record::of_pods(&self.root).find(|other| other.unique() == csi.unique()) {
            Some(other) if other.label != label => {
                let [has, wants] = [other.label, label.clone()].map(Option::unwrap_or_default);
                let why = format!("conflicting SELinux labels of volume {}: {has:?} and {wants:?}", csi.name);
                let (error, warning) = (&metrics::SELINUX_VOLUME_ERRORS, &metrics::SELINUX_VOLUME_WARNINGS);
                refused(why, error, warning, &series)?;
            }
            None if label.is_some() => metrics::SELINUX_ADMITTED.add(&series),
            _ => {}
        }
        Ok(label)
    }
}

/// The pod wants every file to be given its label.
fn is_recursive(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.se_linux_change_policy.as_deref()) == Some("Recursive")
}

/// The widest of the access modes, as metrics name it.
fn short(modes: &[String]) -> &'static str {
    const NAMES: [(&str, &str); 4] = [
        ("ReadWriteMany", "RWX"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteOnce", "RWO"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let found = NAMES.into_iter().find(|(mode, _)| modes.iter().any(|known| known == mode));
    found.map_or("", |(_, short)| short)
}
