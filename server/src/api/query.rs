//! The parameters in a query: each has a name that is known and comes once, or it is refused.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use super::problem::{Code, Problem};

/// The parameters of a request, in the order they were written in.
#[derive(Debug)]
pub(super) struct Parameters {
    pairs: Vec<(String, String)>,
    /// What is named to who sends another.
    known: Vec<&'static str>,
}

/// That a request has no parameters.
#[derive(Debug)]
pub(super) struct NoParameters;

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let parsed = Query::try_from_uri(&parts.uri);
        let Query(pairs) =
            parsed.map_err(|error| Problem::new(Code::Malformed, error.to_string()))?;
        Ok(Self { pairs, known: Vec::new() })
    }
}

impl<S: Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let [] = Parameters::from_request_parts(parts, state).await?.named([])?;
        Ok(Self)
    }
}

impl Parameters {
    /// Takes those out whose names start with `prefix`, and the prefix off them. They may come
    /// often; `shown` stands for them all.
    pub(super) fn take_prefixed(
        &mut self,
        prefix: &str,
        shown: &'static str,
    ) -> Vec<(String, String)> {
        self.known.push(shown);
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        for (name, value) in std::mem::take(&mut self.pairs) {
            match name.strip_prefix(prefix) {
                Some(key) => taken.push((key.to_owned(), value)),
                None => rest.push((name, value)),
            }
        }
        self.pairs = rest;
        taken
    }

    /// The values of the parameters of these names.
    ///
    /// # Errors
    /// If there is a parameter of another name, or one twice.
    pub(super) fn named<const N: usize>(
        mut self,
        names: [&'static str; N],
    ) -> Result<[Option<String>; N], Problem> {
        self.known.splice(0..0, names);
        let mut values = [const { None }; N];
        for (name, value) in self.pairs {
            let Some(index) = names.iter().position(|known| *known == name) else {
                return Err(unknown(&name, &self.known));
            };
            if values[index].replace(value).is_some() {
                let detail = format!("there are two parameters `{name}`: leave one of them out");
                return Err(Problem::new(Code::Invalid, detail));
            }
        }
        Ok(values)
    }
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let known: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
    let known = match known.as_slice() {
        [] => "this path takes none".to_owned(),
        known => format!("there is {}", known.join(", ")),
    };
    Problem::new(Code::Invalid, format!("there is no parameter `{name}`: {known}"))
}

/// A parameter whose value is not acceptable, and what would be.
pub(super) fn refused(name: &str, value: &str, right: &str) -> Problem {
    Problem::new(Code::Invalid, format!("`{name}` is `{value}`: {right}"))
}
