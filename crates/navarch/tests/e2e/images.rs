//! Pods whose images lie in a real registry that asks for a password.

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
        .kubectl("wait pod own --for condition=Ready --timeout 60s")
        .unwrap_or_else(|e| panic!("{e}{}", describe(&cluster)));
    let events = cluster.kubectl("get events --field-selector involvedObject.name=own").unwrap();
    assert!(events.contains("Unable to retrieve some image pull secrets (absent)"), "{events}");
    assert!(events.contains("Successfully pulled image"), "{events}");
    assert!(!events.contains(USER.1), "{events}");

    // a service account hands its secrets to its pods
    let patch = r#"{"imagePullSecrets": [{"name": "right"}]}"#;
    cluster.kubectl_args(&["patch", "serviceaccount", "default", "-p", patch]).unwrap();
    cluster.apply(&pod("account", "").replace("command", "imagePullPolicy: Always, command")).unwrap();
    cluster.kubectl("wait pod account --for condition=Ready --timeout 60s").unwrap();
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
