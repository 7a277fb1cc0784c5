//! Where the data is: backups of a running server, moving into etcd and back, several servers on one etcd.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testkit::etcd::Etcd;
use testkit::{eventually, run, tools};

use crate::NAVARCH;

/// A server that has only the API, on a free port of this machine.
struct Api {
    folder: PathBuf,
    process: Option<Child>,
}

impl Api {
    fn start(folder: &Path, more: &[&str]) -> Api {
        let mut command = Command::new(NAVARCH);
        command
            .args(["server", "--listen", "127.0.0.1:0", "--node-name", "node-1", "--data-dir"])
            .arg(folder);
        command.args(["--disable", "controllers,scheduler,agent,proxy,dns"]).args(more);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.contains("is ready"), "{:?}", process.wait());
        Api { folder: folder.to_owned(), process: Some(process) }
    }

    fn kubectl(&self, line: &str) -> anyhow::Result<String> {
        let mut command = Command::new(tools::folder(tools::NEW)?.join("kubectl"));
        command.env("KUBECONFIG", self.folder.join("admin.kubeconfig")).env("HOME", &self.folder);
        run(command.args(line.split_whitespace()))
    }

    fn revision(&self, what: &str) -> u64 {
        let object: Value =
            serde_json::from_str(&self.kubectl(&format!("get {what} -o json")).unwrap()).unwrap();
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    fn secret(&self) -> String {
        self.kubectl("get secret s -o jsonpath={.data.password}").unwrap()
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut process) = self.process.take() {
            run(Command::new("kill").args([signal, &process.id().to_string()])).unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.end("-TERM");
        let reset = Command::new(NAVARCH).args(["reset", "--data-dir"]).arg(&self.folder).output().unwrap();
        assert!(reset.status.success() || std::thread::panicking(), "{reset:?}");
    }
}

/// `navarch LINE --data-dir FOLDER`.
fn navarch(folder: &Path, line: &str) -> anyhow::Result<String> {
    run(Command::new(NAVARCH).args(line.split_whitespace()).arg("--data-dir").arg(folder))
}

#[test]
fn a_backup_of_a_running_server_restores_into_a_fresh_folder() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("one");
    let api = Api::start(&folder, &[]);
    api.kubectl("create secret generic s --from-literal=password=hidden").unwrap();
    let secret = api.secret();
    let file = home.path().join("full.tar.gz");
    eventually("the server writes a backup", || {
        navarch(&folder, &format!("backup create {} --with-keys", file.display())).map_err(|e| e.to_string())
    });
    let without = navarch(&folder, "backup create").unwrap();
    assert!(without.contains("the key is not in the backup"), "{without}");
    let plain = std::fs::read_dir(folder.join("backups")).unwrap().next().unwrap().unwrap().path();
    let listed = navarch(&folder, "backup list").unwrap();
    assert!(listed.contains(plain.to_str().unwrap()), "{listed}");
    let seen = navarch(&folder, &format!("backup inspect {}", file.display())).unwrap();
    assert!(seen.contains("core/secrets") && seen.contains("who has this file has the cluster"), "{seen}");
    // Written after the backup: not in it, and its revision is never used again.
    api.kubectl("create configmap late").unwrap();
    let late = api.revision("configmap late");

    // Without the keys a restore says so, before it makes anything.
    let other = home.path().join("two");
    let refused = navarch(&other, &format!("backup restore {}", plain.display())).unwrap_err().to_string();
    assert!(refused.contains("encrypted with") && refused.contains("--without-keys"), "{refused}");
    let restored = navarch(&other, &format!("backup restore {}", file.display())).unwrap();
    assert!(restored.contains("restored"), "{restored}");
    let again = navarch(&other, &format!("backup restore {}", file.display())).unwrap_err().to_string();
    assert!(again.contains("holds data already"), "{again}");
    let copy = Api::start(&other, &[]);
    assert_eq!(copy.secret(), secret);
    assert!(copy.kubectl("get configmap late").is_err());
    copy.kubectl("create configmap new").unwrap();
    assert!(copy.revision("configmap new") > late);
    // The old administrator is still one: it is the same authority.
    let mut damaged = std::fs::read(&file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let refused = navarch(&folder, &format!("backup inspect {}", file.display())).unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
}

#[test]
fn the_data_moves_into_etcd_where_two_servers_share_it_and_back() {
    let etcd = Etcd::start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("one");
    let flags = format!("--datastore-endpoints={}", etcd.endpoints().join(","));
    let there = format!("datastore migrate --from embedded --to etcd {flags}");
    let back = format!("datastore migrate --from etcd --to embedded {flags}");

    let mut api = Api::start(&folder, &[]);
    api.kubectl("create secret generic s --from-literal=password=hidden").unwrap();
    let (secret, before) = (api.secret(), api.revision("secret s"));
    let refused = navarch(&folder, &there).unwrap_err().to_string();
    assert!(refused.contains("a server already runs"), "{refused}");
    api.end("-TERM");
    let moved = navarch(&folder, &there).unwrap();
    assert!(moved.contains("checksum"), "{moved}");
    let again = navarch(&folder, &there).unwrap_err().to_string();
    assert!(again.contains("was it moved already?"), "{again}");

    let mut one = Api::start(&folder, &[&flags]);
    assert_eq!(one.secret(), secret);
    assert!(one.revision("secret s") > before);
    // A second server with the same certificates and keys.
    let second = home.path().join("two");
    std::fs::create_dir(&second).unwrap();
    run(Command::new("cp").arg("-r").arg(folder.join("pki")).arg(&second)).unwrap();
    let mut two = Api::start(&second, &[&flags]);
    two.kubectl("create configmap from-two").unwrap();
    one.kubectl("get configmap from-two").unwrap();
    assert_eq!(two.secret(), secret);
    one.end("-KILL");
    two.kubectl("create configmap after").unwrap();
    let refused = navarch(&folder, &back).unwrap_err().to_string();
    assert!(refused.contains("servers run on this etcd"), "{refused}");
    let newest = two.revision("configmap after");
    two.end("-TERM");
    // The killed server's lease ends by itself.
    eventually("the data moves back", || navarch(&folder, &back).map_err(|error| error.to_string()));
    let home_again = Api::start(&folder, &[]);
    assert_eq!(home_again.secret(), secret);
    assert_eq!(home_again.revision("configmap after"), newest);
    home_again.kubectl("create configmap last").unwrap();
    assert!(home_again.revision("configmap last") > newest);
    drop(home_again);
    drop(one);
    drop(two);
}
