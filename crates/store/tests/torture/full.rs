//! A real file system without space: writes are refused with the reason, nothing is lost, deletes go on, and writing goes
//! on when there is space again.

use store::embedded::{Embedded, Options};
use store::{Delete, Expect, Put, Store, StoreError};

use crate::volume::Volume;

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_usable_with_space_again() {
    let volume = Volume::new(64);
    let folder = volume.path().join("store");
    let store = Embedded::open(&folder, Options::default()).unwrap();
    let mut written = Vec::new();
    let mut put = async |store: &Embedded| {
        let key = format!("/registry/k{}", written.len());
        let value = vec![written.len() as u8; 50_000];
        let revision = store.put(Put::create(key.as_str(), value.clone())).await?;
        written.push((key, value, revision));
        Ok::<usize, StoreError>(written.len())
    };
    for _ in 0..20 {
        put(&store).await.unwrap();
    }
    let filler = volume.fill(1 << 20);
    let error = loop {
        match put(&store).await {
            Ok(count) => assert!(count < 500, "the disk is never full"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, StoreError::NoSpace { .. }), "{error}");
    for (key, value, revision) in &written {
        let found = store.get(key, None).await.unwrap().0.unwrap();
        assert_eq!((&found.value[..], found.mod_revision), (&value[..], *revision));
    }
    // After a crash on the full disk everything is there, too.
    store.close().await.unwrap_or_default();
    drop(store);
    let store = Embedded::open(&folder, Options::default()).unwrap();
    for (key, value, _) in &written {
        assert_eq!(store.get(key, None).await.unwrap().0.unwrap().value, value[..]);
    }
    std::fs::remove_file(filler).unwrap();
    // A delete is tried at once and shows that there is space again.
    store.delete(Delete::new(written[0].0.as_str(), Expect::Any)).await.unwrap();
    store.put(Put::create("/registry/after", vec![1; 50_000])).await.unwrap();
    store.close().await.unwrap();
    drop(store);
}
