//! Where device plugins register, and what follows: one task per plugin listens to what it lists, until it goes away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::messages::{DevicePluginOptions, Empty, ListAndWatchResponse, RegisterRequest};
use super::{Devices, FILE};
use crate::grpc::{self, Plugin, told};

/// The API's version, the only one there is.
const VERSION: &str = "v1beta1";
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
    if !api::quota::is_extended(&resource) {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    if asked.endpoint.is_empty() || asked.endpoint.contains('/') {
        return Err(format!("the endpoint {:?} is not the name of a socket beside {SOCKET}", asked.endpoint));
    }
    let plugin = Plugin::at(&devices.folder.join(&asked.endpoint))?;
    let greeted = plugin.call("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty {});
    let options: DevicePluginOptions = match tokio::time::timeout(GREETING, greeted).await {
        Ok(answer) => answer.map_err(|status| told(&status))?,
        Err(_) => return Err("context deadline exceeded".to_owned()),
    };
    let session = devices.joined(&resource, plugin.clone(), options);
    tracing::info!(resource, endpoint = asked.endpoint, "device plugin registered");
    let (devices, stop) = (devices.clone(), stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&devices, &resource, session, &plugin) => {}
        }
    });
    Ok(())
}

async fn follow(devices: &Devices, resource: &str, session: u64, plugin: &Plugin) {
    let listing = plugin.stream::<_, ListAndWatchResponse>("/v1beta1.DevicePlugin/ListAndWatch", Empty {});
    let ended = match listing.await {
        Ok(mut lists) => loop {
            match lists.message().await {
                Ok(Some(list)) => {
                    let ids: BTreeSet<&str> = list.devices.iter().map(|device| device.id.as_str()).collect();
                    tracing::debug!(resource, ?ids, "devices listed");
                    devices.listed(resource, session, list.devices);
                }
                Ok(None) => break "its list ended".to_owned(),
                Err(status) => break told(&status),
            }
        },
        Err(status) => told(&status),
    };
    tracing::info!(resource, why = ended, "a device plugin went away");
    devices.left(resource, session);
    tokio::time::sleep(GRACE).await;
    devices.forgotten(resource, session);
}
