//! Arguments and environment: what `execve` takes, and no more.

use std::collections::BTreeMap;

use lazaret_sandbox::spec::{MAX_ARGUMENT_BYTES, MAX_ARGUMENT_LENGTH};

use super::errors::Errors;
use super::escaped;

/// Checks the variables written at `pointer`.
pub(super) fn check_env(pointer: &str, env: &BTreeMap<String, String>, errors: &mut Errors) {
    for (name, value) in env {
        let at = format!("{pointer}/{}", escaped(name));
        if name.is_empty() || name.contains(['=', '\0']) {
            errors.add(at, "a name must not be empty and not contain `=` or NUL");
        } else if value.contains('\0') {
            errors.add(at, "a value must not contain NUL");
        } else if name.len() + 1 + value.len() > MAX_ARGUMENT_LENGTH {
            errors.add(at, format!("name and value have at most {MAX_ARGUMENT_LENGTH} bytes"));
        }
    }
}

/// Checks the program and its arguments written at `pointer`.
pub(super) fn check_command(pointer: &str, command: &[String], errors: &mut Errors) {
    if command.first().is_none_or(String::is_empty) {
        errors.add(pointer, "the first entry names the program, so there must be one");
    }
    for (index, argument) in command.iter().enumerate() {
        if argument.contains('\0') {
            errors.add(format!("{pointer}/{index}"), "an argument must not contain NUL");
        } else if argument.len() > MAX_ARGUMENT_LENGTH {
            let length = argument.len();
            errors.add(
                format!("{pointer}/{index}"),
                format!("an argument has at most {MAX_ARGUMENT_LENGTH} bytes, this one {length}"),
            );
        }
    }
}

/// Checks arguments and environment together, as the kernel counts them.
pub(super) fn check_size(
    pointer: &str,
    command: &[String],
    env: &BTreeMap<String, String>,
    errors: &mut Errors,
) {
    // Each is a string with its NUL and a pointer to it; a variable has a `=` besides.
    const STRING_COST: usize = 1 + size_of::<usize>();
    let arguments: usize = command.iter().map(|argument| argument.len() + STRING_COST).sum();
    let variables = env.iter().map(|(name, value)| name.len() + 1 + value.len() + STRING_COST);
    let bytes = arguments + variables.sum::<usize>();
    if bytes > MAX_ARGUMENT_BYTES {
        errors.add(
            pointer,
            format!(
                "arguments and environment have {bytes} bytes together, at most \
                 {MAX_ARGUMENT_BYTES} are allowed: send large values as `files` or `stdin`"
            ),
        );
    }
}
