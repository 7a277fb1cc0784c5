//! Word of changes that the kernel tells: a subscription that begins anew when it breaks.

use futures_util::StreamExt;
use nlink::netlink::{NetworkEvent, OwnedEventStream, Route, RtnetlinkGroup};

use crate::netns::Place;
use crate::network::Error;

/// Tells when something of interest may have changed.
pub struct Changes {
    events: OwnedEventStream<Route>,
    place: Place,
    groups: &'static [RtnetlinkGroup],
    matters: fn(&NetworkEvent) -> bool,
}

impl Changes {
    /// Of what `groups` tell in `place` that `matters`, from now on.
    pub(crate) async fn open(
        place: &Place,
        groups: &'static [RtnetlinkGroup],
        matters: fn(&NetworkEvent) -> bool,
    ) -> Result<Self, Error> {
        Ok(Self { events: listen(place, groups).await?, place: place.clone(), groups, matters })
    }

    /// Returns at the next change, or when some were missed.
    pub async fn next(&mut self) -> Result<(), Error> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) if (self.matters)(&event) => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) if error.is_no_buffer_space() => return Ok(()),
                Some(Err(_)) | None => {
                    self.events = listen(&self.place, self.groups).await?;
                    return Ok(());
                }
            }
        }
    }
}

async fn listen(place: &Place, groups: &[RtnetlinkGroup]) -> Result<OwnedEventStream<Route>, Error> {
    let failed = || Error::link("listen for changes of", "links");
    let conn = place.route().map_err(failed())?;
    conn.subscribe(groups).map_err(failed())?;
    Ok(conn.into_events().await)
}
