//! Who a process runs as: ids and names looked up in `/etc/passwd` and `/etc/group` of the container's image, whatever is
//! mounted over them. They are foreign content (the reader never blocks, and reads a bounded amount).

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::mounts::while_doing;
use crate::{
    in_root,
    spec::{ResolvedUser, UserSpec},
};

/// Most bytes read of either file.
const MAX_FILE: u64 = 4 * 1024 * 1024;

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The home directory that the files of this process's root directory give a user; `/` without one.
pub(crate) fn home(uid: u32) -> String {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let passwd = root.ok().and_then(|root| read(root.as_fd(), "/etc/passwd").ok()).unwrap_or_default();
    let entry = passwd.lines().filter_map(parse_passwd).find(|entry| entry.uid == uid);
    entry.map_or_else(|| "/".to_owned(), |entry| entry.home)
}

/// Looks `spec` up in the files below `root`, unless it is known who that is.
pub(crate) fn resolve_below(root: BorrowedFd<'_>, spec: &UserSpec) -> Result<ResolvedUser, String> {
    if let Some(known) = &spec.known {
        return Ok(known.clone());
    }
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve_in(spec, &passwd, &group)
}

fn resolve_in(spec: &UserSpec, passwd: &str, group: &str) -> Result<ResolvedUser, String> {
    let users: Vec<Passwd> = passwd.lines().filter_map(parse_passwd).collect();
    let groups: Vec<Group> = group.lines().filter_map(parse_group).collect();
    let (user, group) = match spec.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = users
        .iter()
        .find(|entry| entry.name == user)
        .or_else(|| user.parse().ok().and_then(|uid: u32| users.iter().find(|entry| entry.uid == uid)));
    let uid = match (entry, user.parse::<u32>()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) if uid <= i32::MAX as u32 => uid,
        _ => return Err(format!("unable to find user {user}: no matching entries in passwd file")),
    };
    let mut gid = entry.map_or(0, |entry| entry.gid);
    if let Some(name) = group.filter(|group| !group.is_empty()) {
        gid = match (groups.iter().find(|group| group.name == name), name.parse::<u32>()) {
            (Some(group), _) => group.gid,
            (None, Ok(gid)) if gid <= i32::MAX as u32 => gid,
            _ => return Err(format!("unable to find group {name}: no matching entries in group file")),
        };
    }
    if let Some(given) = spec.gid {
        gid = given;
    }
    let mut all = vec![gid];
    all.extend(&spec.supplemental);
    if let (Some(entry), false) = (entry, spec.strict) {
        all.extend(groups.iter().filter(|group| group.members.contains(&entry.name)).map(|group| group.gid));
    }
    let mut unique = Vec::with_capacity(all.len());
    for gid in all {
        if !unique.contains(&gid) {
            unique.push(gid);
        }
    }
    let home = entry.map_or_else(|| "/".to_owned(), |entry| entry.home.clone());
    Ok(ResolvedUser { uid, gid, groups: unique, home })
}

fn parse_passwd(line: &str) -> Option<Passwd> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?.to_owned();
    let (_, uid, gid) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Some(Passwd { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?.to_owned();
    let gid = fields.nth(1)?.parse().ok()?;
    let members =
        fields.next().unwrap_or("").split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Some(Group { name, gid, members })
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, String> {
    // Non-blocking, because the image may have put a pipe there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match in_root::open(root, Path::new(path), flags, Mode::empty()) {
        Ok(file) => file,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(String::new());
        }
        Err(error) => return Err(format!("{path}: {error}")),
    };
    let stat = fstat(&file).map_err(while_doing(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        // it names nobody, and numbers need no names
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_FILE).read_to_end(&mut bytes).map_err(while_doing(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/false\nbad line\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:90:other,web\naudio:x:91:other\n";

    fn check(user: &str, spec: UserSpec, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let spec = UserSpec { user: user.to_owned(), ..spec };
        let got = resolve_in(&spec, PASSWD, GROUP);
        match expected {
            Ok((uid, gid, groups, home)) => assert_eq!(
                got,
                Ok(ResolvedUser { uid, gid, groups: groups.to_vec(), home: home.to_owned() }),
                "{user}"
            ),
            Err(part) => assert!(got.unwrap_err().contains(part), "{user}"),
        }
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        check("", UserSpec::default(), Ok((0, 0, &[0], "/root")));
        check("web", UserSpec::default(), Ok((33, 34, &[34, 90], "/srv")));
        check("33", UserSpec::default(), Ok((33, 34, &[34, 90], "/srv")));
        check("4711", UserSpec::default(), Ok((4711, 0, &[0], "/")));
        check("4711:ssl", UserSpec::default(), Ok((4711, 90, &[90], "/")));
        check("nobody", UserSpec::default(), Err("unable to find user nobody"));
        check("web:nogroup", UserSpec::default(), Err("unable to find group nogroup"));
        check("-5", UserSpec::default(), Err("unable to find user -5"));
    }

    #[test]
    fn given_groups_win_and_strict_leaves_out_the_images() {
        let given = UserSpec { gid: Some(7), supplemental: vec![8, 7], ..UserSpec::default() };
        check("web", given.clone(), Ok((33, 7, &[7, 8, 90], "/srv")));
        check("web", UserSpec { strict: true, ..given }, Ok((33, 7, &[7, 8], "/srv")));
    }
}
