//! Figures of this machine: `cargo test --release -p runtime --test suite -- --ignored --nocapture figures`.

use std::{
    fs,
    time::{Duration, Instant},
};

use cri::v1;

use crate::support::{Node, security, shell};

fn median(mut values: Vec<Duration>) -> String {
    values.sort_unstable();
    let at = |part: usize| values[(values.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms, min {:.1} ms", at(50), at(99), at(0))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a fact"]
async fn figures_of_starting_and_of_memory() {
    let mut node = Node::start().await;
    let (mut run, mut create, mut start, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut remove, mut exec, mut last) = (Vec::new(), Vec::new(), String::new());
    let mut private = Vec::new();
    for number in 0..60 {
        let mut config = shell("main", "echo up; sleep 1000");
        security(&mut config).seccomp = Some(v1::SecurityProfile::default());
        let begun = Instant::now();
        let sandbox = node.sandbox(&format!("p{number}")).await;
        run.push(begun.elapsed());
        let at = Instant::now();
        let id = node.create(&sandbox, config).await.unwrap();
        create.push(at.elapsed());
        let at = Instant::now();
        node.start_container(&id).await.unwrap();
        start.push(at.elapsed());
        all.push(begun.elapsed());
        let at = Instant::now();
        node.exec(&id, "true").await;
        exec.push(at.elapsed());
        let pid = node.pid(&id).await;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let shim = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().to_owned();
        let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let kib: u64 = rollup
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
            .sum();
        private.push(kib);
        last = rollup;
        if number % 2 == 0 {
            let at = Instant::now();
            node.remove_sandbox(&sandbox).await;
            remove.push(at.elapsed());
        }
    }
    private.sort_unstable();
    println!("RunPodSandbox   {}", median(run));
    println!("CreateContainer {}", median(create));
    println!("StartContainer  {}", median(start));
    println!("all three       {}", median(all));
    println!("ExecSync true   {}", median(exec));
    println!("RemovePodSandbox (running container) {}", median(remove));
    println!(
        "shim, private memory: median {} KiB, most {} KiB",
        private[private.len() / 2],
        private[private.len() - 1]
    );
    println!("{last}");
}
