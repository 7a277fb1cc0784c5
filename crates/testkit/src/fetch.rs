//! What tests need from outside.

use crate::{cni_plugins, containerd, debian, image, registry, tools};

/// Fetches into the cache whatever the tests of nodes take from there: a guest has no way out to fetch it itself.
pub(crate) fn everything() -> anyhow::Result<()> {
    debian::busybox()?;
    debian::unpacked_crun()?;
    cni_plugins()?;
    containerd::tools()?;
    registry::program()?;
    registry::skopeo()?;
    image::busybox()?;
    image::nginx()?;
    for minor in [tools::OLD, tools::MIDDLE, tools::NEW] {
        tools::folder(minor)?;
    }
    Ok(())
}
