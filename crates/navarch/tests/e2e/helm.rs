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

/// A definition, an object of it, a job before the installation and a test.
const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gauges.example.com}
spec:
  group: example.com
  names: {plural: gauges, singular: gauge, kind: Gauge}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {unit: {type: string, default: bar}}}}
";
const OBJECT: &str = "apiVersion: example.com/v1
kind: Gauge
metadata: {name: {{ .Release.Name }}}
spec: {}
";
const HOOK: &str = "apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-before
  annotations: {helm.sh/hook: pre-install, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: 'busybox:test', command: ['true']}]
";
const TEST: &str = "apiVersion: v1
kind: Pod
metadata:
  name: {{ .Release.Name }}-test
  annotations: {helm.sh/hook: test}
spec:
  restartPolicy: Never
  containers: [{name: main, image: 'busybox:test', command: [sh, -c, 'echo measured']}]
";

fn chart(files: &[(&str, &str)]) -> tempfile::TempDir {
    let chart = tempfile::tempdir().unwrap();
    for folder in ["templates", "crds"] {
        std::fs::create_dir(chart.path().join(folder)).unwrap();
    }
    for (path, text) in [("Chart.yaml", CHART)].iter().chain(files) {
        std::fs::write(chart.path().join(path), text).unwrap();
    }
    chart
}

#[test]
fn a_chart_brings_its_definitions_hooks_and_tests() {
    let mut cluster = cluster();
    let chart = chart(&[
        ("crds/gauge.yaml", DEFINITION),
        ("templates/gauge.yaml", OBJECT),
        ("templates/before.yaml", HOOK),
        ("templates/test.yaml", TEST),
    ]);
    for (minor, release) in [(tools::OLD, "old"), (tools::NEW, "new")] {
        cluster.use_client(minor);
        cluster.helm(&format!("install {release} {} --wait --timeout 120s", chart.path().display())).unwrap();
        assert_eq!(cluster.get(&format!("gauge {release}")).unwrap()["spec"]["unit"], "bar");
        assert_eq!(cluster.get(&format!("job {release}-before")).unwrap()["status"]["succeeded"], 1);
        let tested = cluster.helm(&format!("test {release} --logs --timeout 120s")).unwrap();
        assert!(tested.contains("Succeeded") && tested.contains("measured"), "{tested}");
        cluster.helm(&format!("uninstall {release} --wait --timeout 120s")).unwrap();
        assert!(cluster.get(&format!("gauge {release}")).is_err());
        // Helm never removes definitions
        cluster.get("customresourcedefinition gauges.example.com").unwrap();
    }
}

#[test]
fn a_chart_is_installed_upgraded_rolled_back_and_removed() {
    let mut cluster = cluster();
    let chart = chart(&[("values.yaml", "replicas: 1\n"), ("templates/all.yaml", TEMPLATE)]);
    let folder = chart.path().display();

    for (minor, release) in [(tools::OLD, "old"), (tools::NEW, "new")] {
        cluster.use_client(minor);
        cluster.helm(&format!("install {release} {folder} --wait --timeout 120s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 1);
        cluster.helm(&format!("upgrade {release} {folder} --set replicas=2 --wait --timeout 120s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 2);
        assert_eq!(cluster.get(&format!("configmap {release}")).unwrap()["data"]["replicas"], "2");
        cluster.helm(&format!("rollback {release} 1 --wait --timeout 120s")).unwrap();
        wait_ready(&cluster, &format!("app={release}"), 1);
        let history = cluster.helm(&format!("history {release}")).unwrap();
        assert!(history.lines().any(|l| l.starts_with('3') && l.contains("deployed")), "{history}");
        assert!(cluster.helm("list").unwrap().contains(release));
        cluster.helm(&format!("uninstall {release} --wait --timeout 120s")).unwrap();
        assert!(cluster.get(&format!("deployment {release}")).is_err());
        assert!(!cluster.helm("list").unwrap().contains(release));
    }
}
