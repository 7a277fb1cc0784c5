//! What is particular to IPVS. Where the kernel has none, its error is looked at.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;

use network::ipvs::{Ipvs, IpvsError, Virtual, is_led};
use proxy::plan::Protocol;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use super::*;

/// Whether this kernel has IPVS.
pub fn here() -> bool {
    std::path::Path::new("/proc/net/ip_vs").exists()
}

fn http(addr: &str, port: u16) -> Virtual {
    Virtual { addr: addr.parse().unwrap(), protocol: Protocol::Tcp, port }
}

impl World {
    async fn ipvs(&self) -> Ipvs {
        Ipvs::open(&self.place("node")).await.unwrap()
    }

    /// Services with scheduler, seconds that clients stay, and endpoints with weights.
    async fn balanced(&self) -> BTreeSet<String> {
        let ipvs = self.ipvs().await;
        let mut found = BTreeSet::new();
        for (service, settings) in ipvs.services().await.unwrap() {
            let mut reals: Vec<String> = Vec::new();
            for real in ipvs.reals(&service).await.unwrap() {
                let pod = self.pods.iter().find(|(_, ips)| ips.contains(&real.addr.ip()));
                reals.push(format!("{}={}", pod.map_or("?", |(name, _)| name), real.weight));
            }
            reals.sort();
            let stay = settings.persistence.map_or(String::new(), |seconds| format!(" stay {seconds}"));
            found.insert(format!("{service} {}{stay} {}", settings.scheduler, reals.join(" ")));
        }
        found
    }

    async fn restart(&mut self) {
        self.table = Table::open(self.config.clone()).await.unwrap();
        self.apply_all().await;
    }
}

#[tokio::test]
async fn a_kernel_without_ipvs_is_told_what_is_missing() {
    if here() {
        let world = World::new(&[]).await;
        let missing = world.ipvs().await.has(Scheduler::MaglevHashing).await;
        let error = missing.unwrap_err();
        assert!(matches!(error, IpvsError::NoScheduler(_)));
        assert_eq!(
            error.to_string(),
            "this node's kernel has no IPVS scheduler mh: load its module, ip_vs_mh, or choose another one"
        );
        return;
    }
    let mut world = World::new(&[]).await;
    world.config.ipvs = Some(Scheduler::RoundRobin);
    let Err(error) = Table::open(world.config.clone()).await else { panic!("the table opens") };
    assert_eq!(
        error.source().unwrap().to_string(),
        "this node's kernel has no IPVS: load its module, ip_vs, or choose the proxy mode nftables"
    );
}

#[tokio::test]
async fn the_kernel_balances_with_the_chosen_scheduler_and_affinity() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b", "c"]).await;
    world.config.ipvs = Some(Scheduler::SourceHashing);
    world.restart().await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "NodePort".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    spec["sessionAffinity"] = "ClientIP".into();
    world.config.node_ports = NodePorts::at(["10.244.0.1".parse().unwrap()]);
    world.restart().await;
    world.service("web", spec, &["a", "b"]).await;
    assert_eq!(
        world.balanced().await,
        set(&["tcp 10.96.0.1:80 sh stay 10800 a=1 b=1", "tcp 10.244.0.1:30080 sh stay 10800 a=1 b=1"])
    );
    assert_eq!(world.names("c", "10.96.0.1:80", 8).len(), 1);
    assert_eq!(world.names("c", "10.244.0.1:30080", 8).len(), 1);
    // the same service with another scheduler: changed in place
    world.config.ipvs = Some(Scheduler::LeastConnection);
    world.restart().await;
    assert!(world.balanced().await.contains("tcp 10.96.0.1:80 lc stay 10800 a=1 b=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_its_endpoints_departure() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b", "c"]).await;
    let listener = world.place("a").run(|| TcpListener::bind(("0.0.0.0", 8080)).unwrap()).unwrap();
    let echo = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            writeln!(&stream, "{line}").unwrap();
        }
    });
    world.serve("b", 8080);
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    let to: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let stream = world.place("c").run(|| TcpStream::connect(to).unwrap()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut say = |text: &str| {
        writeln!(&stream, "{text}").unwrap();
        answers.next().unwrap().unwrap()
    };
    assert_eq!(say("one"), "one");
    world.service("web", tcp("10.96.0.1"), &["b"]).await;
    assert_eq!(world.balanced().await, set(&["tcp 10.96.0.1:80 rr a=0 b=1"]));
    assert_eq!(say("two"), "two");
    assert_eq!(world.names("c", "10.96.0.1:80", 6), set(&["b"]));
    // not even the last endpoint's departure ends it, and a restart knows
    world.service("web", tcp("10.96.0.1"), &[]).await;
    assert_eq!(world.call("c", "10.96.0.1:80"), Err(ErrorKind::ConnectionRefused));
    world.restart().await;
    assert!(world.table.upkeep().await.unwrap());
    assert_eq!(say("three"), "three");
    assert_eq!(world.balanced().await, set(&["tcp 10.96.0.1:80 rr a=0 b=0"]));
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    let _ = stream.shutdown(Shutdown::Read);
    drop((stream, answers));
    echo.join().unwrap();
    // a connection that was reset counts for ten seconds, one that ended for two minutes
    block_in_place(|| {
        testkit::eventually("the endpoint without connections is removed", || {
            assert!(Handle::current().block_on(world.table.upkeep()).unwrap());
            let left = Handle::current().block_on(world.balanced());
            if left.iter().any(|service| service.contains("a=0")) { Err(left) } else { Ok(()) }
        });
    });
}

#[tokio::test]
async fn node_ports_follow_the_nodes_addresses() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b"]).await;
    world.serve("a", 8080);
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "NodePort".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    world.service("web", spec, &["a"]).await;
    outside(&mut world);
    assert_eq!(world.call("outside", "192.0.2.1:30080"), Err(ErrorKind::ConnectionRefused));
    world.table.follow_addresses(&world.planner).await.unwrap();
    assert_eq!(world.call("outside", "192.0.2.1:30080").unwrap().0, "a");
    // the node's address that its own programs have serves them still
    world.serve("node", 8081);
    assert_eq!(world.call("outside", "192.0.2.1:8081").unwrap().0, "node");
}

#[tokio::test]
async fn a_service_opens_no_port_of_the_nodes_own_programs() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b"]).await;
    world.serve("a", 8080);
    world.serve("node", 22);
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    assert_eq!(world.call("b", "10.96.0.1:80").unwrap().0, "a");
    assert_eq!(world.call("b", "10.96.0.1:22"), Err(ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn services_that_someone_removed_are_missed_and_put_back() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b"]).await;
    world.serve("a", 8080);
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    assert!(world.table.upkeep().await.unwrap());
    let ipvs = world.ipvs().await;
    ipvs.remove(&http("10.96.0.1", 80)).await.unwrap();
    // another program's is none of our business
    let theirs = http("203.0.113.1", 80);
    let settings = network::ipvs::Settings { scheduler: "rr".to_owned(), persistence: None };
    ipvs.add(&theirs, &settings).await.unwrap();
    assert!(!world.table.upkeep().await.unwrap());
    world.table.resync().await.unwrap();
    world.apply_all().await;
    assert_eq!(world.call("b", "10.96.0.1:80").unwrap().0, "a");
    assert_eq!(world.balanced().await, set(&["tcp 10.96.0.1:80 rr a=1", "tcp 203.0.113.1:80 rr "]));
}

#[tokio::test]
async fn the_proxy_changes_to_maps_and_back_and_takes_back_what_it_made() {
    if !here() {
        return;
    }
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "NodePort".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    world.service("web", spec, &["a", "b"]).await;
    let node = world.place("node");
    for ipvs in [None, Some(Scheduler::RoundRobin), None, Some(Scheduler::RoundRobin)] {
        world.config.ipvs = ipvs;
        world.restart().await;
        for to in ["10.96.0.1:80", "10.244.0.1:30080"] {
            assert_eq!(world.names("c", to, 24), set(&["a", "b"]), "{to} by {ipvs:?}");
        }
        assert_eq!(world.balanced().await.is_empty(), ipvs.is_none());
        assert_eq!(is_led(&node).await.unwrap(), ipvs.is_some());
    }
    proxy::ipvs::reset(world.network.config()).await.unwrap();
    assert!(world.balanced().await.is_empty() && !is_led(&node).await.unwrap());
    assert_eq!(network::reset(world.network.config()).await.unwrap(), []);
}
