//! The words of the OpenAPI documents, from the documentation inside `k8s-openapi`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::{api, apiextensions_apiserver, kube_aggregator};
use serde_json::{Map, Value};

/// Descriptions by type and field.
pub(super) struct Docs {
    types: Map<String, Value>,
}

impl Docs {
    /// The words of one group's version, or of all.
    pub(super) fn of(group_version: Option<(&str, &str)>) -> Self {
        let mut generator = SchemaGenerator::default();
        generator.subschema_for::<meta::DeleteOptions>();
        generator.subschema_for::<meta::Status>();
        generator.subschema_for::<meta::ListMeta>();
        generator.subschema_for::<meta::ObjectMeta>();
        for (gv, register) in GROUPS {
            if group_version.is_none_or(|wanted| wanted == *gv) {
                register(&mut generator);
            }
        }
        Self { types: generator.take_definitions(false) }
    }

    /// What a type is.
    pub(super) fn of_type(&self, name: &str) -> &str {
        match self.types.get(name).and_then(|t| t["description"].as_str()) {
            Some(words) => words,
            None if name.ends_with("List") => "A list of objects of one kind.",
            None => "",
        }
    }

    /// What a field of a type is.
    pub(super) fn of_field(&self, name: &str, field: &str) -> &str {
        let found = self.types.get(name).and_then(|t| t["properties"].get(field));
        match (found.and_then(|f| f["description"].as_str()), field) {
            (Some(words), _) => words,
            (None, "items") if name.ends_with("List") => "The objects.",
            (None, "metadata") if name.ends_with("List") => "Metadata of the list.",
            (None, "apiVersion") => "The group and version of this object's form.",
            (None, "kind") => "What this object is.",
            (None, _) => "",
        }
    }
}

type Register = fn(&mut SchemaGenerator);

/// What can be reached from the kinds of each group's version.
const GROUPS: &[((&str, &str), Register)] = &[
    (("", "v1"), |g| {
        g.subschema_for::<api::core::v1::Binding>();
        g.subschema_for::<api::core::v1::ComponentStatus>();
        g.subschema_for::<api::core::v1::ConfigMap>();
        g.subschema_for::<api::core::v1::Endpoints>();
        g.subschema_for::<api::core::v1::Event>();
        g.subschema_for::<api::core::v1::LimitRange>();
        g.subschema_for::<api::core::v1::Namespace>();
        g.subschema_for::<api::core::v1::Node>();
        g.subschema_for::<api::core::v1::PersistentVolumeClaim>();
        g.subschema_for::<api::core::v1::PersistentVolume>();
        g.subschema_for::<api::core::v1::Pod>();
        g.subschema_for::<api::policy::v1::Eviction>();
        g.subschema_for::<api::core::v1::PodTemplate>();
        g.subschema_for::<api::core::v1::ReplicationController>();
        g.subschema_for::<api::autoscaling::v1::Scale>();
        g.subschema_for::<api::core::v1::ResourceQuota>();
        g.subschema_for::<api::core::v1::Secret>();
        g.subschema_for::<api::core::v1::ServiceAccount>();
        g.subschema_for::<api::authentication::v1::TokenRequest>();
        g.subschema_for::<api::core::v1::Service>();
    }),
    (("apiregistration.k8s.io", "v1"), |g| {
        g.subschema_for::<kube_aggregator::pkg::apis::apiregistration::v1::APIService>();
    }),
    (("apps", "v1"), |g| {
        g.subschema_for::<api::apps::v1::ControllerRevision>();
        g.subschema_for::<api::apps::v1::DaemonSet>();
        g.subschema_for::<api::apps::v1::Deployment>();
        g.subschema_for::<api::autoscaling::v1::Scale>();
        g.subschema_for::<api::apps::v1::ReplicaSet>();
        g.subschema_for::<api::apps::v1::StatefulSet>();
    }),
    (("events.k8s.io", "v1"), |g| {
        g.subschema_for::<api::events::v1::Event>();
    }),
    (("authentication.k8s.io", "v1"), |g| {
        g.subschema_for::<api::authentication::v1::SelfSubjectReview>();
        g.subschema_for::<api::authentication::v1::TokenReview>();
    }),
    (("authorization.k8s.io", "v1"), |g| {
        g.subschema_for::<api::authorization::v1::LocalSubjectAccessReview>();
        g.subschema_for::<api::authorization::v1::SelfSubjectAccessReview>();
        g.subschema_for::<api::authorization::v1::SelfSubjectRulesReview>();
        g.subschema_for::<api::authorization::v1::SubjectAccessReview>();
    }),
    (("autoscaling", "v2"), |g| {
        g.subschema_for::<api::autoscaling::v2::HorizontalPodAutoscaler>();
    }),
    (("autoscaling", "v1"), |g| {
        g.subschema_for::<api::autoscaling::v1::HorizontalPodAutoscaler>();
    }),
    (("batch", "v1"), |g| {
        g.subschema_for::<api::batch::v1::CronJob>();
        g.subschema_for::<api::batch::v1::Job>();
    }),
    (("certificates.k8s.io", "v1"), |g| {
        g.subschema_for::<api::certificates::v1::CertificateSigningRequest>();
    }),
    (("networking.k8s.io", "v1"), |g| {
        g.subschema_for::<api::networking::v1::IngressClass>();
        g.subschema_for::<api::networking::v1::Ingress>();
        g.subschema_for::<api::networking::v1::IPAddress>();
        g.subschema_for::<api::networking::v1::NetworkPolicy>();
        g.subschema_for::<api::networking::v1::ServiceCIDR>();
    }),
    (("policy", "v1"), |g| {
        g.subschema_for::<api::policy::v1::PodDisruptionBudget>();
    }),
    (("rbac.authorization.k8s.io", "v1"), |g| {
        g.subschema_for::<api::rbac::v1::ClusterRoleBinding>();
        g.subschema_for::<api::rbac::v1::ClusterRole>();
        g.subschema_for::<api::rbac::v1::RoleBinding>();
        g.subschema_for::<api::rbac::v1::Role>();
    }),
    (("storage.k8s.io", "v1"), |g| {
        g.subschema_for::<api::storage::v1::CSIDriver>();
        g.subschema_for::<api::storage::v1::CSINode>();
        g.subschema_for::<api::storage::v1::CSIStorageCapacity>();
        g.subschema_for::<api::storage::v1::StorageClass>();
        g.subschema_for::<api::storage::v1::VolumeAttachment>();
        g.subschema_for::<api::storage::v1::VolumeAttributesClass>();
    }),
    (("admissionregistration.k8s.io", "v1"), |g| {
        g.subschema_for::<api::admissionregistration::v1::MutatingAdmissionPolicy>();
        g.subschema_for::<api::admissionregistration::v1::MutatingAdmissionPolicyBinding>();
        g.subschema_for::<api::admissionregistration::v1::MutatingWebhookConfiguration>();
        g.subschema_for::<api::admissionregistration::v1::ValidatingAdmissionPolicy>();
        g.subschema_for::<api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>();
        g.subschema_for::<api::admissionregistration::v1::ValidatingWebhookConfiguration>();
    }),
    (("apiextensions.k8s.io", "v1"), |g| {
        g.subschema_for::<apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>();
    }),
    (("scheduling.k8s.io", "v1"), |g| {
        g.subschema_for::<api::scheduling::v1::PriorityClass>();
    }),
    (("scheduling.k8s.io", "v1alpha2"), |g| {
        g.subschema_for::<api::scheduling::v1alpha2::PodGroup>();
        g.subschema_for::<api::scheduling::v1alpha2::Workload>();
    }),
    (("storagemigration.k8s.io", "v1beta1"), |g| {
        g.subschema_for::<api::storagemigration::v1beta1::StorageVersionMigration>();
    }),
    (("resource.k8s.io", "v1beta2"), |g| {
        g.subschema_for::<api::resource::v1beta2::DeviceTaintRule>();
    }),
    (("coordination.k8s.io", "v1"), |g| {
        g.subschema_for::<api::coordination::v1::Lease>();
    }),
    (("node.k8s.io", "v1"), |g| {
        g.subschema_for::<api::node::v1::RuntimeClass>();
    }),
    (("discovery.k8s.io", "v1"), |g| {
        g.subschema_for::<api::discovery::v1::EndpointSlice>();
    }),
    (("resource.k8s.io", "v1"), |g| {
        g.subschema_for::<api::resource::v1::DeviceClass>();
        g.subschema_for::<api::resource::v1::ResourceClaim>();
        g.subschema_for::<api::resource::v1::ResourceClaimTemplate>();
        g.subschema_for::<api::resource::v1::ResourceSlice>();
    }),
    (("flowcontrol.apiserver.k8s.io", "v1"), |g| {
        g.subschema_for::<api::flowcontrol::v1::FlowSchema>();
        g.subschema_for::<api::flowcontrol::v1::PriorityLevelConfiguration>();
    }),
];
