//! Numbers for people.

use std::time::Duration;

/// Bytes with a binary prefix: `0 B`, `512 B`, `1.5 KiB`, `3.0 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let (mut whole, mut unit) = (bytes, "B");
    let mut rest = 0;
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if whole < 1024 {
            break;
        }
        rest = whole % 1024;
        whole /= 1024;
        unit = next;
    }
    if unit == "B" {
        format!("{whole} B")
    } else {
        format!("{whole}.{} {unit}", rest * 10 / 1024)
    }
}

/// Bytes per second.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 {
        "0".to_owned()
    } else {
        format!("{}/s", bytes(bytes_per_second))
    }
}

/// A length of time in its two largest units.
pub(crate) fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// `1 connection`, `2 connections`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

/// Reads a number of bytes with an optional k, m or g (times 1024 each).
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_two_or_more_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn spans_have_two_units() {
        assert_eq!(span(Duration::from_millis(1900)), "1 s");
        assert_eq!(span(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(span(Duration::from_secs(7260)), "2 h 1 min");
        assert_eq!(span(Duration::from_secs(90_000)), "1 d 1 h");
    }

    #[test]
    fn sizes_are_read_with_and_without_prefix() {
        assert_eq!(parse_bytes("65536"), Some(65_536));
        assert_eq!(parse_bytes("64k"), Some(65_536));
        assert_eq!(parse_bytes("4MiB"), Some(4 << 20));
        assert_eq!(parse_bytes("1g"), Some(1 << 30));
        for bad in ["", "k", "4x", "-1", "99999999999999999999", "20000000000g"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(1, "pair"), "1 pair");
        assert_eq!(counted(0, "pair"), "0 pairs");
    }
}
