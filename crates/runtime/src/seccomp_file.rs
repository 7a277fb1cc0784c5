//! Seccomp profiles of the node, as the OCI runtime specification writes them, turned into programs for the kernel.
//!
//! A call that no rule names gets the default action. Calls of other architectures than the node's own end the
//! process: their numbers mean something else. Names that this architecture does not have are left out, as other
//! runtimes do.

use seccompiler::{BpfProgram, sock_filter};
use serde::Deserialize;

use crate::syscall_names;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

// <linux/bpf_common.h>, <linux/seccomp.h>, <linux/audit.h>
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const KILL_PROCESS: u32 = 0x8000_0000;
/// Where the kernel shows number, architecture and arguments of a call.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// Numbers from here on are those of x32 programs.
const X32: u32 = 0x4000_0000;
/// Longest program that the kernel takes.
const LONGEST: usize = 4096;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let data = errno.unwrap_or(1) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        other => return Err(format!("seccomp action {other:?} is not supported")),
    })
}

fn step(code: u16, jt: usize, jf: usize, k: u32) -> Result<sock_filter, String> {
    let short = |jump: usize| u8::try_from(jump).map_err(|_| "a seccomp rule is too long".to_owned());
    Ok(sock_filter { code, jt: short(jt)?, jf: short(jf)?, k })
}

/// A test of an argument; it jumps to the end of the rule, `left` steps after its own, where it does not hold.
fn test(argument: &Argument, left: usize) -> Result<Vec<sock_filter>, String> {
    if argument.index > 5 {
        return Err(format!("a call has no argument {}", argument.index));
    }
    // little endian, which both architectures are
    let low = ARGUMENTS + 8 * u32::from(argument.index);
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (upper, lower) = halves(argument.value);
    // one that compares the upper half first: more decides at once, less too, the same goes on
    let order = |code: u16, wanted: bool| -> Result<Vec<sock_filter>, String> {
        let (yes, no) = (|after: usize| after, |after: usize| after + left);
        let on = |hit: bool, after: usize| if hit == wanted { yes(after) } else { no(after) };
        Ok(vec![
            step(LOAD, 0, 0, high)?,
            step(GREATER, on(true, 3), 0, upper)?,
            step(EQUAL, 0, on(false, 2), upper)?,
            step(LOAD, 0, 0, low)?,
            step(code, on(true, 0), on(false, 0), lower)?,
        ])
    };
    match argument.op.as_str() {
        "SCMP_CMP_EQ" => Ok(vec![
            step(LOAD, 0, 0, high)?,
            step(EQUAL, 0, 2 + left, upper)?,
            step(LOAD, 0, 0, low)?,
            step(EQUAL, 0, left, lower)?,
        ]),
        "SCMP_CMP_NE" => Ok(vec![
            step(LOAD, 0, 0, high)?,
            step(EQUAL, 0, 2, upper)?,
            step(LOAD, 0, 0, low)?,
            step(EQUAL, left, 0, lower)?,
        ]),
        "SCMP_CMP_MASKED_EQ" => {
            let (upper_wanted, lower_wanted) = halves(argument.value_two);
            Ok(vec![
                step(LOAD, 0, 0, high)?,
                step(AND, 0, 0, upper)?,
                step(EQUAL, 0, 3 + left, upper_wanted)?,
                step(LOAD, 0, 0, low)?,
                step(AND, 0, 0, lower)?,
                step(EQUAL, 0, left, lower_wanted)?,
            ])
        }
        "SCMP_CMP_GT" => order(GREATER, true),
        "SCMP_CMP_GE" => order(AT_LEAST, true),
        "SCMP_CMP_LE" => order(GREATER, false),
        "SCMP_CMP_LT" => order(AT_LEAST, false),
        other => Err(format!("seccomp operator {other:?} is not known")),
    }
}

/// A rule for one call: on to the next where its number or an argument differs.
fn rule(number: u32, arguments: &[Argument], result: u32) -> Result<Vec<sock_filter>, String> {
    let mut tests: Vec<sock_filter> = Vec::new();
    // from the end, so that each knows how far it is
    for argument in arguments.iter().rev() {
        let mut one = test(argument, tests.len() + 1)?;
        one.append(&mut tests);
        tests = one;
    }
    let mut whole = vec![step(LOAD, 0, 0, NUMBER)?, step(EQUAL, 0, tests.len() + 1, number)?];
    whole.append(&mut tests);
    whole.push(step(RETURN, 0, 0, result)?);
    Ok(whole)
}

/// The program of a profile.
///
/// # Errors
/// What is wrong with it, for the pod's owner.
pub fn compile(profile: &[u8]) -> Result<BpfProgram, String> {
    let profile: Profile = serde_json::from_slice(profile).map_err(|error| error.to_string())?;
    let otherwise = action(&profile.default_action, profile.default_errno_ret)?;
    let mut program = vec![
        step(LOAD, 0, 0, ARCHITECTURE)?,
        step(EQUAL, 1, 0, NATIVE)?,
        step(RETURN, 0, 0, KILL_PROCESS)?,
        step(LOAD, 0, 0, NUMBER)?,
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(step(AT_LEAST, 0, 1, X32)?);
        program.push(step(RETURN, 0, 0, KILL_PROCESS)?);
    }
    for written in &profile.syscalls {
        let result = action(&written.action, written.errno_ret)?;
        let known = written.names.iter().filter_map(|name| syscall_names::number(name));
        for number in known.filter_map(|number| u32::try_from(number).ok()) {
            program.extend(rule(number, &written.args, result)?);
        }
    }
    program.push(step(RETURN, 0, 0, otherwise)?);
    if program.len() > LONGEST {
        return Err(format!("the profile has {} steps, and the kernel takes {LONGEST}", program.len()));
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would say to a call.
    fn run(program: &BpfProgram, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u32; 16];
        (data[0], data[1]) = (number, NATIVE);
        for (at, argument) in arguments.iter().enumerate() {
            (data[4 + 2 * at], data[5 + 2 * at]) = (*argument as u32, (*argument >> 32) as u32);
        }
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = &program[at];
            let jump = |hit: bool| at + 1 + usize::from(if hit { step.jt } else { step.jf });
            at = match step.code {
                LOAD => {
                    accumulator = data[step.k as usize / 4];
                    at + 1
                }
                AND => {
                    accumulator &= step.k;
                    at + 1
                }
                EQUAL => jump(accumulator == step.k),
                GREATER => jump(accumulator > step.k),
                AT_LEAST => jump(accumulator >= step.k),
                RETURN => return step.k,
                code => panic!("step {code:#x}"),
            };
        }
    }

    fn one(op: &str, value: u64, value_two: u64) -> BpfProgram {
        let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                "args": [{"index": 1, "value": value, "valueTwo": value_two, "op": op}]}]});
        compile(profile.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn rules_hold_for_their_call_and_arguments() {
        let mkdirat = u32::try_from(libc::SYS_mkdirat).unwrap();
        let read = u32::try_from(libc::SYS_read).unwrap();
        let big = 5_u64 << 32;
        let check = |op: &str, value: u64, two: u64, hits: &[u64], misses: &[u64]| {
            let program = one(op, value, two);
            for (list, wanted) in [(hits, 0x0005_0005), (misses, 0x7fff_0000)] {
                for argument in list {
                    let got = run(&program, mkdirat, [0, *argument, 0, 0, 0, 0]);
                    assert_eq!(got, wanted, "{argument} {op} {value}");
                }
            }
            assert_eq!(run(&program, read, [0, hits[0], 0, 0, 0, 0]), 0x7fff_0000);
        };
        check("SCMP_CMP_EQ", big + 1, 0, &[big + 1], &[1, big, big + 2]);
        check("SCMP_CMP_NE", big + 1, 0, &[1, big, big + 2], &[big + 1]);
        check("SCMP_CMP_GT", big + 1, 0, &[big + 2, 6 << 32], &[1, big + 1, big, 7]);
        check("SCMP_CMP_GE", big + 1, 0, &[big + 1, big + 2, 6 << 32], &[1, big, 7]);
        check("SCMP_CMP_LT", big + 1, 0, &[1, big, 7], &[big + 1, big + 2, 6 << 32]);
        check("SCMP_CMP_LE", big + 1, 0, &[1, big, big + 1, 7], &[big + 2, 6 << 32]);
        check("SCMP_CMP_MASKED_EQ", 0xf0, 0x20, &[0x20, 0x2f, big + 0x20], &[0x30, 0]);
        let mut foreign = one("SCMP_CMP_EQ", 1, 0);
        foreign[1].k = 1;
        assert_eq!(run(&foreign, read, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, why) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"syscalls": []}"#, "defaultAction"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG",
                    "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "no argument 9",
            ),
        ] {
            let error = compile(text.as_bytes()).err().unwrap_or_default();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
