//! Recorded answers of the reference, replayed against our API server.
//!
//! `oracle-floor.toml` holds per area how many cases pass at least. It only rises: a test run that passes more
//! says so, and `NAVARCH_BLESS=1` writes the new floor. An area that is not in the file is not replayed: write
//! `area = 0` when the first of it exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testkit::Cluster;

use crate::NAVARCH;

#[test]
fn the_reference_s_answers_do_not_get_fewer() {
    let Some(oracle) = oracle_folder() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI has ../shared/oracle; set NAVARCH_ORACLE where it is elsewhere"
        );
        println!("skipped: no recorded answers; set NAVARCH_ORACLE to the folder with replay.py");
        return;
    };
    let cluster = Cluster::api_only(NAVARCH).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let (server, cert, key) = credential(&cluster, folder.path());
    let mut replay = Command::new("python3");
    replay.arg(oracle.join("replay.py")).args(["--server", &server]).arg("--report").arg(&report);
    // cases that fail mostly wait: more of them at a time cost little
    replay.args(["--threads", "16"]);
    replay.arg("--cert").arg(cert).arg("--key").arg(key);
    let floor = read_floor();
    replay.args(floor.keys().flat_map(|area| ["--area", area]));
    cluster.net().enter(&mut replay);
    let output = replay.output().expect("python3 runs");
    let text = std::fs::read_to_string(&report)
        .unwrap_or_else(|e| panic!("no report ({e}): {}", String::from_utf8_lossy(&output.stderr)));
    let report: Value = serde_json::from_str(&text).unwrap();
    if let Some(keep) = std::env::var_os("NAVARCH_ORACLE_REPORT") {
        std::fs::write(keep, &text).unwrap();
    }

    let passed: BTreeMap<String, u64> = report["areas"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(area, counts)| (area.clone(), counts["passed"].as_u64().unwrap()))
        .collect();
    let fell: Vec<String> = floor
        .iter()
        .filter_map(|(area, least)| {
            let now = passed.get(area).copied().unwrap_or(0);
            (now < *least).then(|| format!("{area}: {now} cases pass, the floor is {least}"))
        })
        .collect();
    let rose = passed.iter().any(|(area, now)| floor.get(area).is_none_or(|least| now > least));
    println!("oracle: {} of {} cases pass", report["passed"], report["cases"].as_array().map_or(0, Vec::len));
    if fell.is_empty() && rose {
        if std::env::var_os("NAVARCH_BLESS").is_some() {
            write_floor(&passed);
        } else {
            println!("more cases pass than the floor asks; NAVARCH_BLESS=1 raises it: {passed:?}");
        }
    }
    assert!(fell.is_empty(), "{}\n{}", fell.join("\n"), String::from_utf8_lossy(&output.stdout));
}

fn oracle_folder() -> Option<PathBuf> {
    let named = std::env::var_os("NAVARCH_ORACLE").map(PathBuf::from);
    let beside = testkit::workspace().join("../shared/oracle");
    named.into_iter().chain([beside]).find(|folder| folder.join("replay.py").is_file())
}

fn floor_path() -> PathBuf {
    testkit::workspace().join("oracle-floor.toml")
}

fn read_floor() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(floor_path()).expect("oracle-floor.toml");
    toml::from_str(&text).expect("oracle-floor.toml: area = count")
}

fn write_floor(passed: &BTreeMap<String, u64>) {
    let mut text =
        "# How many recorded answers of the reference we give, by area. A floor: it only rises.\n".to_owned();
    for (area, count) in passed {
        text.push_str(&format!("{area} = {count}\n"));
    }
    std::fs::write(floor_path(), text).unwrap();
}

/// The administrator's server URL, certificate and key, the latter two as files.
fn credential(cluster: &Cluster, folder: &Path) -> (String, PathBuf, PathBuf) {
    let part = |path: &str| {
        cluster.kubectl_args(&["config", "view", "--raw", "-o", &format!("jsonpath={path}")]).unwrap()
    };
    let file = |name: &str, path: &str| {
        let decode = r#"import base64,sys; sys.stdout.write(base64.b64decode(sys.argv[1]).decode())"#;
        let text = testkit::run(Command::new("python3").args(["-c", decode, &part(path)])).unwrap();
        let target = folder.join(name);
        std::fs::write(&target, text).unwrap();
        target
    };
    let cert = file("client.crt", "{.users[0].user.client-certificate-data}");
    let key = file("client.key", "{.users[0].user.client-key-data}");
    (part("{.clusters[0].cluster.server}"), cert, key)
}
