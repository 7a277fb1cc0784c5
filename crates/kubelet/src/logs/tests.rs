//! What readers of a log get, byte for byte.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc::{Receiver, channel};

use super::*;

const LOG: &str = "\
2026-01-01T00:00:00Z stdout F one
2026-01-01T00:00:01.5Z stderr F two
2026-01-01T00:00:02.123456789Z stdout P three 
2026-01-01T00:00:02.2Z stdout P is 
2026-01-01T00:00:02.3Z stdout F long
garbage
2026-01-01T00:00:03Z stdout F 
2026-01-01T00:00:04+02:00 stdout F five
";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.log"), text).unwrap();
        Self(folder)
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("0.log")
    }
    fn append(&self, text: &str) {
        let mut file = File::options().append(true).create(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

async fn get(text: &str, query: &str) -> String {
    let folder = Folder::new(text);
    let (out, mut answer) = channel(4);
    let reading = tokio::spawn(read(folder.path(), parse(query).unwrap(), || false, out));
    let mut all = Vec::new();
    while let Some(bytes) = answer.recv().await {
        all.extend_from_slice(&bytes);
    }
    reading.await.unwrap().unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn pieces_are_joined_and_garbage_is_passed_over() {
    assert_eq!(get(LOG, "").await, "one\ntwo\nthree is long\n\nfive\n");
}

#[tokio::test]
async fn tail_counts_a_line_in_pieces_once() {
    let log = LOG.replace("garbage\n", "");
    assert_eq!(get(&log, "tailLines=0").await, "");
    assert_eq!(get(&log, "tailLines=1").await, "five\n");
    assert_eq!(get(&log, "tailLines=2").await, "\nfive\n");
    assert_eq!(get(&log, "tailLines=3").await, "three is long\n\nfive\n");
    assert_eq!(get(&log, "tailLines=4").await, "two\nthree is long\n\nfive\n");
    assert_eq!(get(&log, "tailLines=5").await, "one\ntwo\nthree is long\n\nfive\n");
    assert_eq!(get(&log, "tailLines=500").await, "one\ntwo\nthree is long\n\nfive\n");
    assert_eq!(get("", "tailLines=5").await, "");
}

#[tokio::test]
async fn tail_finds_its_start_across_many_blocks() {
    let mut log = String::new();
    for n in 0..20_000 {
        log.push_str(&format!("2026-01-01T00:00:00Z stdout F line {n}\n"));
    }
    for count in [1, 7, 1_500, 19_999] {
        let got = get(&log, &format!("tailLines={count}")).await;
        assert_eq!(got.lines().count(), count);
        assert_eq!(got.lines().next().unwrap(), format!("line {}", 20_000 - count));
        assert!(got.ends_with("line 19999\n"));
    }
}

#[tokio::test]
async fn since_leaves_out_what_is_older() {
    let log = "2026-01-01T00:00:00Z stdout F old\n2026-01-01T02:00:00+02:00 stdout F old too\n2026-01-01T00:00:01Z stdout F new\n";
    assert_eq!(get(log, "sinceTime=2026-01-01T00:00:01Z").await, "new\n");
    let now = Timestamp::now();
    assert_eq!(get(&format!("{log}{now} stdout F now\n"), "sinceSeconds=60").await, "now\n");
}

#[tokio::test]
async fn limit_cuts_in_the_middle_and_counts_timestamps() {
    assert_eq!(get(LOG, "limitBytes=6").await, "one\ntw");
    assert_eq!(get(LOG, "limitBytes=33&timestamps=true").await, "2026-01-01T00:00:00.000000000Z on");
}

#[tokio::test]
async fn timestamps_have_nine_digits_and_stand_once_per_line() {
    assert_eq!(
        get(LOG, "timestamps=1&stream=Stdout").await,
        "2026-01-01T00:00:00.000000000Z one\n2026-01-01T00:00:02.123456789Z three is long\n\
         2026-01-01T00:00:03.000000000Z \n2026-01-01T00:00:04.000000000+02:00 five\n"
    );
    assert_eq!(get(LOG, "stream=Stderr").await, "two\n");
}

#[tokio::test]
async fn a_line_longer_than_a_block_passes_whole() {
    let text = "x".repeat(5 * BLOCK + 17);
    assert_eq!(get(&format!("2026-01-01T00:00:00Z stdout F {text}\n"), "tailLines=1").await, text + "\n");
}

#[test]
fn options_are_refused_in_upstreams_words() {
    let check = |query: &str, why: &str| {
        assert_eq!(parse(query), Err(Refused::Invalid(why.to_owned())), "{query}");
    };
    check("limitBytes=0", "limitBytes: Invalid value: 0: must be greater than 0");
    check("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0");
    check("sinceSeconds=0", "sinceSeconds: Invalid value: 0: must be greater than 0");
    check(
        "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
        "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
    );
    check(
        "stream=stdout",
        "stream: Unsupported value: \"stdout\": supported values: \"All\", \"Stderr\", \"Stdout\"",
    );
    check(
        "stream=Stdout&tailLines=1",
        "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now",
    );
    let unreadable = "strconv.ParseInt: parsing \"x\": invalid syntax".to_owned();
    assert_eq!(parse("tailLines=x"), Err(Refused::Unreadable(unreadable)));
    let lines = |query: &str| parse(query).unwrap().tail_lines;
    assert_eq!((lines("tail=3&tailLines=5"), lines("tail=all&tailLines=5")), (Some(3), None));
    assert!(parse("sinceSeconds=9223372036854775807").unwrap().since.is_none());
}

async fn expect(answer: &mut Receiver<Bytes>, want: &str) {
    let mut got = String::new();
    while got.len() < want.len() {
        let next = tokio::time::timeout(Duration::from_secs(10), answer.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("waited for {want:?}, got {got:?}"));
        got.push_str(std::str::from_utf8(&next.expect("more")).unwrap());
    }
    assert_eq!(got, want);
}

#[tokio::test]
async fn follower_sees_new_lines_rotation_and_the_last_words_then_ends() {
    let folder = Folder::new("2026-01-01T00:00:00Z stdout F a\n2026-01-01T00:00:00Z stdout F b\n");
    let alive = Arc::new(AtomicBool::new(true));
    let (out, mut answer) = channel(4);
    let running = alive.clone();
    let options = parse("follow=true&tailLines=1").unwrap();
    let reading = tokio::spawn(read(folder.path(), options, move || running.load(Ordering::SeqCst), out));
    expect(&mut answer, "b\n").await;
    folder.append("2026-01-01T00:00:00Z stdout F ha");
    expect(&mut answer, "ha").await;
    folder.append("lf\n2026-01-01T00:00:00Z stdout P pi");
    expect(&mut answer, "lf\npi").await;
    folder.append("e\n");
    expect(&mut answer, "e").await;
    std::fs::rename(folder.path(), folder.path().with_extension("old")).unwrap();
    folder.append("2026-01-01T00:00:00Z stdout F ce\n");
    expect(&mut answer, "ce\n").await;
    File::options().write(true).open(folder.path()).unwrap().set_len(0).unwrap();
    folder.append("2026-01-01T00:00:00Z stdout F t\n");
    expect(&mut answer, "t\n").await;
    alive.store(false, Ordering::SeqCst);
    folder.append("2026-01-01T00:00:00Z stdout F last\n");
    expect(&mut answer, "last\n").await;
    assert!(answer.recv().await.is_none());
    reading.await.unwrap().unwrap();
}

#[tokio::test]
async fn follower_ends_when_nobody_listens() {
    let folder = Folder::new("");
    let (out, answer) = channel(1);
    let reading = tokio::spawn(read(folder.path(), parse("follow").unwrap(), || true, out));
    drop(answer);
    reading.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_missing_log_is_an_error() {
    let (out, _answer) = channel(1);
    let gone = read(PathBuf::from("/nonexistent/0.log"), parse("").unwrap(), || false, out).await;
    assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
}
