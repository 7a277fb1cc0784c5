//! A container's image: found on the node, or pulled as its policy says.

use std::time::Duration;

use client::events::EventType;
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, Secret};
use tokio::time::Instant;

use super::{PULL_CAUSE, PULL_RETRY, Worker};
use crate::image_name;
use crate::image_records::{Source, Verdict};
use crate::image_secrets::{Credential, Keyring};
use crate::metrics;

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
    /// The image of a container, or of a volume, which has no `list`. The reason in an error is the container's
    /// waiting reason; the event that says why is made here.
    pub(super) async fn image(&mut self, pod: &Pod, container: &Spec, list: &str) -> Result<Image, Missing> {
        let name = container.image.clone().unwrap_or_default();
        let about = (!list.is_empty()).then_some((container, list));
        let parsed = match image_name::parse(&name) {
            Ok(parsed) => parsed,
            Err(why) => {
                let text = format!(
                    "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {why}"
                );
                self.event(pod, about, EventType::Warning, "InspectFailed", text.clone());
                return Err(Some(("InvalidImageName", text)));
            }
        };
        let asked = if parsed.untagged { format!("{name}:latest") } else { name.clone() };
        let image = v1::ImageSpec { image: asked, user_specified_image: name.clone(), ..Default::default() };
        let request = v1::ImageStatusRequest { image: Some(image.clone()), verbose: false };
        let present = match self.shared.images.clone().image_status(request.clone()).await {
            Ok(answer) => answer.into_inner().image.map(Image::from),
            Err(error) => {
                let text = format!("Failed to inspect image {name:?}: {}", error.message());
                self.event(pod, about, EventType::Warning, "InspectFailed", text.clone());
                return Err(Some(("ImageInspectError", text)));
            }
        };
        let policy = policy(container);
        if let Some(found) = present.filter(|_| policy != "Always")
            && self
                .unless_deleted(self.may_use(pod, &name, &parsed.repository, &found.id))
                .await
                .ok_or(None)?
        {
            let text =
                format!("Container image {name:?} already present on machine and can be accessed by the pod");
            self.event(pod, about, EventType::Normal, "Pulled", text);
            return Ok(found);
        }
        if policy == "Never" {
            let text = format!("Container image {name:?} is not present with pull policy of Never");
            self.event(pod, about, EventType::Warning, "ErrImageNeverPull", text.clone());
            return Err(Some(("ErrImageNeverPull", text)));
        }
        self.event(pod, about, EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
        let credentials = self.credentials(pod, &parsed.repository);
        let credentials = self.unless_deleted(credentials).await.ok_or(None)?;
        let begin = Instant::now();
        let shared = self.shared.clone();
        let slot = self.meanwhile(pod, shared.pulls.acquire()).await.ok_or(None)?;
        let pulling = Instant::now();
        let sandbox = Some(self.sandbox_config(pod, 0));
        let pull = v1::PullImageRequest { image: Some(image), sandbox_config: sandbox, auth: None };
        if let Err(error) = shared.image_records.begin(&name) {
            let text = format!("Failed to record image pull intent for image {name:?}: {error}");
            self.event(pod, about, EventType::Warning, "Failed", text.clone());
            return Err(Some(("ErrImagePull", text)));
        }
        let pulled = self.meanwhile(pod, pull_with(shared.images.clone(), &pull, credentials)).await;
        drop(slot);
        let (id, source) = match pulled {
            Some(Ok(pulled)) => pulled,
            failed => {
                shared.image_records.failed(&name);
                let Some(Err(error)) = failed else { return Err(None) };
                let text = format!("Failed to pull image {name:?}: {}", error.message());
                self.event(pod, about, EventType::Warning, "Failed", text);
                return Err(Some(pull_error(&name, error.message())));
            }
        };
        let found = shared.images.clone().image_status(request).await.ok();
        let found = found.and_then(|answer| answer.into_inner().image);
        let size = found.as_ref().map_or(0, |image| image.size);
        metrics::IMAGE_PULL.time(&[metrics::size_group(size)], pulling.elapsed());
        self.starting.iter_mut().for_each(|starting| starting.pulled(pulling));
        let text = format!(
            "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
            brief(pulling.elapsed()),
            brief(begin.elapsed()),
            size
        );
        self.event(pod, about, EventType::Normal, "Pulled", text);
        let found = found.map_or_else(|| Image { id, ..Image::default() }, Image::from);
        shared.image_records.pulled(&name, &parsed.repository, &found.id, &source);
        Ok(found)
    }

    /// Whether the pod may use an image that is on the node, which others may have pulled with credentials of theirs.
    async fn may_use(&self, pod: &Pod, image: &str, repository: &str, id: &str) -> bool {
        let verdict = self.shared.image_records.verdict(image, repository, id);
        if verdict == Verdict::Free {
            return true;
        }
        let own = self.credentials(pod, repository).await;
        verdict.lets_in(&own.into_iter().map(|one| one.source).collect::<Vec<_>>())
    }

    /// What the pod's pull secrets say about a repository, then what credential providers do. Secrets of its service account
    /// are among the first: admission put them there.
    async fn credentials(&self, pod: &Pod, repository: &str) -> Vec<Credential> {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let (mut secrets, mut missing) = (Vec::new(), Vec::new());
        for name in names.map(|reference| reference.name.as_str()).filter(|name| !name.is_empty()) {
            match self.shared.references.get::<Secret>(ns, name).await {
                Ok(secret) => secrets.push(secret),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, name, "pull secret not read");
                    missing.push(name);
                }
            }
        }
        if !missing.is_empty() {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(pod, None, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
        }
        let mut found = Keyring::of(&secrets).lookup(repository);
        found.extend(self.shared.credential_providers.lookup(pod, repository).await);
        found
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

/// Tries the credentials in turn; without any, once with none. With the image's id comes whose credentials got it.
async fn pull_with(
    mut images: cri::ImageClient,
    request: &v1::PullImageRequest,
    credentials: Vec<Credential>,
) -> Result<(String, Source), tonic::Status> {
    let mut tries: Vec<Option<Credential>> = credentials.into_iter().map(Some).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    let mut last = tonic::Status::internal("nothing was tried");
    for credential in tries {
        let (auth, source) = credential.map(|one| (one.auth, one.source)).unzip();
        let request = v1::PullImageRequest { auth, ..request.clone() };
        match images.pull_image(request).await {
            Ok(answer) => return Ok((answer.into_inner().image_ref, source.unwrap_or(Source::Node))),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether a waiting reason is about an image.
pub(super) fn is_image(reason: &str) -> bool {
    is_pull(reason) || matches!(reason, "ErrImageNeverPull" | "ImageInspectError" | "InvalidImageName")
}

/// Whether a waiting reason is that of a pull that failed.
pub(super) fn is_pull(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
}

/// Reason and message; some runtimes begin theirs with one of two reasons that the CRI defines.
fn pull_error(image: &str, message: &str) -> (&'static str, String) {
    for (reason, cause) in [
        ("RegistryUnavailable", "because the registry is unavailable"),
        ("SignatureValidationFailed", "because the signature validation failed"),
    ] {
        if let Some(rest) = message.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} {cause}{rest}"));
        }
    }
    ("ErrImagePull", message.to_owned())
}

/// A duration to the millisecond, as Go writes it: `812ms`, `1.5s`, `2m3.25s`.
fn brief(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{point}{fraction}s", rest / 1000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
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
    fn durations_are_written_as_go_does() {
        let check = |millis: u64, expected: &str| assert_eq!(brief(Duration::from_millis(millis)), expected);
        check(0, "0s");
        check(812, "812ms");
        check(1500, "1.5s");
        check(60_000, "1m0s");
        check(123_250, "2m3.25s");
        check(3_600_001, "1h0m0.001s");
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
