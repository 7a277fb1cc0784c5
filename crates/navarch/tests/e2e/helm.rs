//! Helm installs, upgrades, rolls back and removes a chart.

use testkit::tools;

use crate::{cluster, wait_ready};

const CHART: &str = "apiVersion: v2\nname: page\nversion: 0.1.0\n";
const TEMPLATE: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'busybox:test', command: [sleep, infinity]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {replicas: {{ .Values.replicas | quote }}}
";

#[test]
fn a_chart_is_installed_upgraded_rolled_back_and_removed() {
    let mut cluster = cluster();
    let chart = tempfile::tempdir().unwrap();
    std::fs::create_dir(chart.path().join("templates")).unwrap();
    std::fs::write(chart.path().join("Chart.yaml"), CHART).unwrap();
    std::fs::write(chart.path().join("values.yaml"), "replicas: 1\n").unwrap();
    std::fs::write(chart.path().join("templates/all.yaml"), TEMPLATE).unwrap();
    let folder = chart.path().display();

    for (minor, release) in [(tools::OLD, "old"), (tools::NEW, "new")] {
        cluster.use_client(minor);
        cluster.helm(&format!("install {release} {folder} --wait --timeout 60s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 1);
        cluster.helm(&format!("upgrade {release} {folder} --set replicas=2 --wait --timeout 60s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 2);
        assert_eq!(cluster.get(&format!("configmap {release}")).unwrap()["data"]["replicas"], "2");
        cluster.helm(&format!("rollback {release} 1 --wait --timeout 60s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 1);
        let history = cluster.helm(&format!("history {release}")).unwrap();
        assert!(history.lines().any(|l| l.starts_with('3') && l.contains("deployed")), "{history}");
        assert!(cluster.helm("list").unwrap().contains(release));
        cluster.helm(&format!("uninstall {release} --wait --timeout 60s")).unwrap();
        assert!(cluster.get(&format!("deployment {release}")).is_err());
        assert!(!cluster.helm("list").unwrap().contains(release));
    }
}
