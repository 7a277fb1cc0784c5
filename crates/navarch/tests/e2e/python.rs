//! The official Python client, from PyPI, unchanged.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use testkit::{cache_dir, run};

use crate::cluster;

/// The client's version that goes with v1.36.
const CLIENT: &str = "kubernetes==36.*";

const STORY: &str = r#"
import kubernetes as k, sys
from kubernetes.stream import stream
k.config.load_kube_config()
core, apps, custom = k.client.CoreV1Api(), k.client.AppsV1Api(), k.client.CustomObjectsApi()
meta = k.client.V1ObjectMeta

# typed objects, watches, selectors
core.create_namespaced_config_map("default", k.client.V1ConfigMap(metadata=meta(name="a", labels={"x": "1"}), data={"k": "v"}))
core.patch_namespaced_config_map("a", "default", {"data": {"k": "w", "l": "2"}})
assert core.read_namespaced_config_map("a", "default").data == {"k": "w", "l": "2"}
assert [m.metadata.name for m in core.list_namespaced_config_map("default", label_selector="x in (1,2)").items] == ["a"]
try:
    core.create_namespaced_config_map("default", k.client.V1ConfigMap(metadata=meta(name="A!")))
    sys.exit("a bad name was taken")
except k.client.ApiException as e:
    assert e.status == 422 and "metadata.name" in e.body, e.body
version = core.list_namespaced_config_map("default").metadata.resource_version
core.delete_namespaced_config_map("a", "default")
for event in k.watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=20):
    if event["type"] == "DELETED" and event["object"].metadata.name == "a":
        break
else:
    sys.exit("no event of the deletion")

# a pod, its log, a command in it
pod = k.client.V1Pod(metadata=meta(name="p"), spec=k.client.V1PodSpec(termination_grace_period_seconds=0, containers=[
    k.client.V1Container(name="main", image="busybox:test", command=["sh", "-c", "echo hello; sleep 1000"])]))
core.create_namespaced_pod("default", pod)
for event in k.watch.Watch().stream(core.list_namespaced_pod, "default", field_selector="metadata.name=p", timeout_seconds=60):
    if event["object"].status.phase == "Running":
        break
else:
    sys.exit("the pod does not run")
for line in k.watch.Watch().stream(core.read_namespaced_pod_log, "p", "default"):
    assert line == "hello", repr(line)
    break
out = stream(core.connect_get_namespaced_pod_exec, "p", "default", command=["echo", "from inside"], stdout=True, stderr=True, stdin=False, tty=False)
assert out == "from inside\n", repr(out)

# the dynamic client finds resources by discovery; server-side apply
dynamic = k.dynamic.DynamicClient(k.client.ApiClient())
maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}, "data": {"k": "1"}}
dynamic.server_side_apply(maps, body=body, namespace="default", field_manager="story")
assert maps.get(name="d", namespace="default").data.k == "1"
assert k.client.VersionApi().get_code().minor == "36"
print("told")
"#;

/// A folder with the client and all it needs, fetched the first time.
fn library() -> anyhow::Result<PathBuf> {
    let folder = cache_dir().join("python-kubernetes-36");
    if !folder.join("kubernetes").is_dir() {
        let fetched = tempfile::Builder::new().prefix("fetch.").tempdir_in(cache_dir())?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        run(pip.arg(fetched.path()).arg(CLIENT)).context("cannot get the Python client")?;
        // whoever is first wins
        if std::fs::rename(fetched.path(), &folder).is_ok() {
            let _ = fetched.keep();
        }
    }
    Ok(folder)
}

#[test]
fn the_python_client_works_unchanged() {
    let library = library().unwrap();
    let cluster = cluster();
    let out =
        run(cluster.command("python3").unwrap().env("PYTHONPATH", library).args(["-c", STORY])).unwrap();
    assert_eq!(out, "told\n");
}
