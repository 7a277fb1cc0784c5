//! The table in the kernel: read back at start, then changed.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use network::conntrack;
use network::ipvs::{self, IpvsError};
use network::netns::{self, Place};
use network::nft::{self, Batch, Element, Nft, NftError, Set};

use crate::Config;
use crate::diff::{Changes, Entry, Programmed, Tier};
use crate::ipvs::Balancer;
use crate::layout::{self, Sets};
use crate::plan::{Dirty, Frontend, Planner, Refusal};
use crate::virtuals::{Step, Steps};

/// Readings of a table that does not settle.
const MAX_READINGS: usize = 5;

/// Why the table could not be brought up to date. [`Table::resync`] and try again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The network namespace cannot be used.
    #[error("cannot enter the node's network namespace")]
    Place(#[source] netns::Error),
    /// The kernel refused.
    #[error("cannot change the service table")]
    Nft(#[from] NftError),
    /// IPVS is to balance, and does not.
    #[error("cannot balance by IPVS")]
    Ipvs(#[from] IpvsError),
    /// Where node ports are to be served.
    #[error("cannot learn the node's addresses")]
    Addresses(#[source] network::Error),
}

/// The service table of a node.
pub struct Table {
    config: Config,
    nft: Box<dyn Nft>,
    place: Place,
    programmed: Programmed,
    pending: Option<Pending>,
    /// What balances in the place of the maps.
    balancer: Option<Balancer>,
    /// IPVS balanced for an earlier process: what the table held then. It is taken back when the maps do.
    replaced: Option<Programmed>,
}

/// Chains and sets that the next commit makes or renews, together with the first elements.
struct Pending {
    batch: Batch,
    from: From,
}

/// What an earlier process left.
#[derive(PartialEq, Eq)]
enum From {
    Nothing,
    /// Chains and sets of this layout.
    Current,
    /// Of another layout: what it served is served again only with the last element.
    Another,
}

impl Table {
    /// Reads the table. Nothing is changed yet: the first [`Table::apply`] writes the chains and the elements in
    /// one batch, so traffic sees the state that an earlier process left, then the new one.
    pub async fn open(config: Config) -> Result<Self, ApplyError> {
        let place = Place::open(config.netns.as_deref()).map_err(ApplyError::Place)?;
        let nft = nft::open(&place)?;
        let balancer = match config.ipvs {
            Some(scheduler) => Some(Balancer::open(&config, &place, scheduler).await?),
            None => None,
        };
        let mut table = Self {
            config,
            nft,
            place,
            programmed: Programmed::default(),
            pending: None,
            balancer,
            replaced: None,
        };
        table.resync().await?;
        Ok(table)
    }

    /// What the kernel held at the last reading, and changes since.
    pub fn programmed(&self) -> &Programmed {
        &self.programmed
    }

    /// The network namespace of the node.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Listens for the removal of the table.
    pub async fn removals(&self) -> Result<nft::Removals, ApplyError> {
        Ok(nft::Removals::open(&self.place, &self.config.table).await?)
    }

    /// Whether our chains are there.
    pub async fn stands(&self) -> Result<bool, ApplyError> {
        Ok(self.nft.chains(&self.config.table).await?.iter().any(|c| c == layout::MAIN))
    }

    /// Reads the table anew. Needed after an error, and when someone else changed it.
    pub async fn resync(&mut self) -> Result<(), ApplyError> {
        let table = self.config.table.clone();
        let chains = self.nft.chains(&table).await?;
        let sets = self.nft.sets(&table).await?;
        let expected = [Sets::new(false), Sets::new(true)];
        let current = chains.iter().any(|c| c == layout::MAIN)
            && expected.iter().flat_map(Sets::all).all(|s| sets.contains(&s.name));
        let mut batch = Batch::new(&table);
        self.programmed = self.nothing();
        let ours = |name: &&String| name.starts_with(layout::PREFIX);
        let from = if current {
            layout::base(&mut batch, &self.config, false);
            layout::tidy(&mut batch, &self.config, &chains);
            self.programmed = self.read_settled().await?;
            From::Current
        } else {
            // another version's chains and sets: rules go first, then what they referred to
            chains.iter().filter(ours).for_each(|c| {
                batch.flush_chain(c);
            });
            sets.iter().filter(ours).for_each(|s| {
                batch.delete_set(s);
            });
            chains.iter().filter(ours).for_each(|c| {
                batch.delete_chain(c);
            });
            layout::base(&mut batch, &self.config, true);
            if chains.iter().any(|chain| ours(&chain)) { From::Another } else { From::Nothing }
        };
        if from != From::Nothing {
            layout::refuse_unknown(&mut batch, &self.config);
        }
        self.pending = Some(Pending { batch, from });
        match &mut self.balancer {
            Some(balancer) => balancer.read(&self.config, &mut self.programmed).await?,
            None if ipvs::is_led(&self.place).await? => self.replaced = Some(self.programmed.clone()),
            None => {}
        }
        Ok(())
    }

    fn nothing(&self) -> Programmed {
        if self.balancer.is_some() { Programmed::by_ipvs() } else { Programmed::default() }
    }

    /// Serves node ports at the addresses that the node has now.
    pub async fn follow_addresses(&mut self, planner: &Planner) -> Result<(), ApplyError> {
        match &mut self.balancer {
            Some(balancer) => balancer.follow_addresses(planner).await,
            None => Ok(()),
        }
    }

    /// What has to be done from time to time where IPVS balances; `false` when it must be read anew.
    pub async fn upkeep(&mut self) -> Result<bool, ApplyError> {
        match &mut self.balancer {
            Some(balancer) => balancer.upkeep(&self.config, &self.programmed).await,
            None => Ok(true),
        }
    }

    /// Reads until two readings agree: while the kernel enlarges a map's hash table, shortly after many elements
    /// were added, a dump can miss elements (seen with 100 000 of them), and one missed would never be deleted.
    async fn read_settled(&self) -> Result<Programmed, ApplyError> {
        let mut before = self.read().await?;
        for _ in 0..MAX_READINGS {
            let now = self.read().await?;
            if now == before {
                break;
            }
            before = now;
        }
        Ok(before)
    }

    async fn read(&self) -> Result<Programmed, ApplyError> {
        let mut held = self.nothing();
        for v6 in [false, true] {
            let sets = Sets::new(v6);
            type Make = fn(Frontend, Tier) -> Entry;
            for (set, make) in [(&sets.frontends, Entry::Service as Make), (&sets.inside, Entry::Inside)] {
                let tiers = self.elements(set).await?;
                tiers
                    .iter()
                    .filter_map(|e| layout::decode_tier_of(v6, e))
                    .for_each(|(frontend, tier)| held.insert(make(frontend, tier)));
            }
            let guards = self.elements(&sets.guards).await?;
            guards.iter().filter_map(|e| layout::decode_guard(v6, e)).for_each(|f| held.insert_guard(f));
            let endpoints = self.elements(&sets.endpoints).await?;
            endpoints.iter().filter_map(|e| layout::decode_endpoint(v6, e)).for_each(|e| held.insert(e));
            for (set, refusal) in [(&sets.rejected, Refusal::Reject), (&sets.dropped, Refusal::Drop)] {
                let refused = self.elements(set).await?;
                refused
                    .iter()
                    .filter_map(|e| layout::decode_refused(v6, e, refusal))
                    .for_each(|e| held.insert(e));
            }
            let hairpin = self.elements(&sets.hairpin).await?;
            hairpin.iter().filter_map(|e| layout::decode_hairpin(v6, e)).for_each(|e| held.insert(e));
            let led = self.elements(&sets.led).await?;
            led.iter().filter_map(|e| layout::decode_led(v6, e)).for_each(|e| held.insert(e));
            let masked = self.elements(&sets.masked).await?;
            masked.iter().filter_map(|e| layout::decode_masked(v6, e)).for_each(|e| held.insert(e));
            let tiers = self.elements(&sets.tiers).await?;
            tiers.iter().filter_map(layout::decode_tier).for_each(|t| held.insert_tier(v6, t));
        }
        Ok(held)
    }

    async fn elements(&self, set: &Set) -> Result<Vec<Element>, ApplyError> {
        Ok(self.nft.elements(&self.config.table, &set.name).await?)
    }

    /// Brings the `dirty` part of the table to what `planner` wants. After an error the table must be read anew.
    ///
    /// One batch makes the new state; endpoints that go without a successor at their index follow in a second one.
    /// A packet is led by two lookups, of its tier and of an endpoint, and each sees the state of its own moment:
    /// a packet between them must still find the endpoint that its tier promised.
    pub async fn apply(&mut self, planner: &Planner, dirty: &Dirty) -> Result<Changes, ApplyError> {
        let mut batch = Batch::new(&self.config.table);
        if let Some(pending) = self.pending.take() {
            batch = pending.batch;
            if pending.from == From::Nothing {
                layout::refuse_unknown(&mut batch, &self.config);
            }
        }
        self.change(planner, dirty, batch).await
    }

    /// Commits `batch` with what brings the `dirty` part to what `planner` wants.
    async fn change(
        &mut self,
        planner: &Planner,
        dirty: &Dirty,
        mut batch: Batch,
    ) -> Result<Changes, ApplyError> {
        let changes = self.programmed.update(planner, dirty);
        let steps = match &mut self.balancer {
            Some(balancer) => balancer.update(planner, &dirty.frontends),
            None => Steps::default(),
        };
        self.balance(&steps.first).await?;
        for (v6, tier) in &changes.tiers {
            layout::tier(&mut batch, *v6, *tier);
        }
        for (frontend, sources, new) in &changes.guard {
            layout::guard(&mut batch, frontend, sources, *new);
        }
        for frontend in &changes.unguard {
            layout::unguard(&mut batch, frontend);
        }
        let taken: HashSet<_> = changes.add.iter().filter_map(endpoint_key).collect();
        let (last, first): (Vec<Entry>, Vec<Entry>) = changes
            .delete
            .iter()
            .partition(|entry| endpoint_key(entry).is_some_and(|key| !taken.contains(&key)));
        for (entries, add) in [(&first, false), (&changes.add, true)] {
            for (set, elements) in by_set(entries) {
                if add {
                    batch.add(&set, elements)
                } else {
                    batch.delete(&set, elements)
                };
            }
        }
        let started = Instant::now();
        self.nft.commit(batch).await?;
        if !last.is_empty() {
            tokio::time::sleep(UNDER_WAY).await;
            let mut batch = Batch::new(&self.config.table);
            for (set, elements) in by_set(&last) {
                batch.delete(&set, elements);
            }
            self.nft.commit(batch).await?;
        }
        self.balance(&steps.last).await?;
        tracing::debug!(
            deleted = changes.delete.len(),
            added = changes.add.len(),
            took = ?started.elapsed(),
            "service table changed"
        );
        self.after(&changes).await?;
        Ok(changes)
    }

    /// Compares the whole table with the whole plan, and tells of the changes. They are made part by part, so that their number
    /// does not cost memory.
    pub async fn apply_all(
        &mut self,
        planner: &Planner,
        mut told: impl FnMut(&Changes),
    ) -> Result<(), ApplyError> {
        let mut dirty = planner.all();
        let held = self.programmed.all();
        dirty.frontends.extend(held.frontends);
        dirty.frontends.extend(self.balancer.iter().flat_map(Balancer::frontends));
        dirty.local.extend(held.local);
        let new = || Batch::new(&self.config.table);
        let (mut batch, from) = self
            .pending
            .take()
            .map_or_else(|| (new(), From::Current), |pending| (pending.batch, pending.from));
        if from == From::Another {
            told(&self.change(planner, &dirty, batch).await?);
            return self.take_back().await;
        }
        let (mut frontends, mut local) =
            (dirty.frontends.into_iter().peekable(), dirty.local.into_iter().peekable());
        loop {
            let part = Dirty {
                frontends: frontends.by_ref().take(PART).collect(),
                local: local.by_ref().take(PART).collect(),
                ..Dirty::default()
            };
            let last = frontends.peek().is_none() && local.peek().is_none();
            if last && from == From::Nothing {
                layout::refuse_unknown(&mut batch, &self.config);
            }
            told(&self.change(planner, &part, batch).await?);
            if last {
                return self.take_back().await;
            }
            batch = Batch::new(&self.config.table);
        }
    }

    async fn balance(&self, steps: &[Step]) -> Result<(), ApplyError> {
        match &self.balancer {
            Some(balancer) => balancer.run(steps).await,
            None => Ok(()),
        }
    }

    /// Takes back what IPVS has of an earlier process.
    async fn take_back(&mut self) -> Result<(), ApplyError> {
        if let Some(replaced) = &self.replaced {
            crate::ipvs::take_back(&self.config, &self.place, replaced).await?;
            self.replaced = None;
        }
        Ok(())
    }

    /// What the kernel remembers of earlier packets and would lead later ones to endpoints that went.
    async fn after(&self, changes: &Changes) -> Result<(), ApplyError> {
        for v6 in [false, true] {
            if changes.forget.iter().all(|(f, _)| f.addr.is_ipv6() != v6) {
                continue;
            }
            let set = Sets::new(v6).affinity;
            let mut stale = self.elements(&set).await?;
            stale.retain(|element| {
                layout::decode_affinity(v6, element).is_some_and(|(seen, at)| {
                    changes.forget.iter().any(|(frontend, gone)| {
                        let same = frontend.protocol == seen.protocol && frontend.port == seen.port;
                        same && *gone == at && (frontend.is_node_port() || frontend.addr == seen.addr)
                    })
                })
            });
            let mut batch = Batch::new(&self.config.table);
            batch.destroy(&set, stale);
            self.nft.commit(batch).await?;
        }
        if !changes.udp.is_empty() {
            let stale = |flow: &conntrack::Flow| {
                changes.udp.iter().any(|frontend| {
                    frontend.port == flow.destination.port()
                        && (frontend.addr == flow.destination.ip()
                            || frontend.is_node_port()
                                && frontend.addr.is_ipv6() == flow.destination.is_ipv6()
                                && flow.answers_from != flow.destination)
                        && !self.programmed.backends(frontend).any(|b| b == flow.answers_from)
                })
            };
            match conntrack::delete_udp(&self.place, stale).await {
                Ok(0) => {}
                Ok(count) => tracing::debug!(count, "UDP connections of former endpoints deleted"),
                // the table itself is right; old flows end by their timeout
                Err(error) => tracing::warn!(%error, "cannot delete UDP connections of former endpoints"),
            }
        }
        Ok(())
    }
}

/// Frontends, or addresses, of one part.
const PART: usize = 1000;
/// Longer than any packet is under way between two lookups.
const UNDER_WAY: Duration = Duration::from_millis(2);

/// Frontend and index of an endpoint.
fn endpoint_key(entry: &Entry) -> Option<(Frontend, u32)> {
    match entry {
        Entry::Endpoint(frontend, index, _) => Some((*frontend, *index)),
        _ => None,
    }
}

fn by_set(entries: &[Entry]) -> Vec<(Set, Vec<Element>)> {
    let families = [Sets::new(false), Sets::new(true)];
    let mut found: BTreeMap<&str, (&Set, Vec<Element>)> = BTreeMap::new();
    for entry in entries {
        let set = families[usize::from(layout::is_ipv6(entry))].of(entry);
        found.entry(&set.name).or_insert_with(|| (set, Vec::new())).1.push(layout::encode(entry));
    }
    found.into_values().map(|(set, elements)| (set.clone(), elements)).collect()
}
