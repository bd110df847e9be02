//! Times as text: RFC 3339, in the years 0 to 9999.

use crate::tree::Time;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// Returns the text of a time with as many digits of its fraction as it needs; nothing outside the years 0 to 9999.
pub fn write(time: Time) -> Option<String> {
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

/// Returns a moment as RFC 3339 writes it; the empty text is the beginning of 1970.
pub fn read(text: &str) -> Option<Time> {
    if text.is_empty() {
        return Some(Time::default());
    }
    let (date, clock) = text.split_once(['T', 't'])?;
    let cut = clock.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = clock.split_at(cut);
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && (0..=9999).contains(&year);
    if !in_range {
        return None;
    }
    let nanos = match fraction.len() {
        0 => 0,
        1..=9 => fraction.parse::<u32>().ok()? * 10_u32.pow(9 - u32::try_from(fraction.len()).ok()?),
        _ => fraction.get(..9)?.parse().ok()?,
    };
    let ahead = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, zone) => {
            let (hours, minutes) = zone.split_once(':')?;
            let (hours, minutes) = (hours.parse::<u8>().ok()?, minutes.parse::<u8>().ok()?);
            let seconds =
                (hours < 24 && minutes < 60).then(|| i64::from(hours) * 3600 + i64::from(minutes) * 60)?;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    let secs = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - ahead;
    Some(Time { secs, nanos })
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
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
            assert_eq!(write(Time { secs, nanos }).as_deref(), Some(text), "{secs}");
        }
        for secs in [253_402_300_800, -62_167_219_201, i64::MAX, i64::MIN] {
            assert_eq!(write(Time { secs, nanos: 0 }), None, "{secs}");
        }
    }

    #[test]
    fn times_are_read_as_rfc_3339_writes_them() {
        for (text, secs, nanos) in [
            ("", 0, 0),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T12:34:56Z", 951_827_696, 0),
            ("1969-12-31T23:59:59.5Z", -1, 500_000_000),
            ("2026-11-28T01:00:00.123456789+01:30", 1_795_822_200, 123_456_789),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
        ] {
            assert_eq!(read(text), Some(Time { secs, nanos }), "{text}");
        }
        for text in ["x", "2026-11-28", "2026-13-01T00:00:00Z", "2026-11-28T00:00:00", "2026-11-28T25:00:00Z"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
