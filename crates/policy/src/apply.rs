//! The table in the kernel.

use network::netns::{self, Place};
use network::nft::{self, Batch, Nft, NftError};

use crate::Config;
use crate::plan::Plan;
use crate::{diff, layout};

/// Why policies could not be brought into force. Try again with a [`Table`] opened anew.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The network namespace cannot be used.
    #[error("cannot enter the node's network namespace")]
    Place(#[source] netns::Error),
    /// The kernel refused.
    #[error("cannot change the policy rules")]
    Nft(#[from] NftError),
}

/// The policy rules of a node.
pub struct Table {
    config: Config,
    nft: Box<dyn Nft>,
    place: Place,
    /// What is in force; `None` until the first plan replaced what an earlier process left.
    plan: Option<Plan>,
}

impl Table {
    /// Opens the table. What an earlier process left stays in force until the first [`Table::apply`].
    pub fn open(config: Config) -> Result<Self, ApplyError> {
        let place = Place::open(config.netns.as_deref()).map_err(ApplyError::Place)?;
        let nft = nft::open(&place)?;
        Ok(Self { config, nft, place, plan: None })
    }

    /// Brings `plan` into force: completely or, on an error, not at all. Only what differs is sent, except the first
    /// time, when everything is replaced in one batch (rules cannot be read back), so that no packet passes between.
    pub async fn apply(&mut self, plan: Plan) -> Result<(), ApplyError> {
        let mut batch = Batch::new(&self.config.table);
        let nothing = Plan::default();
        let before = match &self.plan {
            Some(before) if *before == plan => return Ok(()),
            Some(before) => before,
            None => {
                self.replace(&mut batch).await?;
                &nothing
            }
        };
        diff::changes(&mut batch, before, &plan);
        self.nft.commit(batch).await?;
        self.plan = Some(plan);
        Ok(())
    }

    async fn replace(&self, batch: &mut Batch) -> Result<(), ApplyError> {
        let ours = |name: &&String| name.starts_with(layout::PREFIX);
        let chains = self.nft.chains(&self.config.table).await?;
        let sets = self.nft.sets(&self.config.table).await?;
        batch.table();
        chains.iter().filter(ours).for_each(|chain| {
            batch.flush_chain(chain);
        });
        sets.iter().filter(ours).for_each(|set| {
            batch.delete_set(set);
        });
        chains.iter().filter(ours).filter(|chain| !layout::FIXED.contains(&chain.as_str())).for_each(
            |chain| {
                batch.delete_chain(chain);
            },
        );
        layout::fixed_sets().iter().for_each(|set| {
            batch.set(set);
        });
        layout::base(batch);
        Ok(())
    }

    /// Whether our chains are there.
    pub async fn stands(&self) -> Result<bool, ApplyError> {
        Ok(self.nft.chains(&self.config.table).await?.iter().any(|c| c == layout::FORWARD))
    }

    /// Listens for the removal of the table.
    pub async fn removals(&self) -> Result<nft::Removals, ApplyError> {
        Ok(nft::Removals::open(&self.place, &self.config.table).await?)
    }

    /// Forgets what is in force, so that the next plan replaces everything.
    pub fn forget(&mut self) {
        self.plan = None;
    }
}

/// Packets and bytes that a policy's rule let through, or that were dropped because none did, since the rule was
/// written.
pub async fn counters(config: &Config) -> Result<Vec<nft::Counter>, ApplyError> {
    let place = Place::open(config.netns.as_deref()).map_err(ApplyError::Place)?;
    let mut found = nft::open(&place)?.counters(&config.table).await?;
    found.retain(|counter| counter.chain.starts_with(layout::PREFIX));
    Ok(found)
}
