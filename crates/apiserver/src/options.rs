//! What an administrator may choose for the API server beyond the cluster's own ways. All of it has a default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use api::kinds::{self, KindTable};

pub use crate::audit::log::LogOptions;
pub use crate::audit::webhook::{Mode as AuditMode, WebhookOptions};
pub use crate::auth::oidc::OidcFlags;

/// The choices; names as kube-apiserver's flags.
#[derive(Debug, Clone)]
pub struct Options {
    /// The domain of the cluster's names, for example `cluster.local`.
    pub cluster_domain: String,
    /// Options of the command line, secrets aside: `/flagz` shows them.
    pub flags: BTreeMap<String, String>,
    /// `--encryption-provider-config`: an `EncryptionConfiguration`. Without it, Secrets are sealed with a key of our own.
    pub encryption_provider_config: Option<PathBuf>,
    /// `--token-auth-file`: lines of `token,user,uid,"group1,group2"`.
    pub token_auth_file: Option<PathBuf>,
    /// `--authentication-config`: an `AuthenticationConfiguration`; takes the place of the OIDC flags.
    pub authentication_config: Option<PathBuf>,
    /// `--oidc-...`: one issuer of ID tokens.
    pub oidc: OidcFlags,
    /// `--authentication-token-webhook-config-file`: a kubeconfig that says who reviews tokens.
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// `--authentication-token-webhook-version`.
    pub authentication_token_webhook_version: String,
    /// `--authentication-token-webhook-cache-ttl`.
    pub authentication_token_webhook_cache_ttl: Duration,
    /// `--requestheader-...`: the front proxy.
    pub requestheader: RequestHeader,
    /// `--authorization-mode`: `Node`, `RBAC`, `Webhook`, `AlwaysAllow`, `AlwaysDeny`; empty for `Node,RBAC`.
    pub authorization_mode: Vec<String>,
    /// `--authorization-config`: an `AuthorizationConfiguration`; takes the place of the mode.
    pub authorization_config: Option<PathBuf>,
    /// `--authorization-webhook-config-file`: a kubeconfig that says who decides.
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// `--authorization-webhook-version`.
    pub authorization_webhook_version: String,
    /// `--authorization-webhook-cache-authorized-ttl`.
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// `--authorization-webhook-cache-unauthorized-ttl`.
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// `--max-requests-inflight`: seats for requests, together with the next; levels of priority divide the sum.
    pub max_requests_inflight: u32,
    /// `--max-mutating-requests-inflight`.
    pub max_mutating_requests_inflight: u32,
    /// `--request-timeout`: a quarter of it is the longest wait for a seat.
    pub request_timeout: Duration,
    /// `--audit-policy-file`: a `Policy` of `audit.k8s.io/v1`.
    pub audit_policy_file: Option<PathBuf>,
    /// `--audit-log-...`: where events are recorded; an empty path is nowhere.
    pub audit_log: LogOptions,
    /// `--audit-webhook-...`: where events are sent.
    pub audit_webhook: WebhookOptions,
    /// `--feature-gates`.
    pub feature_gates: FeatureGates,
}

/// Parts that are not ready in v1.36, closed unless they are opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureGates {
    /// `CBORServingAndStorage` (alpha): objects in CBOR. At rest there is JSON all the same.
    pub cbor: bool,
    /// `GenericWorkload` (alpha): the APIs Workload and PodGroup, and the pods of groups.
    pub generic_workload: bool,
    /// `GangScheduling` (alpha): pods of a group wait until enough of them can run. Needs `GenericWorkload`.
    pub gang_scheduling: bool,
    /// `StorageVersionMigrator` (beta): the API StorageVersionMigration, and who carries it out.
    pub storage_version_migrator: bool,
    /// `DRADeviceTaintRules` (beta): the API DeviceTaintRule, and who heeds it.
    pub device_taint_rules: bool,
}

/// Groups that have resources behind the gates of workloads, of migrations and of device taints, in this order.
const GATED: [&str; 3] = ["scheduling.k8s.io", "storagemigration.k8s.io", "resource.k8s.io"];

impl FeatureGates {
    /// The resources that are served.
    pub fn kinds(self) -> &'static KindTable {
        static TABLES: LazyLock<[KindTable; 1 << GATED.len()]> = LazyLock::new(|| {
            std::array::from_fn(|open| {
                let is_open = |(i, _): &(usize, &str)| open & 1 << i != 0;
                let groups: Vec<&str> =
                    GATED.into_iter().enumerate().filter(is_open).map(|(_, group)| group).collect();
                kinds::with_prereleases(&groups)
            })
        });
        let gates = [self.generic_workload, self.storage_version_migrator, self.device_taint_rules];
        match gates.iter().enumerate().map(|(i, is_open)| usize::from(*is_open) << i).sum() {
            0 => kinds::builtin(),
            open => &TABLES[open],
        }
    }
}

impl std::str::FromStr for FeatureGates {
    type Err = String;

    /// `Name=true,Other=false`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut gates = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("missing bool value for {pair}"))?;
            let value = match value.trim() {
                "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
                "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
                other => return Err(format!("invalid value of {name}={other}")),
            };
            match name.trim() {
                "CBORServingAndStorage" => gates.cbor = value,
                "GenericWorkload" => gates.generic_workload = value,
                "GangScheduling" => gates.gang_scheduling = value,
                "StorageVersionMigrator" => gates.storage_version_migrator = value,
                "DRADeviceTaintRules" => gates.device_taint_rules = value,
                "AllAlpha" => {
                    gates = Self { cbor: value, generic_workload: value, gang_scheduling: value, ..gates };
                }
                "AllBeta" => {
                    (gates.storage_version_migrator, gates.device_taint_rules) = (value, value);
                }
                other => return Err(format!("unrecognized feature gate: {other}")),
            }
        }
        if gates.gang_scheduling && !gates.generic_workload {
            return Err(
                "GangScheduling is enabled, but depends on features that are disabled: [GenericWorkload]"
                    .to_owned(),
            );
        }
        Ok(gates)
    }
}

/// The front proxy's certificates and headers; empty lists stand for upstream's usual names.
#[derive(Debug, Clone, Default)]
pub struct RequestHeader {
    /// `--requestheader-client-ca-file`.
    pub client_ca_file: Option<PathBuf>,
    /// `--requestheader-allowed-names`; empty for any.
    pub allowed_names: Vec<String>,
    /// `--requestheader-username-headers`.
    pub username_headers: Vec<String>,
    /// `--requestheader-uid-headers`.
    pub uid_headers: Vec<String>,
    /// `--requestheader-group-headers`.
    pub group_headers: Vec<String>,
    /// `--requestheader-extra-headers-prefix`.
    pub extra_headers_prefix: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            flags: BTreeMap::new(),
            encryption_provider_config: None,
            token_auth_file: None,
            authentication_config: None,
            oidc: OidcFlags::default(),
            authentication_token_webhook_config_file: None,
            authentication_token_webhook_version: "v1".to_owned(),
            authentication_token_webhook_cache_ttl: Duration::from_secs(120),
            requestheader: RequestHeader::default(),
            authorization_mode: Vec::new(),
            authorization_config: None,
            authorization_webhook_config_file: None,
            authorization_webhook_version: "v1".to_owned(),
            authorization_webhook_cache_authorized_ttl: Duration::from_secs(300),
            authorization_webhook_cache_unauthorized_ttl: Duration::from_secs(30),
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            request_timeout: Duration::from_secs(60),
            audit_policy_file: None,
            audit_log: LogOptions::default(),
            audit_webhook: WebhookOptions::default(),
            feature_gates: FeatureGates::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_gates_are_read_as_a_list() {
        let gates = |text: &str| text.parse::<FeatureGates>();
        assert_eq!(gates("").unwrap(), FeatureGates::default());
        assert!(gates("CBORServingAndStorage=true").unwrap().cbor);
        let both = gates("AllBeta=true,AllAlpha=true").unwrap();
        assert!(both.storage_version_migrator && both.generic_workload);
        assert!(gates("GenericWorkload=true, GangScheduling=true").unwrap().gang_scheduling);
        assert!(gates("GangScheduling=true").unwrap_err().contains("depends on features that are disabled"));
        assert_eq!(gates("NoSuch=true").unwrap_err(), "unrecognized feature gate: NoSuch");
        assert_eq!(
            gates("CBORServingAndStorage").unwrap_err(),
            "missing bool value for CBORServingAndStorage"
        );
    }
}
