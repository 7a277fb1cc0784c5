//! The flags of the API server; names and meaning as kube-apiserver's.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::options::{AuditMode, FeatureGates, LogOptions, OidcFlags, RequestHeader, WebhookOptions};
use clap::Args;

/// How the API server is run. Files are named by their paths and are read at start.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "API server")]
pub struct ApiOptions {
    /// An `EncryptionConfiguration`: what is encrypted at rest, and with which keys. Without it, Secrets are, with a key that
    /// is made at first start and kept in the cluster's folder.
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// Static tokens: lines of `token,user,uid,"group1,group2"`.
    #[arg(long, value_name = "FILE")]
    token_auth_file: Option<PathBuf>,
    /// An `AuthenticationConfiguration`: issuers of tokens, and where anonymous callers are let in.
    #[arg(long, value_name = "FILE", conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// A kubeconfig file that says who reviews tokens.
    #[arg(long, value_name = "FILE")]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// The version of the reviews: `v1` or `v1beta1`.
    #[arg(long, value_name = "VERSION")]
    authentication_token_webhook_version: Option<String>,
    /// How long a review of a token is remembered, for example `2m`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    authentication_token_webhook_cache_ttl: Option<Duration>,
    /// The issuer of ID tokens, an https:// URL.
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// The audience that ID tokens must have.
    #[arg(long, value_name = "ID")]
    oidc_client_id: Option<String>,
    /// The issuer's certificate authority; the machine's own where it is not given.
    #[arg(long, value_name = "FILE")]
    oidc_ca_file: Option<PathBuf>,
    /// The claim that names the user.
    #[arg(long, value_name = "CLAIM")]
    oidc_username_claim: Option<String>,
    /// What stands before the user's name; `-` for nothing.
    #[arg(long, value_name = "PREFIX")]
    oidc_username_prefix: Option<String>,
    /// The claim that names the user's groups.
    #[arg(long, value_name = "CLAIM")]
    oidc_groups_claim: Option<String>,
    /// What stands before the groups' names.
    #[arg(long, value_name = "PREFIX")]
    oidc_groups_prefix: Option<String>,
    /// A claim that must have a value: `claim=value`.
    #[arg(long, value_name = "CLAIM=VALUE", value_delimiter = ',')]
    oidc_required_claim: Vec<String>,
    /// Algorithms of signatures.
    #[arg(long, value_name = "ALGORITHM", value_delimiter = ',')]
    oidc_signing_algs: Vec<String>,
    /// The authority of front proxies: only behind its certificates do `X-Remote-...` headers count.
    #[arg(long, value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; any where none is given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    /// Headers that name the user.
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    requestheader_username_headers: Vec<String>,
    /// Headers that hold the user's uid.
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    requestheader_uid_headers: Vec<String>,
    /// Headers that name the user's groups.
    #[arg(long, value_name = "HEADER", value_delimiter = ',')]
    requestheader_group_headers: Vec<String>,
    /// What headers with more about the user begin with.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    requestheader_extra_headers_prefix: Vec<String>,
    /// Who decides, in this order: `Node`, `RBAC`, `Webhook`, `AlwaysAllow`, `AlwaysDeny`. Without it: `Node,RBAC`.
    #[arg(long, value_name = "MODE", value_delimiter = ',', conflicts_with = "authorization_config")]
    authorization_mode: Vec<String>,
    /// An `AuthorizationConfiguration`: who decides.
    #[arg(long, value_name = "FILE")]
    authorization_config: Option<PathBuf>,
    /// A kubeconfig file that says whom the mode `Webhook` asks.
    #[arg(long, value_name = "FILE")]
    authorization_webhook_config_file: Option<PathBuf>,
    /// The version of the reviews: `v1` or `v1beta1`.
    #[arg(long, value_name = "VERSION")]
    authorization_webhook_version: Option<String>,
    /// How long a yes of the webhook is remembered, for example `5m`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long a no of the webhook is remembered, for example `30s`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
    /// Seats for requests that run at the same time, 400; with those of the next flag they are divided by priority levels.
    #[arg(long, value_name = "REQUESTS")]
    max_requests_inflight: Option<u32>,
    /// More seats, 200.
    #[arg(long, value_name = "REQUESTS")]
    max_mutating_requests_inflight: Option<u32>,
    /// How long a request may take; a quarter of it is the longest wait for a seat.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    request_timeout: Option<Duration>,
    /// A `Policy` of `audit.k8s.io/v1`: how much of which request is recorded.
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// Where requests are recorded; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// Days that old audit logs are kept; 0 for ever.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u64,
    /// Old audit logs that are kept; 0 for all.
    #[arg(long, value_name = "FILES", default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes of an audit log before it is rotated; 0 for 100.
    #[arg(long, value_name = "MEGABYTES", default_value_t = 0)]
    audit_log_maxsize: u64,
    /// A kubeconfig file that says where audit events are sent.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_webhook_config_file: Option<PathBuf>,
    /// Whether requests wait for that: `batch` (no), `blocking`, `blocking-strict`.
    #[arg(long, value_name = "MODE")]
    audit_webhook_mode: Option<AuditMode>,
    /// The pause before a batch that was not taken is sent again, 10s.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    audit_webhook_initial_backoff: Option<Duration>,
    /// Audit events that may wait to be sent, 10000.
    #[arg(long, value_name = "EVENTS")]
    audit_webhook_batch_buffer_size: Option<usize>,
    /// Audit events sent at once, 400.
    #[arg(long, value_name = "EVENTS")]
    audit_webhook_batch_max_size: Option<usize>,
    /// A batch that is not full is sent after this, 30s.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    audit_webhook_batch_max_wait: Option<Duration>,
    /// Whether batches are held back to a rate, true.
    #[arg(long, value_name = "BOOL")]
    audit_webhook_batch_throttle_enable: Option<bool>,
    /// Batches in a second, 10.
    #[arg(long, value_name = "BATCHES")]
    audit_webhook_batch_throttle_qps: Option<f64>,
    /// Batches at once after a pause, 15.
    #[arg(long, value_name = "BATCHES")]
    audit_webhook_batch_throttle_burst: Option<u32>,
    /// Whether events and batches that are too long are shortened.
    #[arg(long, value_name = "BOOL")]
    audit_webhook_truncate_enabled: Option<bool>,
    /// The longest event in bytes, 102400.
    #[arg(long, value_name = "BYTES")]
    audit_webhook_truncate_max_event_size: Option<usize>,
    /// The longest batch in bytes, 10485760.
    #[arg(long, value_name = "BYTES")]
    audit_webhook_truncate_max_batch_size: Option<usize>,
    /// Parts that are not ready: `CBORServingAndStorage=true`.
    #[arg(long, value_name = "GATES")]
    feature_gates: Option<FeatureGates>,
}

fn duration(text: &str) -> Result<Duration, String> {
    api::duration::length(text).ok_or_else(|| "not a duration such as 90s or 5m".to_owned())
}

impl ApiOptions {
    /// As the API server takes them.
    pub fn to_options(&self) -> apiserver::Options {
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let mut options = apiserver::Options {
            encryption_provider_config: self.encryption_provider_config.clone(),
            token_auth_file: self.token_auth_file.clone(),
            authentication_config: self.authentication_config.clone(),
            oidc: OidcFlags {
                issuer_url: text(&self.oidc_issuer_url),
                client_id: text(&self.oidc_client_id),
                ca_file: self.oidc_ca_file.clone(),
                username_claim: text(&self.oidc_username_claim),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: text(&self.oidc_groups_claim),
                groups_prefix: text(&self.oidc_groups_prefix),
                required_claims: self.oidc_required_claim.clone(),
                signing_algs: self.oidc_signing_algs.clone(),
            },
            authentication_token_webhook_config_file: self.authentication_token_webhook_config_file.clone(),
            requestheader: RequestHeader {
                client_ca_file: self.requestheader_client_ca_file.clone(),
                allowed_names: self.requestheader_allowed_names.clone(),
                username_headers: self.requestheader_username_headers.clone(),
                uid_headers: self.requestheader_uid_headers.clone(),
                group_headers: self.requestheader_group_headers.clone(),
                extra_headers_prefix: self.requestheader_extra_headers_prefix.clone(),
            },
            authorization_mode: self.authorization_mode.clone(),
            authorization_config: self.authorization_config.clone(),
            authorization_webhook_config_file: self.authorization_webhook_config_file.clone(),
            audit_policy_file: self.audit_policy_file.clone(),
            audit_log: LogOptions {
                path: self.audit_log_path.clone().unwrap_or_default(),
                max_age: self.audit_log_maxage,
                max_backup: self.audit_log_maxbackup,
                max_size: self.audit_log_maxsize,
            },
            ..apiserver::Options::default()
        };
        set(
            &mut options.authentication_token_webhook_version,
            self.authentication_token_webhook_version.as_ref(),
        );
        set(
            &mut options.authentication_token_webhook_cache_ttl,
            self.authentication_token_webhook_cache_ttl.as_ref(),
        );
        self.set_audit_webhook(&mut options.audit_webhook);
        set(&mut options.feature_gates, self.feature_gates.as_ref());
        set(&mut options.max_requests_inflight, self.max_requests_inflight.as_ref());
        set(&mut options.max_mutating_requests_inflight, self.max_mutating_requests_inflight.as_ref());
        set(&mut options.request_timeout, self.request_timeout.as_ref());
        set(&mut options.authorization_webhook_version, self.authorization_webhook_version.as_ref());
        set(
            &mut options.authorization_webhook_cache_authorized_ttl,
            self.authorization_webhook_cache_authorized_ttl.as_ref(),
        );
        set(
            &mut options.authorization_webhook_cache_unauthorized_ttl,
            self.authorization_webhook_cache_unauthorized_ttl.as_ref(),
        );
        options
    }

    fn set_audit_webhook(&self, options: &mut WebhookOptions) {
        options.config_file.clone_from(&self.audit_webhook_config_file);
        set(&mut options.mode, self.audit_webhook_mode.as_ref());
        set(&mut options.initial_backoff, self.audit_webhook_initial_backoff.as_ref());
        set(&mut options.buffer_size, self.audit_webhook_batch_buffer_size.as_ref());
        set(&mut options.batch_max_size, self.audit_webhook_batch_max_size.as_ref());
        set(&mut options.batch_max_wait, self.audit_webhook_batch_max_wait.as_ref());
        set(&mut options.throttle, self.audit_webhook_batch_throttle_enable.as_ref());
        set(&mut options.throttle_qps, self.audit_webhook_batch_throttle_qps.as_ref());
        set(&mut options.throttle_burst, self.audit_webhook_batch_throttle_burst.as_ref());
        set(&mut options.truncate, self.audit_webhook_truncate_enabled.as_ref());
        set(&mut options.truncate_max_event_size, self.audit_webhook_truncate_max_event_size.as_ref());
        set(&mut options.truncate_max_batch_size, self.audit_webhook_truncate_max_batch_size.as_ref());
    }
}

fn set<T: Clone>(place: &mut T, given: Option<&T>) {
    if let Some(given) = given {
        place.clone_from(given);
    }
}
