//! Removes images that no container uses when the disk they lie on fills up: from the high threshold down to the low
//! one, the longest unused first.
//!
//! Rule: Kubernetes documentation, "Garbage Collection", "Container image lifecycle".

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder};
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::image_records::ImageRecords;

/// Between two looks at the disk.
const PERIOD: Duration = Duration::from_secs(300);

/// When images are removed.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Percent of the disk in use at which it begins.
    pub high: u64,
    /// Percent of the disk in use at which it ends.
    pub low: u64,
    /// An image is kept at least so long after it was first seen.
    pub min_age: Duration,
    /// An image that nobody used for so long is removed, however much disk is free.
    pub max_age: Option<Duration>,
    /// With so many bytes free nothing else is removed.
    pub spare: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: Duration::from_secs(120), max_age: None, spare: 0 }
    }
}

/// What is known of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    first_seen: Instant,
    last_used: Option<Instant>,
    size: u64,
    pinned: bool,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
struct Disk {
    capacity: u64,
    available: u64,
}

/// Removes images until `stop`.
pub struct ImageGc {
    policy: Policy,
    runtime: cri::RuntimeClient,
    images: cri::ImageClient,
    records: Arc<ImageRecords>,
    recorder: Recorder,
    node: ObjectReference,
    known: HashMap<String, Known>,
    /// Where the images lie; asked once, since runtimes count all their files for the answer.
    place: Option<PathBuf>,
}

impl ImageGc {
    /// For this node.
    pub fn new(
        policy: Policy,
        (runtime, images): (cri::RuntimeClient, cri::ImageClient),
        records: Arc<ImageRecords>,
        recorder: Recorder,
        node: ObjectReference,
    ) -> Self {
        Self { policy, runtime, images, records, recorder, node, known: HashMap::new(), place: None }
    }

    /// Looks every five minutes.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = self.pass() => done,
            };
            if let Err(why) = done {
                tracing::warn!(why, "images not collected");
                self.recorder.event(&self.node, EventType::Warning, "ImageGCFailed", why);
            }
        }
    }

    async fn pass(&mut self) -> Result<(), String> {
        let used = self.look().await.map_err(|status| status.message().to_owned())?;
        for id in outlived(&self.known, &used, self.policy, Instant::now()) {
            self.remove(&id, "age").await;
        }
        let Some(disk) = self.disk().await? else { return Ok(()) };
        let wanted = to_free(self.policy, disk);
        if wanted == 0 {
            return Ok(());
        }
        tracing::info!(wanted, "the disk of images is over the high threshold");
        let mut freed = 0;
        for id in victims(&self.known, &used, self.policy, Instant::now()) {
            if freed >= wanted {
                break;
            }
            freed += self.remove(&id, "space").await;
        }
        if freed < wanted {
            let text = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only \
                 found {freed} bytes eligible to free."
            );
            self.recorder.event(&self.node, EventType::Warning, "FreeDiskSpaceFailed", text);
        }
        Ok(())
    }

    /// Removes an image; the bytes that it had.
    async fn remove(&mut self, id: &str, why: &'static str) -> u64 {
        let image = Some(v1::ImageSpec { image: id.to_owned(), ..v1::ImageSpec::default() });
        match self.images.remove_image(v1::RemoveImageRequest { image }).await {
            Ok(_) => {
                crate::metrics::IMAGES_REMOVED.add(&[why]);
                self.known.remove(id).map_or(0, |known| known.size)
            }
            Err(error) => {
                tracing::warn!(image = id, error = error.message(), "not removed");
                0
            }
        }
    }

    /// Brings what is known up to date; the images that containers use.
    async fn look(&mut self) -> Result<HashSet<String>, tonic::Status> {
        let begin = Timestamp::now();
        let images = self.images.list_images(v1::ListImagesRequest::default()).await?.into_inner().images;
        self.records.prune(&images.iter().map(|image| image.id.as_str()).collect(), begin);
        let containers =
            self.runtime.list_containers(v1::ListContainersRequest::default()).await?.into_inner();
        let mut used = names_in_use(containers.containers);
        let now = Instant::now();
        let mut known = HashMap::new();
        for image in images {
            let is_used = names(&image).any(|name| used.contains(name));
            let before = self.known.get(&image.id);
            let last_used = if is_used { Some(now) } else { before.and_then(|known| known.last_used) };
            let first_seen = before.map_or(now, |known| known.first_seen);
            known.insert(
                image.id.clone(),
                Known { first_seen, last_used, size: image.size, pinned: image.pinned },
            );
            if is_used {
                used.insert(image.id);
            }
        }
        self.known = known;
        Ok(used)
    }

    async fn disk(&mut self) -> Result<Option<Disk>, String> {
        if self.place.is_none() {
            self.place = place(&self.images).await?;
        }
        let Some(place) = &self.place else { return Ok(None) };
        let stat = rustix::fs::statvfs(place).map_err(|error| format!("{}: {error}", place.display()))?;
        Ok(Some(Disk {
            capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        }))
    }
}

/// Where the images lie. Runtimes count all their files for the answer: not to be asked often.
pub async fn place(images: &cri::ImageClient) -> Result<Option<PathBuf>, String> {
    Ok(places(images).await?.0)
}

/// Where the images lie, and the writable layers of containers.
pub async fn places(images: &cri::ImageClient) -> Result<(Option<PathBuf>, Option<PathBuf>), String> {
    let answer = images.clone().image_fs_info(v1::ImageFsInfoRequest::default()).await;
    let found = answer.map_err(|status| status.message().to_owned())?.into_inner();
    let first = |systems: Vec<v1::FilesystemUsage>| {
        systems.into_iter().next().and_then(|system| system.fs_id).map(|id| PathBuf::from(id.mountpoint))
    };
    Ok((first(found.image_filesystems), first(found.container_filesystems)))
}

/// Removes every image that no container uses and that is not pinned, however young.
pub async fn remove_unused(runtime: &cri::RuntimeClient, images: &cri::ImageClient) -> Result<(), String> {
    let (mut runtime, mut images) = (runtime.clone(), images.clone());
    let said = |status: tonic::Status| status.message().to_owned();
    let listed =
        images.list_images(v1::ListImagesRequest::default()).await.map_err(said)?.into_inner().images;
    let containers = runtime.list_containers(v1::ListContainersRequest::default()).await.map_err(said)?;
    let used = names_in_use(containers.into_inner().containers);
    let unused = |image: &v1::Image| !image.pinned && !names(image).any(|name| used.contains(name));
    for image in listed.into_iter().filter(unused) {
        let image = Some(v1::ImageSpec { image: image.id, ..v1::ImageSpec::default() });
        match images.remove_image(v1::RemoveImageRequest { image }).await {
            Ok(_) => crate::metrics::IMAGES_REMOVED.add(&["space"]),
            Err(error) => tracing::debug!(error = error.message(), "image not removed"),
        }
    }
    Ok(())
}

fn names(image: &v1::Image) -> impl Iterator<Item = &String> {
    image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id])
}

fn names_in_use(containers: Vec<v1::Container>) -> HashSet<String> {
    let mut used = HashSet::new();
    for container in containers {
        used.extend(container.image.map(|image| image.image));
        used.insert(container.image_ref);
        used.insert(container.image_id);
    }
    used
}

/// Bytes to free so that the disk is at the low threshold; none below the high one.
fn to_free(policy: Policy, disk: Disk) -> u64 {
    if disk.capacity == 0 || (policy.spare > 0 && disk.available >= policy.spare) {
        return 0;
    }
    let share =
        |percent: u64| u64::try_from(u128::from(disk.capacity) * u128::from(percent) / 100).unwrap_or(0);
    let used = disk.capacity.saturating_sub(disk.available);
    if used < share(policy.high) { 0 } else { used.saturating_sub(share(policy.low)) }
}

/// Images that nobody used for so long that they go.
fn outlived(
    known: &HashMap<String, Known>,
    used: &HashSet<String>,
    policy: Policy,
    now: Instant,
) -> Vec<String> {
    let Some(most) = policy.max_age else { return Vec::new() };
    let last = |image: &Known| image.last_used.unwrap_or(image.first_seen);
    let all = victims(known, used, policy, now).into_iter();
    all.filter(|id| known.get(id).is_some_and(|image| now.saturating_duration_since(last(image)) > most))
        .collect()
}

/// What may be removed, best first: the longest unused, then the one known longest.
fn victims(
    known: &HashMap<String, Known>,
    used: &HashSet<String>,
    policy: Policy,
    now: Instant,
) -> Vec<String> {
    let mut found: Vec<_> = known
        .iter()
        .filter(|(id, image)| !used.contains(*id) && !image.pinned)
        .filter(|(_, image)| now.saturating_duration_since(image.first_seen) >= policy.min_age)
        .collect();
    found.sort_by(|(a, one), (b, other)| {
        (one.last_used, one.first_seen, a).cmp(&(other.last_used, other.first_seen, b))
    });
    found.into_iter().map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_high_threshold_it_is_freed_down_to_the_low_one() {
        let check = |available: u64, expected: u64| {
            assert_eq!(to_free(Policy::default(), Disk { capacity: 1000, available }), expected);
        };
        check(151, 0);
        check(150, 50);
        check(0, 200);
        assert_eq!(to_free(Policy::default(), Disk { capacity: 0, available: 0 }), 0);
        let generous = |available: u64| {
            to_free(Policy { spare: 50, ..Policy::default() }, Disk { capacity: 1000, available })
        };
        assert_eq!([generous(49), generous(50)], [151, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_unused_image_goes_first_and_young_used_or_pinned_ones_stay() {
        let start = Instant::now();
        let now = start + Duration::from_secs(1000);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let image = |first: u64, last: Option<u64>, pinned: bool| Known {
            first_seen: at(first),
            last_used: last.map(at),
            size: 1,
            pinned,
        };
        let known: HashMap<String, Known> = [
            ("never-used-new", image(100, None, false)),
            ("never-used-old", image(0, None, false)),
            ("used-long-ago", image(0, Some(10), false)),
            ("used-lately", image(0, Some(500), false)),
            ("in-use", image(0, Some(1000), false)),
            ("young", image(900, None, false)),
            ("pinned", image(0, None, true)),
        ]
        .map(|(id, known)| (id.to_owned(), known))
        .into();
        let used = HashSet::from(["in-use".to_owned()]);
        let found = victims(&known, &used, Policy::default(), now);
        assert_eq!(found, ["never-used-old", "never-used-new", "used-long-ago", "used-lately"]);
        let policy = Policy { max_age: Some(Duration::from_secs(950)), ..Policy::default() };
        let found = outlived(&known, &used, policy, now);
        assert_eq!(found, ["never-used-old", "used-long-ago"]);
    }
}
