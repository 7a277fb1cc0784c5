//! Pods whose images lie in a real registry that asks for a password.

use std::io::{Seek, Write};

use testkit::registry::{self, Registry, USER};
use testkit::{Cluster, eventually};

use crate::{cluster_with, describe};

fn waiting(cluster: &Cluster, pod: &str) -> (String, String) {
    let pod = cluster.get(&format!("pod {pod}")).unwrap();
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[test]
fn a_pull_secret_opens_a_private_registry() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("registries.yaml");
    let cluster = cluster_with(vec!["--private-registry".into(), settings.display().to_string()]);
    let options = registry::Options { password: true, net: Some(cluster.net()), tls: None };
    let registry = Registry::start(options).unwrap();
    std::fs::write(&settings, registry.settings(None)).unwrap();
    let archive = format!("docker-archive:{}", testkit::image::busybox().unwrap().display());
    let image = registry.put(&archive, "team/box:1", Some(cluster.net())).unwrap();
    let pod = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
             containers: [{{name: main, image: '{image}', command: [sleep, infinity]}}]\n"
        )
    };
    cluster.apply(&pod("closed", "")).unwrap();
    let (_, message) = eventually("the registry refuses", || match waiting(&cluster, "closed") {
        (reason, message) if reason == "ErrImagePull" => Ok((reason, message)),
        other => Err(other),
    });
    assert!(message.contains("no credentials were given"), "{message}");
    let (_, message) = eventually("then it waits", || match waiting(&cluster, "closed") {
        (reason, message) if reason == "ImagePullBackOff" => Ok((reason, message)),
        other => Err(other),
    });
    let begin = format!("Back-off pulling image {image:?}: ErrImagePull: ");
    assert!(message.starts_with(&begin), "{message}");

    // a wrong password for the team's folder comes before the right one for the whole host: both are tried
    let server = |path: &str| format!("--docker-server={}{path}", registry.host());
    let me = format!("--docker-username={}", USER.0);
    for (name, path, password) in [("wrong", "/team", "wrong"), ("right", "", USER.1)] {
        let password = format!("--docker-password={password}");
        let arguments = ["create", "secret", "docker-registry", name, &server(path), &me, &password];
        cluster.kubectl_args(&arguments).unwrap();
    }
    cluster
        .apply(&pod("own", "  imagePullSecrets: [{name: wrong}, {name: right}, {name: absent}]\n"))
        .unwrap();
    cluster
        .kubectl("wait pod own --for condition=Ready --timeout 120s")
        .unwrap_or_else(|e| panic!("{e}{}", describe(&cluster)));
    let events = cluster.kubectl("get events --field-selector involvedObject.name=own").unwrap();
    assert!(events.contains("Unable to retrieve some image pull secrets (absent)"), "{events}");
    assert!(events.contains("Successfully pulled image"), "{events}");
    assert!(!events.contains(USER.1), "{events}");

    // a service account hands its secrets to its pods
    let patch = r#"{"imagePullSecrets": [{"name": "right"}]}"#;
    cluster.kubectl_args(&["patch", "serviceaccount", "default", "-p", patch]).unwrap();
    cluster.apply(&pod("account", "").replace("command", "imagePullPolicy: Always, command")).unwrap();
    cluster.kubectl("wait pod account --for condition=Ready --timeout 120s").unwrap();
    // and a tag that is not there says so
    cluster.apply(&pod("absent", "").replace("box:1", "box:2")).unwrap();
    let (_, message) = eventually("the tag is unknown", || match waiting(&cluster, "absent") {
        (reason, message) if reason == "ErrImagePull" => Ok((reason, message)),
        other => Err(other),
    });
    assert!(message.contains("manifest unknown"), "{message}");
    cluster.apply(&pod("odd", "").replace("team/box", "Team/box")).unwrap();
    let (_, message) = eventually("a name that is none", || match waiting(&cluster, "odd") {
        (reason, message) if reason == "InvalidImageName" => Ok((reason, message)),
        other => Err(other),
    });
    assert!(message.ends_with("invalid reference format: repository name must be lowercase"), "{message}");
}

#[test]
fn the_image_command_moves_images_between_node_registry_and_archives() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("registries.yaml");
    let cluster = cluster_with(vec!["--private-registry".into(), settings.display().to_string()]);
    let options = registry::Options { password: true, net: Some(cluster.net()), tls: None };
    let registry = Registry::start(options).unwrap();
    std::fs::write(&settings, registry.settings(None)).unwrap();
    let host = registry.host();
    // what is said of the course and what came of it
    let navarch = |line: &str, input: &str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        file.rewind().unwrap();
        let mut command = cluster.navarch_command(&format!("image {line}"));
        let output = command.stdin(file).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        if output.status.success() { Ok(format!("{err}{out}")) } else { Err(err) }
    };
    let why = navarch(&format!("push busybox:test {host}/team/box:1"), "").unwrap_err();
    assert!(why.contains("not authorized") || why.contains("no credentials were given"), "{why}");
    let login = format!("--username {} --password-stdin", USER.0);
    let password = format!("{}\n", USER.1);
    let pushed = navarch(&format!("push busybox:test {host}/team/box:1 {login}"), &password).unwrap();
    assert!(pushed.contains(&format!("pushed {host}/team/box:1@sha256:")), "{pushed}");
    // a file's credentials do as well
    let own = format!(
        "{}configs:\n  \"{host}\": {{auth: {{username: {}, password: {}}}}}\n",
        registry.settings(None),
        USER.0,
        USER.1
    );
    std::fs::write(&settings, own).unwrap();
    let pulled = navarch(&format!("pull {host}/team/box:1"), "").unwrap();
    assert!(pulled.contains("there already") && pulled.contains("pulled "), "{pulled}");
    let archive = folder.path().join("box.tar");
    let export = format!("export {host}/team/box:1 --format docker --output {}", archive.display());
    assert!(navarch(&export, "").unwrap().contains("exported "));
    assert!(navarch(&export, "").unwrap_err().contains("exists"));
    let known = navarch(&format!("inspect {host}/team/box:1"), "").unwrap();
    let known: serde_json::Value = serde_json::from_str(&known).unwrap();
    assert!(known[0]["id"].as_str().unwrap().starts_with("sha256:"), "{known}");
    assert!(navarch("inspect nobodys:1", "").unwrap_err().contains("there is no image nobodys:1"));

    // what a pod uses stays
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: user}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
               containers: [{name: main, image: 'busybox:test', command: [sleep, infinity]}]\n";
    cluster.apply(pod).unwrap();
    cluster.kubectl("wait pod user --for condition=Ready --timeout 120s").unwrap();
    assert!(navarch("prune", "").unwrap().contains("0 images"));
    cluster.kubectl("delete pod user").unwrap();
    eventually("nobody uses it", || match navarch("prune", "") {
        Ok(said) if said.contains("1 images") => Ok(()),
        other => Err(other),
    });
    assert!(!navarch("list", "").unwrap().contains("team/box"));
    assert!(navarch(&format!("import {}", archive.display()), "").unwrap().contains("team/box:1"));
    assert!(navarch(&format!("remove {host}/team/box:1"), "").unwrap().contains("removed"));
    // by digest alone it has no tag
    let digest = pushed.trim().rsplit('@').next().unwrap();
    let name = format!("{host}/team/box@{digest}");
    let pulled = navarch(&format!("pull {name}"), "").unwrap();
    assert!(pulled.contains(" done, ") && pulled.contains(&format!("pulled {name} ")), "{pulled}");
    assert!(navarch("list", "").unwrap().contains(&name));
}
