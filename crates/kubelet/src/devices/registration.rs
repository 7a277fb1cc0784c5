//! Where device plugins register, and what follows: one task per plugin listens to what it lists, until it goes away.
//! They may register in `plugins_registry` instead ([`crate::csi`]).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::messages::{DevicePluginOptions, Empty, ListAndWatchResponse, RegisterRequest};
use super::{Devices, FILE};
use crate::grpc::{self, Plugin, told};

/// The API's version, the only one there is.
pub(crate) const VERSION: &str = "v1beta1";
/// The socket at which plugins register.
pub const SOCKET: &str = "kubelet.sock";
/// A plugin that registers answers within this.
const GREETING: Duration = Duration::from_secs(10);
/// Resources of a plugin that went away are shown for so long.
const GRACE: Duration = Duration::from_secs(300);

/// Takes in plugins until `stop`.
pub async fn run(devices: Arc<Devices>, stop: CancellationToken) {
    let folder = &devices.folder;
    if let Err(error) = clean(folder) {
        tracing::error!(%error, folder = %folder.display(), "device plugins cannot register");
        return;
    }
    let tasks = TaskTracker::new();
    let (known, followers, ends) = (devices.clone(), tasks.clone(), stop.clone());
    let answer = move |request: http::Request<hyper::body::Incoming>| {
        let (devices, tasks, stop) = (known.clone(), followers.clone(), ends.clone());
        async move {
            if request.uri().path() != "/v1beta1.Registration/Register" {
                return grpc::unknown(request).await;
            }
            grpc::unary(request, move |asked: RegisterRequest| async move {
                let what = asked.resource_name.clone();
                match register(&devices, &tasks, &stop, asked).await {
                    Ok(()) => Ok(Empty {}),
                    Err(why) => {
                        tracing::warn!(resource = what, why, "a device plugin is not taken in");
                        Err(Status::new(Code::Unknown, why))
                    }
                }
            })
            .await
        }
    };
    if let Err(error) = grpc::serve(&folder.join(SOCKET), answer, stop).await {
        tracing::error!(%error, folder = %folder.display(), "device plugins cannot register");
    }
    tasks.close();
    tasks.wait().await;
}

/// Old sockets go: plugins take that as a sign to register again.
fn clean(folder: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != FILE && !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn register(
    devices: &Arc<Devices>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    asked: RegisterRequest,
) -> Result<(), String> {
    let resource = asked.resource_name;
    if asked.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
            asked.version
        ));
    }
    check_name(&resource)?;
    if asked.endpoint.is_empty() || asked.endpoint.contains('/') {
        return Err(format!("the endpoint {:?} is not the name of a socket beside {SOCKET}", asked.endpoint));
    }
    let joined = join(devices, resource, &devices.folder.join(&asked.endpoint)).await?;
    let (devices, stop) = (devices.clone(), stop.clone());
    tasks.spawn(async move {
        let gone = stop.child_token();
        follow(&devices, joined, &gone, &stop).await;
    });
    Ok(())
}

/// What a resource may be called.
pub(crate) fn check_name(resource: &str) -> Result<(), String> {
    match api::quota::is_extended(resource) {
        true => Ok(()),
        false => Err(format!("the ResourceName {resource:?} is invalid")),
    }
}

/// A plugin that was taken in.
pub(crate) struct Joined {
    resource: String,
    session: u64,
    plugin: Plugin,
}

/// Takes in the plugin whose socket this is.
pub(crate) async fn join(devices: &Devices, resource: String, socket: &Path) -> Result<Joined, String> {
    let plugin = Plugin::at(socket)?;
    let greeted = plugin.call("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty {});
    let options: DevicePluginOptions = match tokio::time::timeout(GREETING, greeted).await {
        Ok(answer) => answer.map_err(|status| told(&status))?,
        Err(_) => return Err("context deadline exceeded".to_owned()),
    };
    let session = devices.joined(&resource, plugin.clone(), options);
    crate::metrics::DEVICE_PLUGINS.add(&[&resource]);
    tracing::info!(resource, socket = %socket.display(), "device plugin registered");
    Ok(Joined { resource, session, plugin })
}

/// Listens to a plugin until it goes away, or its socket (`gone`), and forgets it a while later; until `stop`, at which `gone`
/// is cancelled too.
pub(crate) async fn follow(
    devices: &Devices,
    joined: Joined,
    gone: &CancellationToken,
    stop: &CancellationToken,
) {
    let Joined { resource, session, .. } = &joined;
    let ended = tokio::select! {
        () = gone.cancelled() => "its socket is gone".to_owned(),
        ended = listen(devices, &joined) => ended,
    };
    if stop.is_cancelled() {
        return;
    }
    tracing::info!(resource, why = ended, "a device plugin went away");
    devices.left(resource, *session);
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(GRACE) => devices.forgotten(resource, *session),
    }
}

/// Takes in what a plugin lists, until it no longer does: why.
async fn listen(devices: &Devices, Joined { resource, session, plugin }: &Joined) -> String {
    let listing = plugin.stream::<_, ListAndWatchResponse>("/v1beta1.DevicePlugin/ListAndWatch", Empty {});
    match listing.await {
        Ok(mut lists) => loop {
            match lists.message().await {
                Ok(Some(list)) => {
                    let ids: BTreeSet<&str> = list.devices.iter().map(|device| device.id.as_str()).collect();
                    tracing::debug!(resource, ?ids, "devices listed");
                    devices.listed(resource, *session, list.devices);
                }
                Ok(None) => break "its list ended".to_owned(),
                Err(status) => break told(&status),
            }
        },
        Err(status) => told(&status),
    }
}
