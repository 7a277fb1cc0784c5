//! Which devices a container may use: rules as text for cgroup v1, as a BPF program for v2.

use std::fmt;

/// One allowed kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Block devices (else character devices).
    pub block: bool,
    /// Major number; `None`: any.
    pub major: Option<u32>,
    /// Minor number; `None`: any.
    pub minor: Option<u32>,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
    /// May make nodes.
    pub mknod: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        write!(out, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (given, letter) in [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')] {
            if given {
                write!(out, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// What every container may use, as with other runtimes: making any node (using it is another matter), the
/// harmless memory devices and terminals.
pub fn defaults() -> Vec<Rule> {
    let any = |block| Rule { block, major: None, minor: None, read: false, write: false, mknod: true };
    let full =
        |major, minor| Rule { block: false, major: Some(major), minor, read: true, write: true, mknod: true };
    let mut rules = vec![any(false), any(true), full(136, None)];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(full(major, Some(minor)));
    }
    rules
}

/// Access as the kernel names it in the program's context.
const MKNOD: u64 = 1;
const READ: u64 = 2;
const WRITE: u64 = 4;

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

/// A `BPF_PROG_TYPE_CGROUP_DEVICE` program that allows what `rules` say and nothing else.
///
/// Its context is `{ access_type: access << 16 | type, major, minor }`, all 32 bits.
pub fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
    const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
    const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
    const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
    const NOT_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
    const EXIT: u8 = 0x95;
    // r2 type, r3 access, r4 major, r5 minor; r1 is the context.
    let mut code = vec![
        instruction(LOAD, 0x12, 0, 0),
        instruction(COPY, 0x23, 0, 0),
        instruction(AND, 0x02, 0, 0xffff),
        instruction(SHIFT_RIGHT, 0x03, 0, 16),
        instruction(LOAD, 0x14, 4, 0),
        instruction(LOAD, 0x15, 8, 0),
    ];
    for rule in rules {
        let mut tests = vec![(0x02, if rule.block { 1 } else { 2 })];
        let denied = [(rule.mknod, MKNOD), (rule.read, READ), (rule.write, WRITE)]
            .into_iter()
            .filter(|(given, _)| !given)
            .fold(0, |bits, (_, bit)| bits | bit);
        tests.extend(rule.major.map(|major| (0x04, major as i32)));
        tests.extend(rule.minor.map(|minor| (0x05, minor as i32)));
        // Each failing test jumps behind this rule: the tests, three for the access, two for "allow".
        let mut left = tests.len() as i16 + 2 + if denied == 0 { 0 } else { 3 };
        for (register, value) in tests {
            left -= 1;
            code.push(instruction(NOT_EQUAL, register, left, value));
        }
        if denied != 0 {
            code.push(instruction(COPY, 0x31, 0, 0));
            code.push(instruction(AND, 0x01, 0, denied as i32));
            code.push(instruction(NOT_EQUAL, 0x01, 2, 0));
        }
        code.push(instruction(MOVE, 0x00, 0, 1));
        code.push(instruction(EXIT, 0, 0, 0));
    }
    code.push(instruction(MOVE, 0x00, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_the_kernel_writes_them() {
        let text: Vec<String> = defaults().iter().map(Rule::to_string).collect();
        assert_eq!(text[..4], ["c *:* m", "b *:* m", "c 136:* rwm", "c 1:3 rwm"]);
    }

    /// Runs a program as the kernel would, for the few instructions used.
    fn allows(rules: &[Rule], kind: u32, access: u64, major: u32, minor: u32) -> bool {
        let context = [access as u32 * 0x1_0000 + kind, major, minor];
        let code = program(rules);
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        loop {
            let word = code[at];
            let (dst, src) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as u16 as i16, (word >> 32) as u32);
            match word as u8 {
                0x61 => registers[dst] = context[offset as usize / 4],
                0x54 => registers[dst] &= value,
                0x74 => registers[dst] >>= value,
                0xb4 => registers[dst] = value,
                0xbc => registers[dst] = registers[src],
                0x56 if registers[dst] != value => at += offset as usize,
                0x56 => {}
                0x95 => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn null_may_be_used_and_the_disk_only_named() {
        let rules = defaults();
        assert!(allows(&rules, 2, READ | WRITE, 1, 3));
        assert!(allows(&rules, 2, READ, 136, 42));
        assert!(allows(&rules, 1, MKNOD, 8, 0));
        assert!(!allows(&rules, 1, READ, 8, 0));
        assert!(!allows(&rules, 1, MKNOD | READ, 8, 0));
        assert!(!allows(&rules, 2, WRITE, 1, 1));
        assert!(!allows(&[], 2, READ, 1, 3));
    }

    /// On the v2 tree, which hybrid nodes have, too. Needs root.
    #[test]
    fn kernel_takes_the_program_and_enforces_it() {
        use std::{fs, os::fd::AsFd, path::Path, process::Command};
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|root| Path::new(root).join("cgroup.procs").exists())
            .expect("a v2 tree");
        let group = Path::new(root).join(format!("navarch-test-device-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let attached =
            crate::sys::attach_device_program(fs::File::open(&group).unwrap().as_fd(), &program(&defaults()));
        let script =
            format!("echo $$ > {}/cgroup.procs; : < /dev/null && echo null; : < /dev/kmsg", group.display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        fs::remove_dir(&group).unwrap();
        attached.unwrap();
        assert_eq!(output.stdout, b"null\n");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
    }
}
