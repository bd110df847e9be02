//! Times as JSON has them: RFC 3339, in UTC.

use format::tree::Time;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// Returns the text of a time with as many digits of its fraction as it needs; nothing outside the years 0 to 9999.
pub(super) fn rfc3339(time: Time) -> Option<String> {
    let (days, second) = (time.secs.div_euclid(DAY), time.secs.rem_euclid(DAY));
    let (year, month, day) = date(days)?;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"))
}

/// Returns year, month and day of a day counted from 1970-01-01. Years begin in March here, so that the day of a leap
/// year is its last.
fn date(days: i64) -> Option<(i64, i64, i64)> {
    // From 0000-03-01.
    let days = days.checked_add(719_468)?;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    // Five months from March or August on have 153 days.
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    (0..=9999).contains(&year).then_some((year, month, day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        for (secs, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (951_868_799, 120_000_000, "2000-02-29T23:59:59.12Z"),
            (1_709_164_800, 1, "2024-02-29T00:00:00.000000001Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (-2_203_891_200, 0, "1900-03-01T00:00:00Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
            (-62_167_219_200, 0, "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Time { secs, nanos }).as_deref(), Some(text), "{secs}");
        }
        for secs in [253_402_300_800, -62_167_219_201, i64::MAX, i64::MIN] {
            assert_eq!(rfc3339(Time { secs, nanos: 0 }), None, "{secs}");
        }
    }
}
