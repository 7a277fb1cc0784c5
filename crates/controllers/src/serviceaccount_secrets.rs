//! The Secrets that hold legacy tokens of service accounts.
use client::{Cache, Caches};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};

use crate::ownership::{annotations, uid};

const ACCOUNT: &str = "kubernetes.io/service-account.name";
/// Says which account of that name.
pub(crate) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// These Secrets, and no others.
pub(crate) fn cache(caches: &Caches) -> Cache<Secret> {
    caches.of_selected("type=kubernetes.io/service-account-token")
}

/// The name of the account; empty where the Secret names none.
pub(crate) fn account_of(secret: &Secret) -> &str {
    annotations(&secret.metadata).get(ACCOUNT).map_or("", String::as_str)
}

/// Whether the Secret is of this account and not of an earlier one of its name.
pub(crate) fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let wanted = annotations(&secret.metadata).get(ACCOUNT_UID).map_or("", String::as_str);
    wanted.is_empty() || wanted == uid(&account.metadata)
}
