//! Sizes and durations as people write them: `256MiB`, `10s`.

use std::time::Duration;

const SIZES: [(&str, u64); 5] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];

/// In milliseconds. `ms` stands before `m` and `s`, which it ends and begins with.
const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// A number of bytes: a whole number alone or with B, KiB, MiB, GiB or TiB.
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    const WHY: &str = "not a size: a whole number of bytes, or one with KiB, MiB or GiB, as in 256MiB";
    if let Some(bytes) = whole(text) {
        return Ok(bytes);
    }
    scaled(text, &SIZES).ok_or(WHY)
}

/// A span of time: a whole number with ms, s, m or h.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const WHY: &str = "not a duration: a whole number with ms, s, m or h, as in 10s";
    scaled(text, &DURATIONS).map(Duration::from_millis).ok_or(WHY)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    whole(number.trim_end())?.checked_mul(*unit)
}

/// Digits only: `parse` alone would take a sign.
fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The size in its largest whole unit, as [`parse_size`] reads it back.
pub fn show_size(bytes: u64) -> String {
    let unit =
        SIZES.iter().rev().find(|(_, unit)| *unit > 1 && bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// The duration in its largest whole unit, as [`parse_duration`] reads it back.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = DURATIONS.iter().rev().find(|(_, unit)| millis > 0 && millis.is_multiple_of((*unit).into()));
    match unit {
        Some((name, unit)) => format!("{}{name}", millis / u128::from(*unit)),
        None => "0s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_read_back_as_shown() {
        for (text, bytes) in [
            ("0B", 0),
            ("1000B", 1000),
            ("8KiB", 8 << 10),
            ("256MiB", 256 << 20),
            ("10GiB", 10 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(parse_size("268435456"), Ok(256 << 20));
        assert_eq!(parse_size("256 MiB"), Ok(256 << 20));
    }

    #[test]
    fn durations_need_a_unit_and_read_back_as_shown() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("3h", 10_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(show_duration(Duration::from_millis(90_500)), "90500ms");
        assert!(parse_duration("10").is_err());
    }

    #[test]
    fn other_spellings_and_overflows_are_refused() {
        for text in
            ["", "MiB", "-1", "+1", "1.5GiB", "256MB", "1 000", "99999999999999999999", "99999999TiB", "1mib"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1m30s", "1d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
