//! What other servers must know to believe what we say: the `extension-apiserver-authentication` ConfigMap.

use api::meta;
use serde_json::{Value, json};

use crate::object_meta::begin_meta;
use crate::pipeline::ApiServer;
use crate::pki::{FRONT_PROXY, Pki};
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};

const NAME: &str = "extension-apiserver-authentication";
const NAMESPACE: &str = "kube-system";

/// Authorities and header names, as servers behind the aggregation layer read them. Lists are JSON in text.
fn data(pki: &Pki) -> Value {
    json!({
        "client-ca-file": pki.ca_pem(),
        "requestheader-client-ca-file": pki.front_proxy_ca_pem(),
        "requestheader-allowed-names": json!([FRONT_PROXY]).to_string(),
        "requestheader-username-headers": r#"["X-Remote-User"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
    })
}

/// Makes the ConfigMap, or brings it up to date: authorities may have been replaced since the last start.
pub async fn publish(server: &ApiServer, pki: &Pki) -> ApiResult<()> {
    let kind = api::kinds::find("", "v1", "configmaps").ok_or_else(ApiError::no_such_resource)?;
    let target = Target { kind, namespace: NAMESPACE, name: NAME, subresource: "" };
    let data = data(pki);
    if server.registry.cache().get(kind, &kind.key(NAMESPACE, NAME)).is_none() {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": data});
        begin_meta(kind, NAMESPACE, &mut object, jiff::Timestamp::now());
        match server.registry.create(target, object, false).await {
            // another server on the same store was faster
            Err(error) if error.code == 409 => {}
            other => return other.map(drop),
        }
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        if let Some(map) = new.as_object_mut() {
            meta::child_mut(map, "data").extend(data.as_object().cloned().unwrap_or_default());
        }
        Ok(new)
    };
    server.registry.update(target, false, change).await.map(drop)
}
