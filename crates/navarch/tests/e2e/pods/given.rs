//! What a pod's containers are given: variables, files, names.

use std::os::unix::net::UnixListener;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use testkit::eventually;

use super::{WAITS, apply, event, pod, said, shell, status, until};
use crate::{cluster, is_ready};

/// A variable's source in a field of the pod.
fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn amount(name: &str, resource: &str, divisor: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}})
}

fn objects() -> Vec<Value> {
    let meta = |name: &str| json!({"name": name});
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("notes"), "data": {"note": "one", "other": "two", "gone": ""}, "binaryData": {"bytes": "AAEC"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("keys"), "stringData": {"key": "s3cret"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("some-web"), "spec": {
            "clusterIP": "10.96.0.77", "ports": [{"name": "http", "port": 80}, {"name": "more", "port": 81, "protocol": "UDP"}]}}),
    ]
}

#[test]
fn variables_come_from_everywhere_and_name_one_another() {
    let cluster = cluster();
    let mut all = objects();
    let map = |name: &str, key: &str, optional: bool| json!({"name": name, "key": key, "optional": optional});
    let variables = json!([
        {"name": "PLAIN", "value": "a b"},
        {"name": "JOINED", "value": "$(PLAIN)-$(NAME)-$(SOME_WEB_SERVICE_HOST)"},
        field("NAME", "metadata.name"),
        {"name": "AFTER", "value": "$(NAME) $$(NAME) $(UNKNOWN)"},
        field("SPACE", "metadata.namespace"), field("UID", "metadata.uid"), field("LABEL", "metadata.labels['app']"),
        field("NOTE", "metadata.annotations['example.com/note']"), field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"), field("IP", "status.podIP"), field("IPS", "status.podIPs"),
        field("HOST_IP", "status.hostIP"),
        amount("CPU", "limits.cpu", "1m"), amount("MEMORY", "limits.memory", "1Mi"), amount("ASKED", "requests.memory", "1"),
        {"name": "KEY", "valueFrom": {"secretKeyRef": map("keys", "key", false)}},
        {"name": "MAP", "valueFrom": {"configMapKeyRef": map("notes", "note", false)}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": map("nosuch", "note", true)}},
        {"name": "FILED", "valueFrom": {"fileKeyRef": {"volumeName": "made", "path": "sub/env", "key": "COLOUR"}}},
        {"name": "two", "value": "its own"}
    ]);
    let mut whole = pod(
        "env",
        json!({
            "volumes": [{"name": "made", "emptyDir": {}}],
            "initContainers": [{"name": "init", "command": shell("mkdir /made/sub; echo \"COLOUR='dark red'\" > /made/sub/env"),
                "volumeMounts": [{"name": "made", "mountPath": "/made"}]}],
            "containers": [{"name": "main", "command": shell(WAITS), "env": variables,
                "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}},
                "envFrom": [{"prefix": "of_", "configMapRef": {"name": "notes"}}, {"secretRef": {"name": "keys"}},
                    {"configMapRef": {"name": "nosuch", "optional": true}}]}],
        }),
    );
    whole["metadata"]["labels"] = json!({"app": "env"});
    whole["metadata"]["annotations"] = json!({"example.com/note": "it's noted"});
    let word = json!({"name": "main", "env": [{"name": "WORD", "value": "hello"}],
        "command": ["echo", "$(WORD)"], "args": ["$$(WORD)", "$(NONE)"]});
    let bare = json!({"name": "main", "command": ["env"]});
    all.extend([
        whole,
        pod("words", json!({"restartPolicy": "Never", "containers": [word]})),
        pod("bare", json!({"restartPolicy": "Never", "enableServiceLinks": false, "containers": [bare]})),
    ]);
    // variables of services are of those that are there first
    apply(&cluster, &all[..3]);
    apply(&cluster, &all[3..]);
    let found = until(&cluster, "env", "is ready", is_ready);
    let text = said(&cluster, "env", "tr '\\0' '\\n' < /proc/1/environ");
    let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    let status = |name: &str| found["status"][name].as_str().unwrap().to_owned();
    for line in [
        "PLAIN=a b",
        "JOINED=a b-$(NAME)-10.96.0.77",
        "NAME=env",
        "AFTER=env $(NAME) $(UNKNOWN)",
        "SPACE=default",
        "LABEL=env",
        "NOTE=it's noted",
        "NODE=node-1",
        "ACCOUNT=default",
        "CPU=1500",
        "MEMORY=64",
        "ASKED=33554432",
        "KEY=s3cret",
        "MAP=one",
        "FILED=dark red",
        "two=its own",
        "of_note=one",
        "of_other=two",
        "key=s3cret",
        "SOME_WEB_SERVICE_HOST=10.96.0.77",
        "SOME_WEB_SERVICE_PORT=80",
        "SOME_WEB_SERVICE_PORT_HTTP=80",
        "SOME_WEB_PORT_81_UDP=udp://10.96.0.77:81",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "HOSTNAME=env",
    ] {
        has(line);
    }
    has(&format!("UID={}", found["metadata"]["uid"].as_str().unwrap()));
    for (name, value) in [("IP", "podIP"), ("IPS", "podIP"), ("HOST_IP", "hostIP")] {
        has(&format!("{name}={}", status(value)));
    }
    assert!(!text.contains("NONE=") && !text.contains("of_bytes"), "{text}");

    for name in ["words", "bare"] {
        until(&cluster, name, "is over", |pod| pod["status"]["phase"] == "Succeeded");
    }
    assert_eq!(cluster.kubectl("logs words").unwrap(), "hello $(WORD) $(NONE)\n");
    let text = cluster.kubectl("logs bare").unwrap();
    assert!(text.contains("KUBERNETES_SERVICE_HOST=") && !text.contains("SOME_WEB"), "{text}");
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn volumes_hold_what_they_are_of_and_follow_it() {
    let cluster = cluster();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("there")).unwrap();
    std::fs::write(at("there/file"), "of the node\n").unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let host = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": at(path), "type": kind}});
    let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
    let limit = json!({"path": "limit", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}});
    let volumes = json!([
        {"name": "map", "configMap": {"name": "notes", "defaultMode": 0o440, "items": [{"key": "note", "path": "deep/note"}, {"key": "bytes", "path": "bytes", "mode": 0o400}]}},
        {"name": "whole", "configMap": {"name": "notes"}},
        {"name": "none", "configMap": {"name": "nosuch", "optional": true}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {"name": "about", "downwardAPI": {"items": [labels, limit]}},
        {"name": "all", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}},
            {"configMap": {"name": "notes", "items": [{"key": "other", "path": "from/map"}]}},
            {"secret": {"name": "keys", "items": [{"key": "key", "path": "from/secret"}]}},
            {"downwardAPI": {"items": [{"path": "from/name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
        {"name": "disk", "emptyDir": {}},
        host("made", "made/below", "DirectoryOrCreate"), host("folder", "there", "Directory"),
        host("file", "there/file", "File"), host("fresh", "fresh", "FileOrCreate"), host("socket", "socket", "Socket")
    ]);
    let names = [
        "map", "whole", "none", "keys", "about", "all", "memory", "disk", "made", "folder", "file", "fresh",
        "socket",
    ];
    let mut mounts: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
    mounts.extend([
        json!({"name": "whole", "mountPath": "/alone", "subPath": "note"}),
        json!({"name": "disk", "mountPath": "/of/env", "subPathExpr": "$(WHO)/sub"}),
        json!({"name": "disk", "mountPath": "/sealed", "readOnly": true}),
    ]);
    let main = json!({"name": "main", "command": shell(WAITS), "volumeMounts": mounts, "env": [field("WHO", "metadata.name")],
        "resources": {"limits": {"memory": "64Mi"}}});
    let mut whole = pod("volumes", json!({"volumes": volumes, "containers": [main]}));
    whole["metadata"]["labels"] = json!({"app": "volumes"});
    let wrong = |name: &str, path: &str, kind: &str| {
        let main = json!({"name": "main", "command": shell(WAITS), "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        pod(name, json!({"volumes": [host("v", path, kind)], "containers": [main]}))
    };
    let waits =
        json!({"name": "main", "command": shell(WAITS), "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let early = pod(
        "early",
        json!({"volumes": [{"name": "v", "secret": {"secretName": "later"}}], "containers": [waits]}),
    );
    apply(&cluster, &objects());
    apply(
        &cluster,
        &[whole, wrong("absent", "nosuch", "Directory"), wrong("folder", "there", "File"), early],
    );
    until(&cluster, "volumes", "is ready", is_ready);
    let seen = |script: &str| said(&cluster, "volumes", script);
    assert_eq!(
        seen("cd /v; cat map/deep/note whole/note whole/other keys/key all/from/*; wc -c < map/bytes"),
        "oneonetwos3crettwovolumess3cret3\n"
    );
    assert_eq!(
        seen("stat -L -c %a /v/map/deep/note /v/map/bytes /v/keys/key /v/whole/note"),
        "440\n400\n400\n644\n"
    );
    assert_eq!(
        seen("cat /v/about/labels; echo; cat /v/about/limit; ls /v/none | wc -l"),
        "app=\"volumes\"\n640\n"
    );
    let token = seen("cat /v/all/token");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(
        (&claims["aud"], &claims["kubernetes.io"]["pod"]["name"]),
        (&json!(["vault"]), &json!("volumes"))
    );
    assert_eq!(
        seen(
            "grep -c ' /v/memory tmpfs ' /proc/mounts; dd if=/dev/zero of=/v/memory/x bs=1M count=8 2>/dev/null; stat -c %s /v/memory/x"
        ),
        "1\n4194304\n"
    );
    assert_eq!(
        seen(
            "echo x > /v/disk/x; cat /sealed/x; echo y 2>/dev/null > /sealed/y || echo sealed; echo z > /of/env/z; cat /v/disk/volumes/sub/z"
        ),
        "x\nsealed\nz\n"
    );
    assert_eq!(
        seen(
            "cat /v/folder/file /v/file; echo in > /v/made/in; echo more > /v/fresh; test -S /v/socket && echo socket"
        ),
        "of the node\nof the node\nsocket\n"
    );
    assert_eq!(
        (
            std::fs::read_to_string(at("made/below/in")).unwrap(),
            std::fs::read_to_string(at("fresh")).unwrap()
        ),
        ("in\n".to_owned(), "more\n".to_owned())
    );
    assert_eq!(
        seen(
            "for v in map keys about all; do echo x 2>/dev/null > /v/$v/x && echo written to $v; done; echo"
        ),
        "\n"
    );
    event(&cluster, "absent", "FailedMount", "hostPath type check failed");
    event(&cluster, "folder", "FailedMount", "is not a file");
    event(&cluster, "early", "FailedMount", "secret \"later\" not found");
    cluster.kubectl("create secret generic later --from-literal a=b").unwrap();
    until(&cluster, "early", "is ready", is_ready);

    // all files of a volume change at once, by its link; a part that is mounted by itself stays as it was
    let before = seen("readlink /v/whole/..data");
    let change = r#"{"data":{"note":"new","gone":null,"third":"3"}}"#;
    cluster.kubectl_args(&["patch", "configmap", "notes", "-p", change]).unwrap();
    cluster.kubectl_args(&["patch", "secret", "keys", "-p", r#"{"stringData":{"key":"turned"}}"#]).unwrap();
    cluster.kubectl("label pod volumes more=yes").unwrap();
    let changed = "cd /v; cat map/deep/note whole/note whole/other whole/third keys/key all/from/secret; grep more about/labels; ls whole";
    eventually("the volumes follow", || {
        let text = cluster
            .kubectl_args(&["exec", "volumes", "--", "sh", "-c", changed])
            .map_err(|error| error.to_string())?;
        if text == "newnewtwo3turnedturnedmore=\"yes\"\nbytes\nnote\nother\nthird\n" {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert_ne!(seen("readlink /v/whole/..data"), before);
    assert_eq!(seen("cat /alone"), "one");
    assert_eq!(cluster.get("pod volumes").unwrap()["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
    assert_eq!(
        std::fs::read_to_string(at("there/file")).unwrap(),
        "of the node\n",
        "what is the node's stays"
    );
}

#[test]
fn a_part_of_a_volume_is_never_outside_of_it() {
    let cluster = cluster();
    let makes = "ln -s / /d/root; ln -s /etc /d/etc; ln -s ../../../../../../../../../../etc /d/up; mkdir /d/inside; echo in > /d/inside/file; ln -s inside /d/link";
    let whole = json!({"name": "d", "mountPath": "/d"});
    let part = |path: &str| {
        let mount = json!({"name": "d", "mountPath": "/part", "subPath": path});
        let init = json!({"name": "init", "command": shell(makes), "volumeMounts": [whole]});
        let main = json!({"name": "main", "command": shell(WAITS), "volumeMounts": [mount]});
        json!({"volumes": [{"name": "d", "emptyDir": {}}], "initContainers": [init], "containers": [main]})
    };
    let all =
        [("link", "link"), ("root", "root"), ("absolute", "etc"), ("relative", "up"), ("below", "root/etc")];
    apply(&cluster, &all.map(|(name, path)| pod(name, part(path))));
    // whether such a part is refused or is the volume's own, the node's files are not in it
    for (name, _) in all {
        let found = until(&cluster, name, "is decided", |pod| {
            is_ready(pod) || status(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
        if is_ready(&found) {
            let seen = said(
                &cluster,
                name,
                "ls -a /part; test -e /part/passwd -o -e /part/etc/passwd -o -e /part/proc && echo escaped; echo",
            );
            assert!(!seen.contains("escaped"), "{name}: {seen}");
        } else {
            assert_ne!(name, "link", "{found}");
        }
    }
    assert_eq!(said(&cluster, "link", "cat /part/file"), "in\n");
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn a_pod_has_the_names_hosts_and_resolvers_it_asks_for() {
    let cluster = cluster();
    let main = json!([{"name": "main", "command": shell(WAITS)}]);
    let with = |name: &str, more: Value| {
        let mut spec = json!({"containers": main});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod(name, spec)
    };
    apply(
        &cluster,
        &[
            with("plain", json!({})),
            with(
                "named",
                json!({"hostname": "one", "subdomain": "group", "hostAliases": [{"ip": "192.0.2.77", "hostnames": ["first.example", "second.example"]}]}),
            ),
            with("whole", json!({"hostname": "two", "subdomain": "group", "setHostnameAsFQDN": true})),
            with("over", json!({"hostnameOverride": "any.name.example"})),
            with(
                "own",
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.example", "b.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            ),
            with(
                "more",
                json!({"dnsConfig": {"searches": ["c.example"], "options": [{"name": "ndots", "value": "3"}]}}),
            ),
        ],
    );
    for name in ["plain", "named", "whole", "over", "own", "more"] {
        until(&cluster, name, "is ready", is_ready);
    }
    let seen = |name: &str, script: &str| said(&cluster, name, script);
    let address = |name: &str| {
        cluster.get(&format!("pod {name}")).unwrap()["status"]["podIP"].as_str().unwrap().to_owned()
    };
    assert_eq!(seen("plain", "hostname; cat /etc/hostname"), "plain\nplain\n");
    assert_eq!(seen("named", "hostname"), "one\n");
    let hosts = seen("named", "cat /etc/hosts");
    let own = format!("{}\tone.group.default.svc.cluster.local\tone", address("named"));
    for line in [own.as_str(), "192.0.2.77\tfirst.example\tsecond.example"] {
        assert!(hosts.lines().any(|found| found == line), "{line}\n{hosts}");
    }
    assert_eq!(seen("whole", "hostname"), "two.group.default.svc.cluster.local\n");
    assert_eq!(seen("over", "hostname"), "any.name.example\n");
    assert_eq!(
        seen("own", "cat /etc/resolv.conf"),
        "search a.example b.example\nnameserver 192.0.2.53\noptions ndots:2 edns0\n"
    );
    let resolvers = seen("more", "cat /etc/resolv.conf");
    assert!(
        resolvers.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local "),
        "{resolvers}"
    );
    assert!(
        resolvers.contains(" c.example\nnameserver 10.96.0.10\n") && resolvers.contains("options ndots:3"),
        "{resolvers}"
    );
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}
