//! In which form something is told: what `Accept` asks for (RFC 9110 12.5.1).

use std::cmp::Reverse;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use mime::Mime;

use super::problem::{Code, Problem};
use crate::logs::frame::Format;

/// The forms of a log, by the media types that ask for them; where a client does not care, the
/// first is taken.
const FORMS: [(Format, &[&str]); 3] = [
    (Format::Text, &["text/plain"]),
    (Format::JsonLines, &["application/jsonl", "application/x-ndjson"]),
    (Format::EventStream, &["text/event-stream"]),
];

/// The form of a log that the client likes best. Text if it asks for nothing that there is.
///
/// # Errors
/// If it will have none of them, and says so of text.
pub(super) fn log_format(headers: &HeaderMap) -> Result<Format, Problem> {
    chosen(headers, &FORMS)
}

/// Which of `forms` the client likes best; the first if it asks for nothing that there is.
///
/// # Errors
/// If it will have none of them, and says so of the first.
pub(super) fn chosen<F: Copy>(headers: &HeaderMap, forms: &[(F, &[&str])]) -> Result<F, Problem> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Range> = values.flat_map(|value| value.split(',')).filter_map(range).collect();
    let wish = |types: &[&str]| {
        let fit = ranges.iter().enumerate().filter_map(|(place, range)| {
            Some((range.precision_for(types)?, Reverse(place), range.permille))
        });
        // The most precise range counts, whatever the others say.
        fit.max().map(|(precision, place, permille)| (permille, precision, place))
    };
    let (first, first_types) = forms[0];
    // Of equals the last is taken, so the first comes last.
    let wishes = forms.iter().rev().filter_map(|(form, types)| Some((wish(types)?, *form)));
    let best = wishes.max_by_key(|(wish, _)| *wish);
    match best {
        Some(((permille, ..), form)) if permille > 0 => Ok(form),
        Some(_) if wish(first_types).is_some() => {
            let types = forms.iter().map(|(_, types)| format!("`{}`", types[0]));
            let types = types.collect::<Vec<_>>().join(", ");
            let detail = format!("`Accept` refuses all there is: {types}");
            Err(Problem::new(Code::NotAcceptable, detail))
        }
        Some(_) | None => Ok(first),
    }
}

/// One of the media ranges of `Accept`.
struct Range {
    media: Mime,
    /// How much it is wished for, in thousandths; 0 is not at all.
    permille: u16,
}

/// How closely a range names a media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    Anything,
    Kind,
    Type,
}

impl Range {
    fn precision_for(&self, types: &[&str]) -> Option<Precision> {
        let (kind, subtype) = (self.media.type_(), self.media.subtype());
        if types.contains(&self.media.essence_str()) {
            return Some(Precision::Type);
        }
        if subtype != mime::STAR {
            return None;
        }
        if kind == mime::STAR {
            return Some(Precision::Anything);
        }
        let is_of_kind = |media: &&str| media.split('/').next() == Some(kind.as_str());
        types.iter().any(is_of_kind).then_some(Precision::Kind)
    }
}

/// A media range with its weight. What cannot be read is no wish.
fn range(text: &str) -> Option<Range> {
    let media: Mime = text.trim().parse().ok()?;
    let permille = match media.get_param("q") {
        Some(weight) => permille(weight.as_str())?,
        None => 1000,
    };
    Some(Range { media, permille })
}

/// A weight: 0 to 1 with at most three decimals (RFC 9110 12.4.2).
fn permille(weight: &str) -> Option<u16> {
    let (whole, decimals) = weight.split_once('.').unwrap_or((weight, ""));
    let is_weight = matches!(whole, "0" | "1")
        && decimals.len() <= 3
        && decimals.bytes().all(|digit| digit.is_ascii_digit());
    let thousandths: u16 = format!("{whole}{decimals:0<3}").parse().ok()?;
    (is_weight && thousandths <= 1000).then_some(thousandths)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn asked(accept: &'static str) -> Option<Format> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        log_format(&headers).ok()
    }

    #[test]
    fn text_is_told_to_who_does_not_care_or_asks_for_what_is_not_there() {
        assert_eq!(log_format(&HeaderMap::new()).ok(), Some(Format::Text));
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for accept in ["", "*/*", "text/*", "application/json", "nonsense", browser] {
            assert_eq!(asked(accept), Some(Format::Text), "{accept}");
        }
    }

    #[test]
    fn the_form_that_is_wished_for_most_is_told() {
        for (accept, form) in [
            ("text/event-stream", Format::EventStream),
            ("application/jsonl", Format::JsonLines),
            ("Application/X-NDJSON; charset=utf-8", Format::JsonLines),
            ("application/*", Format::JsonLines),
            ("text/plain;q=0.5, application/jsonl", Format::JsonLines),
            ("application/jsonl;q=0.5, text/event-stream;q=0.51", Format::EventStream),
            ("text/plain; q=0.1, text/event-stream; q=0.09", Format::Text),
            ("text/event-stream, application/jsonl", Format::EventStream),
            ("*/*, text/event-stream", Format::EventStream),
            ("text/*;q=0.2, application/jsonl;q=0.1", Format::Text),
            ("text/plain;q=0.5, */*", Format::JsonLines),
        ] {
            assert_eq!(asked(accept), Some(form), "{accept}");
        }
    }

    #[test]
    fn a_form_of_no_weight_is_not_told() {
        for (accept, form) in [
            ("text/plain;q=0, */*", Some(Format::JsonLines)),
            ("text/*;q=0, */*;q=0.1", Some(Format::JsonLines)),
            ("application/jsonl;q=0, text/event-stream;q=0.0", Some(Format::Text)),
            ("application/jsonl;q=0, text/plain;q=0, text/event-stream", Some(Format::EventStream)),
            ("text/plain;q=0", None),
            ("*/*;q=0.000", None),
            ("*/*;q=0, application/jsonl", Some(Format::JsonLines)),
        ] {
            assert_eq!(asked(accept), form, "{accept}");
        }
    }

    #[test]
    fn a_weight_that_is_none_takes_its_range_along() {
        for accept in ["application/jsonl;q=2", "application/jsonl;q=1.001", "application/jsonl;q="]
        {
            assert_eq!(asked(accept), Some(Format::Text), "{accept}");
        }
        assert_eq!(permille("0.25"), Some(250));
        assert_eq!(permille("1.000"), Some(1000));
        assert_eq!(permille("0.0001"), None);
        assert_eq!(permille("-1"), None);
    }
}
