//! Memory goes back to the kernel when it is no longer needed.
//!
//! What the allocator freed goes back within a second, also while nothing runs. The pages of the program itself that its start has touched
//! (tables of kinds, bootstrap roles, definitions, relocations) go back when it is over: of 40 MB an idle server uses two again. So do those
//! that starting and stopping pods has touched. They stay in the page cache, so what is needed after all is there without a read.

use std::time::Duration;

use client::Changes;
use rustix::mm::{Advice, madvise};

/// After a start its last writes have been told to everybody who watches by then, after a change of a pod what it led to is done.
const SETTLED: Duration = Duration::from_secs(5);

/// From now on freed memory goes back by itself. Only servers do so: the shim must not have a second thread.
pub fn return_freed() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(error = &error as &dyn std::error::Error, "freed memory is returned late");
    }
}

/// Gives back what only the start needed, when it is over.
pub async fn return_start() {
    tokio::time::sleep(SETTLED).await;
    return_pages().await;
}

/// The same, and again whenever there were changes and then none for a while.
pub async fn return_between<V>(mut changes: Changes<V>) {
    loop {
        while let Ok(Some(_)) = tokio::time::timeout(SETTLED, changes.next()).await {}
        return_pages().await;
        if changes.next().await.is_none() {
            return;
        }
    }
}

async fn return_pages() {
    if let Ok(Err(error)) = tokio::task::spawn_blocking(give_back).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the program's pages stay in memory");
    }
}

/// Lets go of the program's pages; how many bytes are mapped there.
fn give_back() -> std::io::Result<usize> {
    let program = std::env::current_exe()?;
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut given = 0;
    for (start, length) in unchanged(&smaps, &program.to_string_lossy()) {
        drop_pages(start, length)?;
        given += length;
    }
    Ok(given)
}

/// The address ranges (start, length) of `program`'s file that this process cannot write and of which it has no page of its own:
/// the file has all that is in them (proc_pid_smaps(5)). Relocated tables are pages of its own.
fn unchanged(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut last = None;
    for line in smaps.lines() {
        if let Some(range) = header(line) {
            last = range.2.eq(program).then_some(range).filter(|(_, mode, _)| !mode.contains('w'));
        } else if let Some(kib) = line.strip_prefix("Anonymous:")
            && let Some(((start, end), ..)) = last.take()
            && kib.trim() == "0 kB"
        {
            found.push((start, end - start));
        }
    }
    found
}

/// `START-END MODE OFFSET DEVICE INODE PATH` of a mapping.
fn header(line: &str) -> Option<((usize, usize), &str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    let (mode, rest) = rest.split_once(' ')?;
    let path = rest.splitn(4, ' ').nth(3).unwrap_or_default().trim_start();
    (start <= end).then_some(((start, end), mode, path))
}

#[allow(unsafe_code, reason = "madvise; the range is of a file and holds nothing that the file does not")]
fn drop_pages(start: usize, length: usize) -> rustix::io::Result<()> {
    // SAFETY: the mapping stays; pages that are read again come from the same file, which cannot change while it runs.
    unsafe { madvise(std::ptr::with_exposed_provenance_mut(start), length, Advice::LinuxDontNeed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c1000000 r--p 00000000 fe:01 12345                      /usr/bin/nav arch
Rss:                 960 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0c1000000-55d0c5000000 r-xp 01000000 fe:01 12345                      /usr/bin/nav arch
Anonymous:             0 kB
55d0c5000000-55d0c6000000 r--p 05000000 fe:01 12345                      /usr/bin/nav arch
Anonymous:          1520 kB
55d0c6000000-55d0c7000000 rw-p 06000000 fe:01 12345                      /usr/bin/nav arch
Anonymous:             0 kB
55d0c7000000-55d0c8000000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:01 777                        /usr/lib/libc.so.6
Anonymous:             0 kB
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_pages_that_the_programs_file_has_too_are_given_back() {
        let found = unchanged(SMAPS, "/usr/bin/nav arch");
        assert_eq!(found, [(0x55d0_c000_0000, 0x100_0000), (0x55d0_c100_0000, 0x400_0000)]);
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        let given = give_back().expect("its own maps");
        assert!(given > 1 << 20, "{given} bytes");
        assert!(unchanged("nonsense\n-\nzz-1 r-xp", "").is_empty());
    }
}
