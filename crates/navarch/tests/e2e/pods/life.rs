//! How containers follow one another, and how pods end.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{Cluster, eventually};

use super::{WAITS, apply, condition, event, pod, shell, status, until};
use crate::{cluster, is_ready};

/// Waits until these lines stand in the book that a pod's containers write.
#[track_caller]
fn lines(book: &Path, expected: &[&str]) {
    eventually(&format!("the book ends with {:?}", expected.last()), || {
        let text = std::fs::read_to_string(book).unwrap_or_default();
        if text.lines().eq(expected.iter().copied()) { Ok(()) } else { Err(text) }
    });
}

#[test]
fn containers_begin_and_end_in_order_and_a_sidecar_outlives_the_main_containers_restart() {
    let cluster = cluster();
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("notes");
    let book = notes.join("book");
    let writes = |name: &str| {
        let end = format!("echo {name} ends >> /notes/book; exit 0");
        json!(["sh", "-c", format!("echo {name} >> /notes/book; trap '{end}' TERM; sleep infinity & wait")])
    };
    let mounts = json!([{"name": "notes", "mountPath": "/notes"}]);
    // it ends when a run of the main container has written its line
    let hook = "until test $(grep -c '^main$' /notes/book) -gt $(grep -c '^hook$' /notes/book); do sleep 0.1; done; echo hook >> /notes/book";
    let spec = json!({
        "terminationGracePeriodSeconds": 300,
        "volumes": [{"name": "notes", "hostPath": {"path": notes, "type": "DirectoryOrCreate"}}],
        "initContainers": [
            {"name": "first", "command": shell("echo first >> /notes/book"), "volumeMounts": mounts},
            {"name": "side", "command": writes("side"), "volumeMounts": mounts, "restartPolicy": "Always",
                "startupProbe": {"exec": {"command": ["test", "-e", "/notes/up"]}, "periodSeconds": 1, "failureThreshold": 1000}},
            {"name": "second", "command": shell("echo second >> /notes/book"), "volumeMounts": mounts}
        ],
        "containers": [
            {"name": "main", "command": writes("main"), "volumeMounts": mounts, "lifecycle": {
                "postStart": {"exec": {"command": shell(hook)}},
                "preStop": {"exec": {"command": shell("echo main prepares >> /notes/book")}}}},
            {"name": "late", "command": shell(&format!("echo late >> /notes/book; {WAITS}")), "volumeMounts": mounts}
        ]
    });
    apply(&cluster, &[pod("order", spec)]);

    // who comes after a sidecar waits for its startup
    let found = until(&cluster, "order", "runs its sidecar", |pod| {
        !status(pod, "side")["state"]["running"].is_null()
    });
    assert_eq!(
        (status(&found, "side")["started"].clone(), condition(&found, "Initialized")),
        (json!(false), "False")
    );
    assert!(!status(&found, "second")["state"]["waiting"].is_null(), "{found}");
    lines(&book, &["first", "side"]);
    std::fs::write(notes.join("up"), "").unwrap();
    let begun = until(&cluster, "order", "is ready", is_ready);
    lines(&book, &["first", "side", "second", "main", "hook", "late"]);

    // the end of the container may take the program that asks for it along
    let _ = cluster.kubectl("exec order -c main -- kill 1");
    let again = until(&cluster, "order", "runs again", |pod| {
        is_ready(pod) && status(pod, "main")["restartCount"] == 1
    });
    for name in ["side", "late"] {
        for key in ["containerID", "restartCount", "state"] {
            assert_eq!(status(&again, name)[key], status(&begun, name)[key], "{name} went on");
        }
    }
    assert_eq!(status(&again, "main")["lastState"]["terminated"]["exitCode"], 0);
    let mut all = vec!["first", "side", "second", "main", "hook", "late", "main ends", "main", "hook"];
    lines(&book, &all);

    cluster.kubectl("delete pod order --timeout=120s").unwrap();
    all.extend(["main prepares", "main ends", "side ends"]);
    lines(&book, &all);
}

#[test]
fn a_pod_that_is_deleted_prepares_by_a_request_or_a_while_first() {
    let cluster = cluster();
    let folder = tempfile::tempdir().unwrap();
    let mounts = json!([{"name": "notes", "mountPath": "/notes"}]);
    let serve =
        "trap 'exit 0' TERM; mkdir /w; touch /w/parting; httpd -f -vv -p 8080 -h /w 2>/notes/log & wait";
    apply(
        &cluster,
        &[pod(
            "polite",
            json!({
                "terminationGracePeriodSeconds": 300,
                "volumes": [{"name": "notes", "hostPath": {"path": folder.path(), "type": "Directory"}}],
                "containers": [
                    {"name": "web", "command": shell(serve), "volumeMounts": mounts, "ports": [{"name": "web", "containerPort": 8080}],
                        "readinessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1},
                        "lifecycle": {"preStop": {"httpGet": {"path": "/parting", "port": "web"}}}},
                    {"name": "slow", "command": shell(WAITS), "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}
                ]
            }),
        )],
    );
    until(&cluster, "polite", "is ready", is_ready);
    let begun = Instant::now();
    cluster.kubectl("delete pod polite --timeout=120s").unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("/parting"), "{log}");
}

/// How a pod of these containers ends that runs once.
fn once(name: &str, containers: Value) -> Value {
    pod(name, json!({"restartPolicy": "Never", "containers": containers}))
}

#[test]
fn ends_are_told_with_reason_code_and_last_words_and_pods_end_as_their_containers_policies_say() {
    let cluster = cluster();
    let scratch = json!([{"name": "d", "mountPath": "/d"}]);
    let volumes = json!([{"name": "d", "emptyDir": {}}]);
    let main = |script: &str, more: Value| {
        let mut main = json!({"name": "main", "command": shell(script)});
        main.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        json!([main])
    };
    let rules = |action: &str| {
        let codes = json!({"operator": "In", "values": [42]});
        json!({"restartPolicy": "Never", "volumeMounts": scratch, "restartPolicyRules": [{"action": action, "exitCodes": codes}]})
    };
    let mut anew = main(
        "until test $(wc -l < /d/others) -eq $(wc -l < /d/count); do sleep 0.1; done; test $(wc -l < /d/count) -eq 2 || exit 42",
        rules("RestartAllContainers"),
    );
    anew.as_array_mut().unwrap().push(json!({"name": "other", "command": shell(&format!("echo other >> /d/others; {WAITS}")), "volumeMounts": scratch}));
    let log = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let little = json!({"resources": {"limits": {"memory": "24Mi"}}});
    apply(
        &cluster,
        &[
            once("words", main("echo bye > /dev/termination-log; exit 3", json!({}))),
            once("fallback", main("echo begin; echo boom >&2; exit 4", log.clone())),
            once("silent", main("echo nothing to tell", log)),
            once("path", main("echo done > /tmp/last", json!({"terminationMessagePath": "/tmp/last"}))),
            once("greedy", main("x=0123456789abcdef; while true; do x=$x$x; done", little)),
            once("missing", json!([{"name": "main", "command": ["/no/such/program"]}])),
            pod(
                "killed",
                json!({"restartPolicy": "Never", "shareProcessNamespace": true, "containers": main("kill -9 $$$$", json!({}))}),
            ),
            pod(
                "late",
                json!({"restartPolicy": "Always", "activeDeadlineSeconds": 1, "containers": main(WAITS, json!({}))}),
            ),
            pod(
                "job",
                json!({"restartPolicy": "OnFailure", "volumes": volumes, "terminationGracePeriodSeconds": 300,
            "initContainers": [{"name": "side", "command": shell("trap 'echo parting; exit 0' TERM; sleep infinity & wait"), "restartPolicy": "Always"}],
            "containers": main("test -e /d/tried || { touch /d/tried; exit 1; }", json!({"volumeMounts": scratch}))}),
            ),
            pod(
                "rules",
                json!({"restartPolicy": "Never", "volumes": volumes,
            "containers": main("test -e /d/tried || { touch /d/tried; exit 42; }; exit 7", rules("Restart"))}),
            ),
            pod(
                "anew",
                json!({"restartPolicy": "Never", "volumes": volumes, "containers": anew,
            "initContainers": [{"name": "init", "command": shell("echo run >> /d/count"), "volumeMounts": scratch}]}),
            ),
            pod(
                "crash",
                json!({"restartPolicy": "Always", "volumes": volumes,
            "containers": main("echo run >> /d/runs; echo this is run $(wc -l < /d/runs); exit 5", json!({"volumeMounts": scratch}))}),
            ),
            once(
                "absent",
                json!([{"name": "main", "image": "nowhere.example/none:1", "imagePullPolicy": "Never"}]),
            ),
            once("unnamed", json!([{"name": "main", "image": "nope/UPPER"}])),
            once("rooted", main("true", json!({"securityContext": {"runAsNonRoot": true}}))),
        ],
    );
    for (name, code, reason, message, phase) in [
        ("words", 3, "Error", json!("bye\n"), "Failed"),
        ("fallback", 4, "Error", json!("begin\nboom\n"), "Failed"),
        ("silent", 0, "Completed", Value::Null, "Succeeded"),
        ("path", 0, "Completed", json!("done\n"), "Succeeded"),
        ("greedy", 137, "OOMKilled", Value::Null, "Failed"),
        ("killed", 137, "Error", Value::Null, "Failed"),
    ] {
        let found = until(&cluster, name, "is over", |pod| pod["status"]["phase"] == phase);
        let end = &status(&found, "main")["state"]["terminated"];
        assert_eq!(
            (&end["exitCode"], &end["reason"], &end["message"]),
            (&json!(code), &json!(reason), &message),
            "{name}: {end}"
        );
        assert!(end["startedAt"].is_string() && end["finishedAt"].is_string(), "{name}: {end}");
        assert_eq!(status(&found, "main")["restartCount"], 0, "{name}");
    }
    let found = until(&cluster, "missing", "is over", |pod| pod["status"]["phase"] == "Failed");
    let end = &status(&found, "main")["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(128), &json!("StartError")), "{end}");
    assert!(end["message"].as_str().is_some_and(|text| text.contains("/no/such/program")), "{end}");

    let found = until(&cluster, "late", "is over", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(found["status"]["reason"], "DeadlineExceeded");
    event(
        &cluster,
        "late",
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    );

    let found = until(&cluster, "job", "is over", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(status(&found, "main")["restartCount"], 1, "{found}");
    assert_eq!(
        status(&found, "side")["restartCount"],
        0,
        "a sidecar does not hold up the end, nor is it killed: {found}"
    );
    assert_eq!(status(&found, "side")["state"]["terminated"]["exitCode"], 0, "{found}");
    assert_eq!(cluster.kubectl("logs job -c side").unwrap(), "parting\n");

    let found = until(&cluster, "rules", "is over", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(
        (&status(&found, "main")["restartCount"], &status(&found, "main")["state"]["terminated"]["exitCode"]),
        (&json!(1), &json!(7))
    );

    // the other container runs on by itself: it is asked to end with the first, and begins anew
    let found = until(&cluster, "anew", "has begun anew", |pod| {
        status(pod, "main")["state"]["terminated"]["exitCode"] == 0
    });
    for name in ["init", "main", "other"] {
        assert_eq!(status(&found, name)["restartCount"], 1, "{name}: {found}");
    }
    assert_eq!(said_by(&cluster, "anew", "other", "cat /d/count /d/others"), "run\nrun\nother\nother\n");

    for (name, reason, message) in [
        (
            "absent",
            "ErrImageNeverPull",
            "Container image \"nowhere.example/none:1\" is not present with pull policy of Never",
        ),
        ("unnamed", "InvalidImageName", "Failed to apply default image tag \"nope/UPPER\""),
        ("rooted", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
    ] {
        let found = until(&cluster, name, &format!("waits: {reason}"), |pod| {
            status(pod, "main")["state"]["waiting"]["reason"] == reason
        });
        let told =
            status(&found, "main")["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains(message), "{name}: {told}");
    }
    crashed(&cluster);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

fn said_by(cluster: &Cluster, pod: &str, container: &str, script: &str) -> String {
    cluster.kubectl_args(&["exec", pod, "-c", container, "--", "sh", "-c", script]).unwrap()
}

/// The pod `crash` has ended three times: it waits, and what it said is kept.
fn crashed(cluster: &Cluster) {
    let found = until(cluster, "crash", "has ended three times", |pod| {
        let main = status(pod, "main");
        main["restartCount"].as_u64() >= Some(2) && main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let last = &status(&found, "main")["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(5), &json!("Error")));
    assert_eq!((found["status"]["phase"].as_str(), condition(&found, "Ready")), (Some("Running"), "False"));
    event(cluster, "crash", "BackOff", "Back-off restarting failed container main in pod crash_default(");
    // it may begin anew at any time, and what is kept moves on
    eventually("the logs of the last three runs are there", || {
        let pod = cluster.get("pod crash").map_err(|error| error.to_string())?;
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let folder = cluster.data_dir().join("logs/pods").join(format!("default_crash_{uid}/main"));
        let newest = status(&pod, "main")["restartCount"].as_u64().unwrap();
        for run in newest - 2..=newest {
            let file = folder.join(format!("{run}.log"));
            let text =
                std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            if !text.ends_with(&format!("this is run {}\n", run + 1)) {
                return Err(format!("{}: {text}", file.display()));
            }
        }
        Ok(())
    });
    // of a container that waits the last run is the one before, as of one that runs
    let log = cluster.kubectl("logs crash --previous").unwrap();
    assert!(log.starts_with("this is run "), "{log}");
}

#[test]
fn a_debugger_sees_the_pods_processes_and_another_the_nodes() {
    let cluster = cluster();
    let main = json!([{"name": "main", "command": shell(&format!("echo secret > /tmp/own; {WAITS}"))}]);
    apply(
        &cluster,
        &[
            pod("plain", json!({"containers": main.clone()})),
            pod("shared", json!({"shareProcessNamespace": true, "containers": main})),
        ],
    );
    for name in ["plain", "shared"] {
        until(&cluster, name, "is ready", is_ready);
    }
    let debug = |pod: &str, name: &str, target: &str, script: &str| {
        let mut line = vec!["debug", pod, "--image=busybox:test", "-c", name];
        line.extend(Some(target).filter(|target| !target.is_empty()));
        line.extend(["--", "sh", "-c", script]);
        cluster.kubectl_args(&line).unwrap();
        let found = until(&cluster, pod, &format!("was debugged by {name}"), |pod| {
            !status(pod, name)["state"]["terminated"].is_null()
        });
        assert_eq!(status(&found, name)["state"]["terminated"]["exitCode"], 0, "{found}");
        assert_eq!(status(&found, "main")["restartCount"], 0);
        cluster.kubectl_args(&["logs", pod, "-c", name]).unwrap()
    };
    let look = "cat /proc/1/cmdline | tr '\\0' ' '; echo; cat /proc/1/root/tmp/own";
    assert!(debug("plain", "aimed", "--target=main", look).ends_with("secret\n"));
    let own =
        debug("plain", "alone", "", "cat /proc/1/cmdline | tr '\\0' ' '; test -e /tmp/own || echo alone");
    assert!(own.starts_with("sh -c cat ") && own.ends_with("alone\n"), "{own}");
    let all = debug(
        "shared",
        "beside",
        "",
        "for p in /proc/[0-9]*; do cat $p/root/tmp/own; done 2>/dev/null; echo; echo pid $$$$",
    );
    assert!(all.starts_with("secret\n") && !all.ends_with("pid 1\n"), "{all}");

    let marker = cluster.data_dir().join("of-the-node");
    std::fs::write(&marker, "node's own\n").unwrap();
    let look = format!("cat /host{}; readlink /proc/self/ns/pid", marker.display());
    let line =
        ["debug", "node/node-1", "--image=busybox:test", "--profile=sysadmin", "--", "sh", "-c", &look];
    let told = cluster.kubectl_args(&line).unwrap();
    let name =
        told.split_whitespace().find(|word| word.starts_with("node-debugger-")).expect("its name").to_owned();
    until(&cluster, &name, "is over", |pod| pod["status"]["phase"] == "Succeeded");
    let log = cluster.kubectl(&format!("logs {name}")).unwrap();
    let pids = std::fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    assert!(log.starts_with("node's own\n") && log.contains(&pids), "{log}");

    // somebody who runs a program once, with its input and its output
    let line = "run once --image busybox:test --restart Never --rm -i --quiet -- tr a-z A-Z";
    let out = cluster.kubectl_with(line, "through and through\n").unwrap();
    assert_eq!(out, "THROUGH AND THROUGH\n");
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}
