//! The keys of nodes whose packets to each other are encrypted: the public half stands on the Node, as an annotation that only
//! the node itself may write.

use client::peers::{KEY_ANNOTATION, NodeView};
use client::{Client, Patch};
use k8s_openapi::api::core::v1::Node;
use network::wireguard::Key;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The key of `node`; `None` where it has none, or something that is no key.
pub(crate) fn of(node: &NodeView) -> Option<Key> {
    let key = node.key.as_ref()?.parse();
    if key.is_err() {
        tracing::warn!(node = &*node.name, "the annotation {KEY_ANNOTATION} holds no key");
    }
    key.ok()
}

/// Keeps `key` on the Node called `own` until `stop`. `client` is the node itself, as far as the API is concerned.
pub async fn publish(
    client: Client,
    own: &str,
    key: Key,
    stop: CancellationToken,
) -> Result<(), client::Error> {
    let nodes = client.caches().peers(&format!("metadata.name={own}"));
    let mut changes = nodes.subscribe();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {KEY_ANNOTATION: key.to_string()}}}));
    loop {
        while changes.try_next().is_some() {}
        // a node that is not registered yet shows up as a change
        let differs = nodes.get("", own).is_some_and(|node| of(&node) != Some(key));
        let failed = if differs { client.patch::<Node>("", own, &patch).await.err() } else { None };
        if let Some(error) = &failed {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "the node's key of WireGuard is not published"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = changes.next() => if change.is_none() {
                return Ok(());
            },
            () = tokio::time::sleep(crate::LAST_RETRY), if failed.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_key_of_its_annotation() {
        let node = |text: &str| NodeView { key: Some(text.into()), ..NodeView::default() };
        let text = "fE/wpxQ6/M6OmF5j4dvbY3FbCEXc3KlBL2QqAYjE0WI=";
        assert_eq!(of(&node(text)).map(|key| key.to_string()).as_deref(), Some(text));
        assert_eq!(of(&node("garbage")), None);
        assert_eq!(of(&NodeView::default()), None);
    }
}
