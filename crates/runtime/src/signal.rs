//! Signals: by name and number, and as the CRI counts them.

use cri::v1::Signal;

/// From 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Other names for some.
const ALIASES: [(&str, &str); 3] = [("CLD", "CHLD"), ("IOT", "ABRT"), ("POLL", "IO")];

/// A signal by number or name, with or without `SIG`; real-time signals as `RTMIN+n` and `RTMAX-n`.
pub(crate) fn by_name(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.get(1..)?.parse::<i32>().ok() };
    let number = if let Some(rest) = bare.strip_prefix("RTMIN") {
        34 + offset(rest)?
    } else if let Some(rest) = bare.strip_prefix("RTMAX") {
        64 - offset(rest)?
    } else {
        let bare = ALIASES.iter().find(|(alias, _)| *alias == bare).map_or(bare, |(_, name)| name);
        return NAMES.iter().position(|known| *known == bare).and_then(|index| i32::try_from(index + 1).ok());
    };
    (34..=64).contains(&number).then_some(number)
}

/// What a configuration asks for; `None`: nothing.
pub(crate) fn asked(signal: Signal) -> Option<i32> {
    by_name(&signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-"))
}

/// A signal as the CRI counts it.
pub(crate) fn told(number: i32) -> Signal {
    let known = (0..).map_while(|index| Signal::try_from(index).ok());
    known.into_iter().find(|signal| asked(*signal) == Some(number)).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (name, expected) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGCLD", Some(17)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("", None),
            ("SIGNOPE", None),
            ("0", None),
            ("RTMIN+400", None),
            ("RTMINé", None),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }

    #[test]
    fn every_signal_has_a_number_in_the_cri() {
        assert_eq!((asked(Signal::RuntimeDefault), asked(Signal::Sigterm)), (None, Some(15)));
        assert_eq!((asked(Signal::Sigrtminplus3), asked(Signal::Sigrtmaxminus14)), (Some(37), Some(50)));
        for number in (1..32).chain(34..65) {
            assert_eq!(asked(told(number)), Some(number));
        }
        assert_eq!((told(6), told(17), told(32)), (Signal::Sigabrt, Signal::Sigchld, Signal::RuntimeDefault));
    }
}
