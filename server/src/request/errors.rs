//! What was found to be wrong with a request, all of it at once.

use super::FieldError;

/// Errors that are told at one time: nobody mends more.
const MAX_ERRORS: usize = 100;

/// What was found to be wrong so far.
#[derive(Debug)]
pub(super) struct Errors(pub(super) Vec<FieldError>);

impl Errors {
    pub(super) fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        if self.0.len() < MAX_ERRORS {
            self.0.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        }
    }

    /// The value, or its default after the error was noted.
    pub(super) fn or_default<T: Default>(&mut self, pointer: &str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|detail| {
            self.add(pointer, detail);
            T::default()
        })
    }
}
