//! Addresses as files: who holds an address is written down before the address is used.
//!
//! Below the directory: `addresses/<ip>` names the holder (created exclusively, so that no address doubles even
//! between processes), `last-<n>` remembers where the search stopped, so that a freed address rests as long as
//! possible (stale conntrack entries and neighbours die out), `attachments/<id>_<ifname>.json` is the record.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::{Attachment, CniResult};
use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// What is known of an attachment; written before the first link is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whose it is.
    pub attachment: Attachment,
    /// The host's end of the veth pair.
    pub host_link: String,
    /// The pod's addresses, one per pod CIDR.
    pub addresses: Vec<IpAddr>,
    /// The namespace's path at ADD.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    #[serde(default)]
    pub args: Vec<(String, String)>,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub ports: Vec<crate::host_ports::HostPort>,
    /// What it may send and receive.
    #[serde(default)]
    pub limits: crate::bandwidth::Limits,
    /// The answer of ADD; absent while ADD is under way.
    pub result: Option<CniResult>,
}

/// Why an address could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// All addresses of the pod CIDR are taken.
    #[error("no free address left in {0}")]
    Exhausted(Cidr),
    /// A file could not be read or written.
    #[error("{what} {}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IpamError {
    let path = path.to_owned();
    move |source| IpamError::Io { what, path, source }
}

/// The address files of one node.
#[derive(Debug)]
pub(crate) struct Ipam {
    dir: PathBuf,
    cidrs: Vec<Cidr>,
    reserved: Vec<IpAddr>,
}

impl Ipam {
    /// Opens or makes the directory. `reserved` addresses are never given out.
    pub(crate) fn open(dir: &Path, cidrs: Vec<Cidr>, reserved: Vec<IpAddr>) -> Result<Self, IpamError> {
        for sub in ["addresses", "attachments"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(io_error("cannot make", &path))?;
        }
        Ok(Self { dir: dir.to_owned(), cidrs, reserved })
    }

    /// One address of every pod CIDR for `holder`. On an error none stays taken.
    pub(crate) fn allocate(&self, holder: &Attachment) -> Result<Vec<IpAddr>, IpamError> {
        let mut taken = Vec::new();
        for (n, cidr) in self.cidrs.iter().enumerate() {
            match self.allocate_in(n, *cidr, holder) {
                Ok(addr) => taken.push(addr),
                Err(error) => {
                    self.release(&taken)?;
                    return Err(error);
                }
            }
        }
        Ok(taken)
    }

    fn allocate_in(&self, n: usize, cidr: Cidr, holder: &Attachment) -> Result<IpAddr, IpamError> {
        let last_path = self.dir.join(format!("last-{n}"));
        let last = fs::read_to_string(&last_path).ok().and_then(|s| s.trim().parse::<u64>().ok());
        let usable = cidr.usable();
        let start = last.map_or(usable.start, |l| l.saturating_add(1)).clamp(usable.start, usable.end);
        for index in (start..usable.end).chain(usable.start..start) {
            let Some(addr) = cidr.nth(index) else { continue };
            if self.reserved.contains(&addr) {
                continue;
            }
            let path = self.address_path(addr);
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    writeln!(file, "{} {}", holder.container_id, holder.ifname)
                        .map_err(io_error("cannot write", &path))?;
                    fs::write(&last_path, index.to_string()).map_err(io_error("cannot write", &last_path))?;
                    return Ok(addr);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("cannot create", &path)(e)),
            }
        }
        Err(IpamError::Exhausted(cidr))
    }

    /// Gives addresses back; those already free are skipped.
    pub(crate) fn release(&self, addresses: &[IpAddr]) -> Result<(), IpamError> {
        for addr in addresses {
            remove(&self.address_path(*addr))?;
        }
        Ok(())
    }

    /// Addresses that are taken.
    pub(crate) fn taken(&self) -> Result<BTreeSet<IpAddr>, IpamError> {
        let names = list(&self.dir.join("addresses"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether every pod CIDR has a free address.
    pub(crate) fn exhausted(&self) -> Result<Option<Cidr>, IpamError> {
        let taken = self.taken()?;
        let full = self.cidrs.iter().find(|cidr| {
            let used = taken.iter().chain(&self.reserved).filter(|a| cidr.contains(**a)).count() as u64;
            used >= cidr.usable().end - cidr.usable().start
        });
        Ok(full.copied())
    }

    /// The record of an attachment.
    pub(crate) fn record(&self, attachment: &Attachment) -> Result<Option<Record>, IpamError> {
        self.read_record(&self.record_path(attachment))
    }

    /// All records.
    pub(crate) fn records(&self) -> Result<Vec<Record>, IpamError> {
        let dir = self.dir.join("attachments");
        let mut records = Vec::new();
        for name in list(&dir)? {
            if name.ends_with(".json") {
                records.extend(self.read_record(&dir.join(name))?);
            }
        }
        Ok(records)
    }

    fn read_record(&self, path: &Path) -> Result<Option<Record>, IpamError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| io_error("cannot read", path)(io::Error::new(io::ErrorKind::InvalidData, e))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("cannot read", path)(e)),
        }
    }

    /// Writes a record in one step: a reader sees the old one or the new one.
    pub(crate) fn save(&self, record: &Record) -> Result<(), IpamError> {
        let path = self.record_path(&record.attachment);
        let draft = path.with_extension("tmp");
        let bytes = serde_json::to_vec(record).map_err(|e| io_error("cannot encode", &path)(e.into()))?;
        fs::write(&draft, bytes).map_err(io_error("cannot write", &draft))?;
        fs::rename(&draft, &path).map_err(io_error("cannot rename", &draft))
    }

    /// Removes a record; one that is gone is no error.
    pub(crate) fn forget(&self, attachment: &Attachment) -> Result<(), IpamError> {
        remove(&self.record_path(attachment))
    }

    fn address_path(&self, addr: IpAddr) -> PathBuf {
        self.dir.join("addresses").join(addr.to_string())
    }

    fn record_path(&self, attachment: &Attachment) -> PathBuf {
        // a container id never holds an `@`, so two attachments never share a file
        let name = format!("{}@{}.json", attachment.container_id, attachment.ifname);
        self.dir.join("attachments").join(name)
    }
}

fn list(dir: &Path) -> Result<Vec<String>, IpamError> {
    let entries = fs::read_dir(dir).map_err(io_error("cannot list", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("cannot list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn remove(path: &Path) -> Result<(), IpamError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("cannot remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(id: &str) -> Attachment {
        Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
    }

    fn open(dir: &Path) -> Ipam {
        let cidrs = vec!["10.1.0.0/29".parse().unwrap(), "fd01::/120".parse().unwrap()];
        Ipam::open(dir, cidrs, vec!["10.1.0.3".parse().unwrap()]).unwrap()
    }

    fn text(addresses: &[IpAddr]) -> String {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_address_is_never_given_twice_and_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(text(&open(dir.path()).allocate(&holder("a")).unwrap()), "10.1.0.2 fd01::2");
        // 10.1.0.3 is reserved
        assert_eq!(text(&open(dir.path()).allocate(&holder("b")).unwrap()), "10.1.0.4 fd01::3");
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = open(dir.path());
        let first = ipam.allocate(&holder("a")).unwrap();
        ipam.release(&first).unwrap();
        let next = ipam.allocate(&holder("b")).unwrap();
        assert_ne!(first[0], next[0]);
        ipam.allocate(&holder("c")).unwrap();
        ipam.allocate(&holder("d")).unwrap();
        assert_eq!(ipam.allocate(&holder("e")).unwrap()[0], first[0]);
    }

    #[test]
    fn an_exhausted_family_leaves_nothing_taken_in_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = open(dir.path());
        for id in ["a", "b", "c", "d"] {
            ipam.allocate(&holder(id)).unwrap();
        }
        assert!(ipam.exhausted().unwrap().is_some());
        let before = ipam.taken().unwrap();
        assert!(matches!(ipam.allocate(&holder("e")), Err(IpamError::Exhausted(_))));
        assert_eq!(ipam.taken().unwrap(), before);
    }
}
