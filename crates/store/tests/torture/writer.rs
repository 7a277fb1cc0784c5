//! The writing process: this test program again, told by its environment where the store is.
//!
//! Eight writers create, update and delete keys and print every acknowledgement; a watcher of everything checks that it is told
//! every revision once and in order. It never ends by itself.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use futures_util::StreamExt as _;
use store::embedded::{Embedded, Options};
use store::{Delete, Durability, Expect, Put, Revision, Store};

/// Set in the writing process: the folder of its store.
const FOLDER: &str = "STORE_TORTURE_FOLDER";
const WRITERS: usize = 8;

/// A key's last acknowledged state: revision, and the value unless deleted.
pub type Known = BTreeMap<String, (Revision, Option<String>)>;

/// History so short that it is compacted all the time.
pub fn options() -> Options {
    Options { history_min: 100, history_max: 500, ..Options::default() }
}

/// The body of the test that stands for the writing process; does nothing in an ordinary run.
#[tokio::test]
async fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Embedded::open(Path::new(&folder), options()).unwrap();
    say(&format!("open {}", store.revision()));
    let watcher = tokio::spawn(watch(store.clone()));
    let writers = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer)));
    for writer in writers.collect::<Vec<_>>() {
        let _ = writer.await;
    }
    let _ = watcher.await;
    // The disk is gone: the parent kills us when it has read everything.
    std::future::pending::<()>().await;
}

/// One line at a time, in one write: the parent ignores an unfinished last line.
fn say(line: &str) {
    std::io::stdout().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

/// Inside one process every revision is one event.
async fn watch(store: Arc<Embedded>) {
    let mut last = store.revision();
    let mut stream = store.watch("/", last).await.unwrap();
    while let Some(Ok(batch)) = stream.next().await {
        for event in batch {
            if event.revision() != last + 1 {
                say(&format!("wrong the-watch {} after {last}", event.revision()));
            }
            last = event.revision();
        }
    }
}

async fn write(store: Arc<Embedded>, writer: usize) {
    for round in 0_u64.. {
        let key = format!("/registry/core/configmaps/w{writer}/k{}", round % 50);
        let durability = if round % 4 == 3 { Durability::Memory } else { Durability::Disk };
        if round % 7 == 6 {
            // The previous round's key: it exists.
            let key = format!("/registry/core/configmaps/w{writer}/k{}", (round - 1) % 50);
            let Ok((revision, _)) = store.delete(Delete::new(key.as_str(), Expect::Any)).await else { break };
            say(&format!("deleted {key} {revision}"));
        } else {
            let value = format!("{writer}-{round}-{}", "x".repeat(round as usize % 3000));
            let put = Put { durability, ..Put::set(key.as_str(), value.clone()) };
            let Ok(revision) = store.put(put).await else { break };
            let verb = if durability == Durability::Disk { "put" } else { "seen" };
            say(&format!("{verb} {key} {revision} {value}"));
        }
    }
    say("broken");
}

/// Starts the writing process on this folder.
pub fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer::writes_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What one life of the writing process showed.
#[derive(Default)]
pub struct Shown {
    /// The highest revision that anybody saw.
    pub highest: Revision,
    /// Durable writes.
    pub acknowledged: u64,
}

/// Reads what the process prints; `disaster` is called once, after that many lines, and has to bring the process to its end
/// or its writers to theirs (they are then killed).
pub fn run(child: &mut Child, after: u64, known: &mut Known, mut disaster: impl FnMut(&mut Child)) -> Shown {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut shown = Shown::default();
    let (mut count, mut broken, mut happened) = (0, 0, false);
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
            "wrong" => panic!("{line}"),
            "broken" => {
                broken += 1;
                if broken == WRITERS {
                    child.kill().unwrap();
                }
                continue;
            }
            "open" => words[1].parse::<Revision>().unwrap(),
            _ => words[2].parse::<Revision>().unwrap(),
        };
        shown.highest = shown.highest.max(revision);
        match words[0] {
            "put" => drop(known.insert(words[1].to_owned(), (revision, Some(words[3].to_owned())))),
            "deleted" => drop(known.insert(words[1].to_owned(), (revision, None))),
            // Not promised to survive: nothing is known of this key but what later durable writes say.
            "seen" => drop(known.remove(words[1])),
            _ => {}
        }
        shown.acknowledged += u64::from(matches!(words[0], "put" | "deleted"));
        count += 1;
        if count >= after && !happened {
            happened = true;
            disaster(child);
        }
    }
    child.wait().unwrap();
    assert!(happened, "the writing process ended by itself after {count} acknowledgements");
    shown
}
