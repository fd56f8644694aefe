//! How long a client waits: `?wait=N`, or `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::{Code, Problem};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The longest a request is held open, in seconds.
const MAX_WAIT_S: u64 = 60;

/// How long the answer may wait, and by whose wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    /// How long.
    pub(super) duration: Duration,
    /// The seconds to say in `Preference-Applied`, if the header asked for them.
    applied_s: Option<u64>,
}

impl Wait {
    /// What the query and the headers ask for; the query wins.
    ///
    /// # Errors
    /// If the query asks for more than is possible, or for something that is not a number. A
    /// preference is only a preference: a greater one is lowered, a senseless one ignored.
    pub(super) fn of(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Problem> {
        if let Some(text) = query {
            let seconds = text.parse().ok().filter(|seconds| *seconds <= MAX_WAIT_S);
            let seconds = seconds.ok_or_else(|| {
                let detail = format!("`wait` is `{text}`: choose 0 to {MAX_WAIT_S} seconds");
                Problem::new(Code::Invalid, detail)
            })?;
            return Ok(Self { duration: Duration::from_secs(seconds), applied_s: None });
        }
        let preferred = headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(preferred_wait_s);
        let applied_s = preferred.map(|seconds| seconds.min(MAX_WAIT_S));
        Ok(Self { duration: Duration::from_secs(applied_s.unwrap_or(0)), applied_s })
    }

    /// Says which preference was applied, if one was.
    pub(super) fn say(self, headers: &mut HeaderMap) {
        let said = self.applied_s.map(|seconds| HeaderValue::from_str(&format!("wait={seconds}")));
        if let Some(Ok(value)) = said {
            headers.insert(PREFERENCE_APPLIED, value);
        }
    }
}

/// The seconds of one preference, if it is `wait`.
fn preferred_wait_s(preference: &str) -> Option<u64> {
    let (name, value) = preference.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    value.trim().trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferring(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))])
    }

    fn applied(value: &'static str) -> (u64, Option<String>) {
        let wait = Wait::of(None, &preferring(value)).expect("never refused");
        let mut headers = HeaderMap::new();
        wait.say(&mut headers);
        let said =
            headers.get(PREFERENCE_APPLIED).map(|value| value.to_str().expect("text").into());
        (wait.duration.as_secs(), said)
    }

    #[test]
    fn a_preference_is_applied_and_a_greater_one_lowered() {
        assert_eq!(applied("wait=5"), (5, Some("wait=5".into())));
        assert_eq!(applied("respond-async, Wait = \"7\"; x"), (7, Some("wait=7".into())));
        assert_eq!(applied("wait=61"), (60, Some("wait=60".into())));
        assert_eq!(applied("wait=soon"), (0, None));
    }

    #[test]
    fn a_query_that_asks_for_too_much_is_refused() {
        let none = HeaderMap::new();
        let longest = Wait::of(Some("60"), &none).expect("fit");
        assert_eq!(longest.duration.as_secs(), 60);
        for text in ["61", "-1", "1.5", "x", ""] {
            assert!(Wait::of(Some(text), &none).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_query_wins_over_the_header() {
        let wait = Wait::of(Some("3"), &preferring("wait=9")).expect("fit");
        assert_eq!((wait.duration.as_secs(), wait.applied_s), (3, None));
    }
}
