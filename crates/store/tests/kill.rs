//! `kill -9` while writing, again and again: nothing acknowledged as durable is lost, revisions never go back.
//!
//! The test starts itself as the writing process (see [`WRITER`]): eight writers create, update and delete keys and print
//! every acknowledgement; the parent kills it at a random moment, opens the store and compares.
//! `STORE_KILL_ROUNDS` and `STORE_KILL_SEED` make it longer or repeat a run.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use store::embedded::{Embedded, Options};
use store::{Delete, Durability, Expect, Put, Revision, Store};

/// Set in the writing process: the folder of its store.
const WRITER: &str = "STORE_KILL_WRITER";
const WRITERS: usize = 8;

/// A key's last acknowledged state: revision, and the value unless deleted.
type Known = BTreeMap<String, (Revision, Option<String>)>;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Writes until it is killed. Each writer has keys of its own, so the last line of a key is its last acknowledged state.
async fn write_for_ever(folder: &Path) {
    let store =
        Embedded::open(folder, Options { history_min: 100, history_max: 500, ..Options::default() }).unwrap();
    say(&format!("open {}", store.revision()));
    let writers = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// One line at a time, in one write: the parent ignores an unfinished last line.
fn say(line: &str) {
    std::io::stdout().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

async fn write(store: Arc<Embedded>, writer: usize) {
    for round in 0_u64.. {
        let key = format!("/registry/core/configmaps/w{writer}/k{}", round % 50);
        let durability = if round % 4 == 3 { Durability::Memory } else { Durability::Disk };
        if round % 7 == 6 {
            // The previous round's key: it exists.
            let key = format!("/registry/core/configmaps/w{writer}/k{}", (round - 1) % 50);
            let (revision, _) = store.delete(Delete::new(key.as_str(), Expect::Any)).await.unwrap();
            say(&format!("deleted {key} {revision}"));
        } else {
            let value = format!("{writer}-{round}-{}", "x".repeat(round as usize % 3000));
            let put = Put { durability, ..Put::set(key.as_str(), value.clone()) };
            let revision = store.put(put).await.unwrap();
            let verb = if durability == Durability::Disk { "put" } else { "seen" };
            say(&format!("{verb} {key} {revision} {value}"));
        }
    }
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_acknowledged_is_lost_by_kill_9", "--nocapture"])
        .env(WRITER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets the child write until some acknowledgements after opening have been read, plus a random time; kills it, and
/// returns the highest revision it showed to anybody.
fn run_and_kill(folder: &Path, random: &mut StdRng, known: &mut Known) -> Revision {
    let mut child = start(folder);
    let output = child.stdout.take().unwrap();
    let acknowledgements = random.random_range(1..2_000);
    let mut highest = 0;
    let mut count = 0;
    let mut killed = false;
    let mut reader = BufReader::new(output);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap() == 0 {
            break;
        }
        // Output of the test harness, or cut off by the kill.
        let Some(line) = line.strip_prefix('@').and_then(|line| line.strip_suffix('\n')) else { continue };
        let words: Vec<&str> = line.split(' ').collect();
        let revision = match words[0] {
            "open" => words[1].parse::<Revision>().unwrap(),
            _ => words[2].parse::<Revision>().unwrap(),
        };
        highest = highest.max(revision);
        match words[0] {
            "put" => drop(known.insert(words[1].to_owned(), (revision, Some(words[3].to_owned())))),
            "deleted" => drop(known.insert(words[1].to_owned(), (revision, None))),
            // Not promised to survive: nothing is known of this key but what later durable writes say.
            "seen" => drop(known.remove(words[1])),
            _ => {}
        }
        count += 1;
        if count >= acknowledgements && !killed {
            killed = true;
            // Somewhere inside a commit.
            let moment = Instant::now() + Duration::from_micros(random.random_range(0..3_000));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(killed, "the writing process ended by itself after {count} acknowledgements");
    highest
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    if let Some(folder) = std::env::var_os(WRITER) {
        return write_for_ever(Path::new(&folder)).await;
    }
    let rounds = number("STORE_KILL_ROUNDS", 15);
    let seed = number("STORE_KILL_SEED", 1);
    println!("STORE_KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut known = Known::new();
    for round in 0..rounds {
        let highest = run_and_kill(folder.path(), &mut random, &mut known);
        let begin = Instant::now();
        let store = Embedded::open(folder.path(), Options::default()).unwrap();
        assert!(store.revision() >= highest, "round {round}: {} after {highest}", store.revision());
        for (key, (revision, value)) in &known {
            let found = store.get(key, None).await.unwrap().0;
            // A later write may have been stored without its acknowledgement having been read.
            let newer = found.as_ref().is_some_and(|kv| kv.mod_revision > *revision);
            let same = match (&found, value) {
                (Some(kv), Some(value)) => kv.mod_revision == *revision && kv.value == value.as_bytes(),
                (None, None) => true,
                // Deleted by the write that was under way.
                (None, Some(_)) => deleted_later(&store, key, *revision).await,
                _ => false,
            };
            assert!(newer || same, "round {round}: {key} was {value:?} at {revision}, now {found:?}");
        }
        let next = store.put(Put::set("/registry/core/configmaps/parent", round.to_string())).await.unwrap();
        assert!(next > highest, "round {round}: revision {next} was given again");
        assert!(begin.elapsed() < Duration::from_secs(5), "the first write took {:?}", begin.elapsed());
        store.close().await.unwrap();
    }
}

/// Does the history hold a delete of the key after the revision?
async fn deleted_later(store: &Arc<Embedded>, key: &str, revision: Revision) -> bool {
    use futures_util::StreamExt as _;
    let compacted = store.stats().compacted;
    let Ok(mut stream) = store.watch(key, revision.max(compacted)).await else { return false };
    matches!(stream.next().await, Some(Ok(events)) if events.iter().any(|event| event.kind == store::EventKind::Delete))
}
