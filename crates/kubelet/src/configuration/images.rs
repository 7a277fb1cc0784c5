//! How images are pulled, for whom, and when they are removed.

use super::{ConfigurationError, KubeletConfiguration, duration, wrong};
use crate::image_records::Policy as Verification;

impl KubeletConfiguration {
    pub(super) fn check_images(&self) -> Result<(), ConfigurationError> {
        let policy = self.image_policy()?;
        if policy.max_age.is_some_and(|longest| longest <= policy.min_age) {
            return Err(wrong(format!(
                "invalid configuration: imageMaximumGCAge {} must be greater than imageMinimumGCAge {}",
                self.image_maximum_gc_age.as_deref().unwrap_or_default(),
                self.image_minimum_gc_age
            )));
        }
        self.verification_policy()?;
        if self.serialize_image_pulls == Some(true) && self.max_parallel_image_pulls > 1 {
            // what was not said is one
            if self.max_parallel_image_pulls != Self::default().max_parallel_image_pulls {
                return Err(wrong(
                    "maxParallelImagePulls cannot be larger than 1 unless serializeImagePulls is false",
                ));
            }
        }
        if self.max_parallel_image_pulls == 0 {
            return Err(wrong("maxParallelImagePulls must be a positive number"));
        }
        if self.image_gc_low_threshold_percent >= self.image_gc_high_threshold_percent
            || self.image_gc_high_threshold_percent > 100
        {
            return Err(wrong(
                "imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent, and both between 0 and 100",
            ));
        }
        Ok(())
    }

    /// Images that are pulled at once.
    pub fn image_pulls(&self) -> u32 {
        if self.serialize_image_pulls == Some(true) { 1 } else { self.max_parallel_image_pulls }
    }

    /// When images are removed.
    pub fn image_policy(&self) -> Result<crate::image_gc::Policy, ConfigurationError> {
        Ok(crate::image_gc::Policy {
            high: self.image_gc_high_threshold_percent,
            low: self.image_gc_low_threshold_percent,
            min_age: duration("imageMinimumGCAge", &self.image_minimum_gc_age)?,
            max_age: match &self.image_maximum_gc_age {
                Some(age) => Some(duration("imageMaximumGCAge", age)?).filter(|age| !age.is_zero()),
                None => None,
            },
            spare: self.spare_disk,
        })
    }

    /// Which images pods must prove to have credentials for.
    pub fn verification_policy(&self) -> Result<Verification, ConfigurationError> {
        let list = &self.preloaded_images_verification_allowlist;
        let policy = match self.image_pull_credentials_verification_policy.as_str() {
            "NeverVerify" => Verification::Never,
            "NeverVerifyPreloadedImages" => Verification::NotPreloaded,
            "NeverVerifyAllowlistedImages" => Verification::NotAllowed(list.clone()),
            "AlwaysVerify" => Verification::Always,
            other => {
                return Err(wrong(format!(
                    "imagePullCredentialsVerificationPolicy {other:?} must be one of: NeverVerify, \
                     NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages, AlwaysVerify"
                )));
            }
        };
        if !list.is_empty() && !matches!(policy, Verification::NotAllowed(_)) {
            return Err(wrong(
                "preloadedImagesVerificationAllowlist can only be set with the policy NeverVerifyAllowlistedImages",
            ));
        }
        for pattern in list {
            check_pattern(pattern).map_err(|why| {
                wrong(format!("invalid image pattern in preloadedImagesVerificationAllowlist: {why}"))
            })?;
        }
        Ok(policy)
    }
}

/// A name of an image with its registry, and without tag and digest; or a registry, or a folder of one, and `/*`.
fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern != pattern.trim() {
        return Err(format!("leading/trailing spaces are not allowed: {pattern}"));
    }
    if pattern.is_empty() {
        return Err(format!("the supplied pattern is too short: {pattern}"));
    }
    let folder = pattern.strip_suffix("/*");
    if folder.unwrap_or(pattern).contains('*') {
        return Err(format!(
            "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"
        ));
    }
    match folder {
        Some("") => Err("at least registry hostname is required".to_owned()),
        Some(_) => Ok(()),
        None => match crate::image_name::parse(pattern) {
            Err(why) => Err(format!("failed to parse as an image name: {why}")),
            Ok(name) if name.repository != pattern => {
                Err(format!("neither tag nor digest is accepted in an image reference: {pattern}"))
            }
            Ok(_) => Ok(()),
        },
    }
}
