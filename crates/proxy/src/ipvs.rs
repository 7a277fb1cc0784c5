//! IPVS in the kernel: read at start, then changed, looked after each minute.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use network::ipvs::{self, Ipvs, IpvsError, Scheduler, Virtual};
use network::netns::Place;
use network::nft;

use crate::apply::ApplyError;
use crate::diff::Programmed;
use crate::layout::{self, Sets};
use crate::plan::{Frontend, Planner};
use crate::virtuals::{Step, Steps, Virtuals};
use crate::{Config, NodePorts};

/// How often endpoints are looked at that go when their connections have ended, and whether someone else changed what is ours:
/// IPVS tells of neither.
pub(crate) const UPKEEP: Duration = Duration::from_secs(60);

/// Fails where the kernel has no IPVS, or not this scheduler.
pub async fn available(scheduler: Scheduler) -> Result<(), IpvsError> {
    Ipvs::open(&Place::default()).await?.has(scheduler).await
}

/// The node's IPVS, as far as it is ours.
pub(crate) struct Balancer {
    ipvs: Ipvs,
    place: Place,
    scheduler: Scheduler,
    families: Vec<bool>,
    node_ports: NodePorts,
    node_local: BTreeSet<IpAddr>,
    virtuals: Virtuals,
}

impl Balancer {
    pub(crate) async fn open(
        config: &Config,
        place: &Place,
        scheduler: Scheduler,
    ) -> Result<Self, ApplyError> {
        let ipvs = Ipvs::open(place).await?;
        ipvs.has(scheduler).await?;
        let families = [false, true].into_iter();
        let used = |v6: &bool| config.service_cidrs.iter().any(|net| net.is_ipv6() == *v6);
        Ok(Self {
            ipvs,
            place: place.clone(),
            scheduler,
            families: families.filter(used).collect(),
            node_ports: config.node_ports.clone(),
            node_local: config.node_local.clone(),
            virtuals: Virtuals::default(),
        })
    }

    /// Reads what is ours, and notes in `programmed` where packets can be sent.
    pub(crate) async fn read(
        &mut self,
        config: &Config,
        programmed: &mut Programmed,
    ) -> Result<(), ApplyError> {
        self.ipvs.lead(&self.families).await?;
        self.virtuals = Virtuals::new(self.scheduler, self.addresses().await?);
        for (service, settings) in self.ipvs.services().await? {
            let Some(frontend) = owner(&service, config, programmed) else { continue };
            let reals = self.ipvs.reals(&service).await?;
            for real in reals.iter().filter(|real| real.weight > 0) {
                programmed.insert_server(frontend, real.addr);
            }
            self.virtuals.hold(frontend, service.addr, settings, &reals);
        }
        Ok(())
    }

    /// Where node ports are served.
    async fn addresses(&self) -> Result<BTreeSet<IpAddr>, ApplyError> {
        let mut found = network::addresses(&self.place).await.map_err(ApplyError::Addresses)?;
        found.retain(|addr| !self.node_local.contains(addr) && self.node_ports.are_at(*addr));
        Ok(found)
    }

    /// Frontends that have a service.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = Frontend> + '_ {
        self.virtuals.frontends().copied()
    }

    /// The steps that bring `frontends` to what `planner` wants.
    pub(crate) fn update(&mut self, planner: &Planner, frontends: &BTreeSet<Frontend>) -> Steps {
        let mut steps = Steps::default();
        for frontend in frontends {
            self.virtuals.update(frontend, planner.target(frontend), &mut steps);
        }
        steps
    }

    /// Serves node ports at the addresses that the node has now.
    pub(crate) async fn follow_addresses(&mut self, planner: &Planner) -> Result<(), ApplyError> {
        let now = self.addresses().await?;
        if !self.virtuals.serve_node_ports_at(now) {
            return Ok(());
        }
        let frontends = planner.all().frontends.into_iter().filter(Frontend::is_node_port).collect();
        let steps = self.update(planner, &frontends);
        self.run(&steps.first).await?;
        self.run(&steps.last).await
    }

    /// Removes endpoints that have no connections left; `false` when someone else removed, or made, services of ours.
    pub(crate) async fn upkeep(
        &mut self,
        config: &Config,
        programmed: &Programmed,
    ) -> Result<bool, ApplyError> {
        self.ipvs.lead(&self.families).await?;
        let there = self.ipvs.services().await?;
        let there = there.into_iter().map(|(service, _)| service);
        let there: BTreeSet<Virtual> = there.filter(|s| owner(s, config, programmed).is_some()).collect();
        if there != self.virtuals.services().collect() {
            return Ok(false);
        }
        let mut steps = Steps::default();
        for (frontend, addr) in self.virtuals.draining() {
            let service = Virtual { addr, protocol: frontend.protocol, port: frontend.port };
            let reals = self.ipvs.reals(&service).await?;
            self.virtuals.drained(&frontend, addr, &reals, &mut steps);
        }
        self.run(&steps.last).await?;
        Ok(true)
    }

    pub(crate) async fn run(&self, steps: &[Step]) -> Result<(), ApplyError> {
        for step in steps {
            match step {
                Step::Add(service, settings) => self.ipvs.add(service, settings).await?,
                Step::Edit(service, settings) => self.ipvs.edit(service, settings).await?,
                Step::Remove(service) => self.ipvs.remove(service).await?,
                Step::AddReal(service, real) => self.ipvs.add_real(service, *real, 1).await?,
                Step::Weigh(service, real, weight) => self.ipvs.weigh(service, *real, *weight).await?,
                Step::RemoveReal(service, real) => self.ipvs.remove_real(service, *real).await?,
            }
        }
        Ok(())
    }
}

/// Whose service it is; `None`: not ours. The service networks are all ours, elsewhere the table knows.
fn owner(service: &Virtual, config: &Config, programmed: &Programmed) -> Option<Frontend> {
    let Virtual { addr, protocol, port } = *service;
    let exact = Frontend { addr, protocol, port };
    if programmed.is_led(&exact) || config.service_cidrs.iter().any(|net| net.contains(addr)) {
        return Some(exact);
    }
    let any: IpAddr =
        if addr.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let node_port = Frontend { addr: any, protocol, port };
    programmed.is_led(&node_port).then_some(node_port)
}

/// Takes back what an earlier process made of IPVS, where `programmed` is what the table says.
pub(crate) async fn take_back(
    config: &Config,
    place: &Place,
    programmed: &Programmed,
) -> Result<(), ApplyError> {
    ipvs::lead_no_longer(place).await?;
    let ipvs = match Ipvs::open(place).await {
        Err(IpvsError::Missing) => return Ok(()),
        opened => opened?,
    };
    for (service, _) in ipvs.services().await? {
        if owner(&service, config, programmed).is_some() {
            ipvs.remove(&service).await?;
        }
    }
    Ok(())
}

/// Takes back what the proxy made of IPVS on this node, before its table is removed.
pub async fn reset(network: &network::Config) -> Result<(), ApplyError> {
    let config = Config::for_network("", network);
    let place = match Place::open(config.netns.as_deref()) {
        // with the namespace everything in it went
        Err(error) if error.is_not_found() => return Ok(()),
        opened => opened.map_err(ApplyError::Place)?,
    };
    if !ipvs::is_led(&place).await? {
        return Ok(());
    }
    let nft = nft::open(&place)?;
    let sets = nft.sets(&config.table).await?;
    let mut programmed = Programmed::default();
    for v6 in [false, true] {
        let led = Sets::new(v6).led.name;
        if sets.contains(&led) {
            let elements = nft.elements(&config.table, &led).await?;
            elements.iter().filter_map(|e| layout::decode_led(v6, e)).for_each(|e| programmed.insert(e));
        }
    }
    take_back(&config, &place, &programmed).await
}
