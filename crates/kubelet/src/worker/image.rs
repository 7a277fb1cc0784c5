//! A container's image: found on the node, or pulled as its policy says.

use client::events::EventType;
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::{PULL_CAUSE, PULL_RETRY, Worker};

/// An image on the node.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Its id at the runtime.
    pub id: String,
    /// The user its processes run as, where it names one by number.
    pub uid: Option<i64>,
    /// The user's name, where it names one so.
    pub user: String,
}

impl From<v1::Image> for Image {
    fn from(image: v1::Image) -> Self {
        Self { id: image.id, uid: image.uid.map(|u| u.value), user: image.username }
    }
}

/// Why there is no image; `None`: the pod was deleted meanwhile.
pub(super) type Missing = Option<(&'static str, String)>;

impl Worker {
    /// The image of a container. The reason in an error is the container's waiting reason.
    pub(super) async fn image(&mut self, pod: &Pod, container: &Spec, list: &str) -> Result<Image, Missing> {
        let name = container.image.clone().unwrap_or_default();
        let image =
            v1::ImageSpec { image: name.clone(), user_specified_image: name.clone(), ..Default::default() };
        let request = v1::ImageStatusRequest { image: Some(image.clone()), verbose: false };
        let present = match self.shared.images.clone().image_status(request.clone()).await {
            Ok(answer) => answer.into_inner().image.map(Image::from),
            Err(error) => {
                let text = format!("Failed to inspect image {name:?}: {}", error.message());
                return Err(Some(("ImageInspectError", text)));
            }
        };
        let about = Some((container, list));
        match (policy(container), present) {
            ("Never", None) => {
                let text = format!("Container image {name:?} is not present with pull policy of Never");
                Err(Some(("ErrImageNeverPull", text)))
            }
            ("Never" | "IfNotPresent", Some(found)) => {
                let text = format!("Container image {name:?} already present on machine");
                self.event(pod, about, EventType::Normal, "Pulled", text);
                Ok(found)
            }
            (_, present) => {
                self.event(pod, about, EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
                let begin = tokio::time::Instant::now();
                let mut images = self.shared.images.clone();
                let sandbox = Some(self.sandbox_config(pod, 0));
                let pull = v1::PullImageRequest { image: Some(image), sandbox_config: sandbox, auth: None };
                let pulled = self.unless_deleted(images.pull_image(pull)).await.ok_or(None)?;
                match pulled {
                    Ok(answer) => {
                        let took = begin.elapsed();
                        let text = format!("Successfully pulled image {name:?} in {took:.3?}");
                        self.event(pod, about, EventType::Normal, "Pulled", text);
                        let found = images.image_status(request).await.ok();
                        let found = found.and_then(|a| a.into_inner().image).map(Image::from);
                        let id = answer.into_inner().image_ref;
                        Ok(found.unwrap_or(Image { id, ..Image::default() }))
                    }
                    // a runtime that cannot pull, and an image that was imported by hand
                    Err(error) if error.code() == tonic::Code::Unimplemented && present.is_some() => {
                        Ok(present.unwrap_or_default())
                    }
                    Err(error) => {
                        let text = format!("Failed to pull image {name:?}: {}", error.message());
                        Err(Some(("ErrImagePull", text)))
                    }
                }
            }
        }
    }

    /// After a pull failed: the cause is shown for a moment, then that it waits.
    pub(super) fn pull_failed(&mut self, name: &str) {
        let fresh = || client::queue::Backoff::new(PULL_RETRY.0, PULL_RETRY.1);
        let delay = self.failures.entry(name.to_owned()).or_insert_with(fresh).next();
        self.hold(name, delay);
        let now = Timestamp::now();
        self.pulls.insert(name.to_owned(), now.saturating_add(PULL_CAUSE).unwrap_or(now));
    }
}

/// The pull policy; `Always` for a tag `latest` or none, as the API's default says.
fn policy(container: &Spec) -> &str {
    let name = container.image.as_deref().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = !name.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" })
}

/// Why a container that must not run as root cannot start.
pub(super) fn wrong_user(pod: &Pod, container: &Spec, image: &Image) -> Option<String> {
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let must = own.and_then(|c| c.run_as_non_root).or_else(|| pods.and_then(|c| c.run_as_non_root));
    if must != Some(true) {
        return None;
    }
    let meta = &pod.metadata;
    let whole = format!(
        "pod: {:?}, container: {}",
        format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default()
        ),
        container.name
    );
    match own.and_then(|c| c.run_as_user).or_else(|| pods.and_then(|c| c.run_as_user)) {
        Some(0) => Some(format!("container's runAsUser breaks non-root policy ({whole})")),
        Some(_) => None,
        None => match (image.uid, image.user.as_str()) {
            (Some(0), _) | (None, "") => {
                Some(format!("container has runAsNonRoot and image will run as root ({whole})"))
            }
            (Some(_), _) => None,
            (None, user) => Some(format!(
                "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root ({whole})"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn run_as_non_root_looks_at_the_pod_then_at_the_image() {
        let check = |context: serde_json::Value, uid: Option<i64>, user: &str| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}))
                    .unwrap();
            let spec = Spec { security_context: serde_json::from_value(context).unwrap(), ..Spec::default() };
            let image = Image { id: String::new(), uid, user: user.to_owned() };
            wrong_user(&pod, &spec, &image).is_some()
        };
        assert!(!check(json!({}), Some(0), ""));
        assert!(check(json!({"runAsNonRoot": true}), Some(0), ""));
        assert!(check(json!({"runAsNonRoot": true}), None, ""));
        assert!(check(json!({"runAsNonRoot": true}), None, "www"));
        assert!(!check(json!({"runAsNonRoot": true}), Some(33), ""));
        assert!(!check(json!({"runAsNonRoot": true, "runAsUser": 5}), Some(0), ""));
        assert!(check(json!({"runAsNonRoot": true, "runAsUser": 0}), Some(33), ""));
    }

    #[test]
    fn the_tag_decides_the_pull_policy_where_the_pod_does_not() {
        let check =
            |image: &str| policy(&Spec { image: Some(image.to_owned()), ..Spec::default() }).to_owned();
        assert_eq!(check("web"), "Always");
        assert_eq!(check("host:5000/web:latest"), "Always");
        assert_eq!(check("host:5000/web"), "Always");
        assert_eq!(check("web:1"), "IfNotPresent");
        assert_eq!(check("web@sha256:00"), "IfNotPresent");
    }
}
