//! Signals by name, as an image's `StopSignal` has them: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
//!
//! The numbers are Linux's on x86 and ARM, and the real-time range is that of glibc and musl: what Docker uses.

const NAMES: [(&str, i32); 32] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Returns the number of a signal.
pub(super) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let (base, offset) = match name.split_at_checked(5)? {
        ("RTMIN", "") => (RTMIN, 0),
        ("RTMAX", "") => (RTMAX, 0),
        ("RTMIN", rest) => (RTMIN, rest.strip_prefix('+')?.parse().ok()?),
        ("RTMAX", rest) => (RTMAX, -rest.strip_prefix('-')?.parse::<i32>().ok()?),
        _ => return None,
    };
    let number = base.checked_add(offset)?;
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_many_names() {
        let table = [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigquit", Some(3)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+30", Some(64)),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-31", None),
            ("SIGRTMIN+-1", None),
            ("SIGRTMAX-99999999999", None),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("", None),
            ("SIG", None),
            ("SIGNONE", None),
            ("SIGRTMI", None),
            ("ÄÄÄ", None),
        ];
        for (text, number) in table {
            assert_eq!(parse(text), number, "{text:?}");
        }
    }
}
