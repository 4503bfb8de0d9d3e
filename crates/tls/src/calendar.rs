//! Times as people read them, and as certificates write them: UTC, the proleptic Gregorian calendar.

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Unix time in seconds as `2026-11-28 07:46 UTC`.
#[must_use]
pub fn date(unix_s: i64) -> String {
    let (days, rest) = (unix_s.div_euclid(DAY), unix_s.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Unix time in seconds as `2026-11-28T07:46:05Z`.
#[must_use]
pub fn date_time(unix_s: i64) -> String {
    let (days, rest) = (unix_s.div_euclid(DAY), unix_s.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Unix time in seconds of a moment in UTC; none where there is no such moment.
#[must_use]
pub fn unix(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<i64> {
    let fits = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && (0..=9999).contains(&year);
    let days = fits.then(|| days(year, month, day))?;
    // The thirty-first of a short month is no day.
    let is_real = civil(days) == (year, month, day);
    is_real.then(|| days * DAY + hour * 3600 + minute * 60 + second)
}

/// Days since 1970-01-01, counting years from March so that a leap day ends one. In a year of that kind,
/// month `m` (March is 0) begins on day `(153 m + 2) / 5`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_told_and_read() {
        for (unix_s, told) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_851_960, "2026-11-28 07:46 UTC"),
            (4_107_542_340, "2100-02-28 23:59 UTC"),
            (-60, "1969-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(unix_s), told);
        }
        assert_eq!(unix(2026, 11, 28, 7, 46, 0), Some(1_795_851_960));
        assert_eq!(unix(2023, 2, 29, 0, 0, 0), None);
        assert_eq!(unix(2023, 13, 1, 0, 0, 0), None);
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in -146_097..146_097 {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }
}
