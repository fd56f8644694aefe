//! Amounts as people write them: `256M`, `10s`.

/// Bytes: a whole number, and perhaps `K`, `M` or `G` (powers of 1024) with or without `iB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let refused = || format!("`{text}` is not an amount of memory such as `256M` or `1G`");
    let (number, unit) = split(text);
    let shift = match unit.trim_end_matches("iB") {
        "" | "B" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err(refused()),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| refused())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(refused)
}

/// Milliseconds: a number, and `ms`, `s`, `m` or `h`; seconds if it has none.
pub(super) fn parse_ms(text: &str) -> Result<u64, String> {
    let refused = || format!("`{text}` is not a time such as `500ms`, `10s` or `2m`");
    let (number, unit) = split(text);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refused()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > 3 {
        return Err(refused());
    }
    let whole: u64 = whole.parse().map_err(|_not_a_number| refused())?;
    let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_not_a_number| refused())?;
    let whole_ms = whole.checked_mul(unit_ms).ok_or_else(refused)?;
    whole_ms.checked_add(thousandths * unit_ms / 1000).filter(|ms| *ms > 0).ok_or_else(refused)
}

/// An environment variable `NAME=value`.
pub(super) fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form `NAME=value`")),
    }
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("1", 1), ("64K", 65_536), ("256M", 256 << 20), ("2GiB", 2 << 30), ("5B", 5)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "M", "-1", "1.5M", "1T", "1 M", "99999999999G", "é"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in
            [("500ms", 500), ("10s", 10_000), ("3", 3000), ("0.25s", 250), ("2m", 120_000)]
        {
            assert_eq!(parse_ms(text), Ok(ms), "{text}");
        }
        for text in
            ["", "0", "0s", "s", "-1s", "1d", "1.2345s", "1.2.3s", "1 s", "99999999999999999h"]
        {
            assert!(parse_ms(text).is_err(), "{text}");
        }
    }
}
