//! Capabilities by name (capabilities(7)) and the sets containers get.

/// By number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Every capability.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What a container has unless told otherwise; the same set as other CRI runtimes.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The bit of a capability, with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let bare = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| known.strip_prefix("CAP_") == Some(bare)).map(|index| 1 << index)
}

/// The default set after `add` and `drop`, which may say `ALL`. Adding wins over dropping everything.
/// The error is the name that is no capability.
pub fn container_set(add: &[String], drop: &[String]) -> Result<u64, String> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let known = |name: &String| bit(name).ok_or_else(|| name.clone());
    let mut set = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
    if add.iter().any(is_all) {
        set = ALL;
    }
    if drop.iter().any(is_all) {
        set = 0;
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        set |= known(name)?;
    }
    for name in drop.iter().filter(|name| !is_all(name)) {
        set &= !known(name)?;
    }
    Ok(set)
}

/// Bits of the capabilities in `names`.
pub fn set(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(0, |set, name| Ok(set | bit(name).ok_or_else(|| name.clone())?))
}

/// The names of the capabilities in `set`.
pub fn names(set: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(index, _)| set & (1 << index) != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_of(add: &[&str], drop: &[&str]) -> Result<u64, String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        container_set(&owned(add), &owned(drop))
    }

    #[test]
    fn names_and_all_are_understood() {
        assert_eq!(set_of(&[], &["ALL"]), Ok(0));
        assert_eq!(set_of(&["net_bind_service"], &["all"]), Ok(1 << 10));
        assert_eq!(set_of(&["ALL"], &["CAP_SYS_ADMIN"]), Ok(ALL & !(1 << 21)));
        assert_eq!(set_of(&["NOPE"], &[]), Err("NOPE".to_owned()));
        assert_eq!(set_of(&[], &[]).unwrap(), 0xa80425fb);
    }
}
