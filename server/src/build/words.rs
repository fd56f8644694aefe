//! The words of an instruction, and the variables in them, as a Dockerfile has them: quotes and the
//! escape character keep blanks together, `$NAME` and `${NAME}` stand for a value, `${NAME:-word}`
//! for another one if there is none, `${NAME:+word}` if there is one.

use super::BuildError;

/// What `name` stands for, if for anything.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The words of `text`, their quotes still on.
pub(super) fn split(text: &str, escape: char) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut is_escaped = false;
    for (at, character) in text.char_indices() {
        if quote.is_none() && !is_escaped && character.is_whitespace() {
            words.extend(start.take().map(|start: usize| &text[start..at]));
            continue;
        }
        start.get_or_insert(at);
        match quote {
            _ if is_escaped => is_escaped = false,
            // Between single quotes nothing is special.
            Some('\'') if character != '\'' => {}
            _ if character == escape => is_escaped = true,
            Some(open) if open == character => quote = None,
            None if matches!(character, '"' | '\'') => quote = Some(character),
            Some(_) | None => {}
        }
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

/// How deep `${NAME:-${OTHER:-…}}` may go.
const MAX_DEPTH: usize = 50;

/// A word without its quotes, its variables replaced by what they stand for.
pub(super) fn expand(word: &str, escape: char, lookup: Lookup<'_>) -> Result<String, BuildError> {
    if word.contains('\0') {
        return Err(BuildError::refused("a word has a zero byte in it"));
    }
    expand_within(word, (escape, lookup), MAX_DEPTH)
}

fn expand_within(
    word: &str,
    (escape, lookup): (char, Lookup<'_>),
    depth: usize,
) -> Result<String, BuildError> {
    let Some(depth) = depth.checked_sub(1) else {
        let why = format!("variables stand in each other, more than {MAX_DEPTH} deep");
        return Err(BuildError::refused(why));
    };
    let mut reader = Reader { rest: word, escape, lookup, depth };
    let mut expanded = String::new();
    while let Some(character) = reader.next() {
        match character {
            '\'' => loop {
                match reader.next() {
                    Some('\'') => break,
                    Some(character) => expanded.push(character),
                    None => return Err(unclosed(word, '\'')),
                }
            },
            '"' => loop {
                match reader.next() {
                    Some('"') => break,
                    Some('$') => expanded += &reader.variable(word)?,
                    Some(character) if character == escape => match reader.next() {
                        Some(next @ ('"' | '$')) => expanded.push(next),
                        Some(next) if next == escape => expanded.push(next),
                        next => expanded.extend(std::iter::once(escape).chain(next)),
                    },
                    Some(character) => expanded.push(character),
                    None => return Err(unclosed(word, '"')),
                }
            },
            '$' => expanded += &reader.variable(word)?,
            character if character == escape => expanded.extend(reader.next()),
            character => expanded.push(character),
        }
    }
    Ok(expanded)
}

struct Reader<'a> {
    rest: &'a str,
    escape: char,
    lookup: Lookup<'a>,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next();
        self.rest = characters.as_str();
        next
    }

    fn name(&mut self) -> String {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let end = self.rest.find(|character| !is_part(character)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name.to_owned()
    }

    /// What stands after a `$`.
    fn variable(&mut self, word: &str) -> Result<String, BuildError> {
        let bad = || BuildError::refused(format!("`{word}`: a `${{` is not as it should be"));
        if !self.rest.starts_with('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok((self.lookup)(&name).unwrap_or_default());
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err(bad());
        }
        let mut value = (self.lookup)(&name);
        let mut operator = self.next().ok_or_else(bad)?;
        if operator == '}' {
            return Ok(value.unwrap_or_default());
        }
        if operator == ':' {
            // With a colon, an empty value is none.
            value = value.filter(|value| !value.is_empty());
            operator = self.next().ok_or_else(bad)?;
        }
        let other = self.up_to_brace().ok_or_else(bad)?;
        let other = expand_within(other, (self.escape, self.lookup), self.depth)?;
        match (operator, value) {
            ('-', value) => Ok(value.unwrap_or(other)),
            ('+', Some(_)) => Ok(other),
            ('+', None) => Ok(String::new()),
            ('?', Some(value)) => Ok(value),
            ('?', None) => Err(BuildError::refused(format!("`{name}` is not set: {other}"))),
            _ => Err(bad()),
        }
    }

    /// The text before the brace that closes, which is taken, too.
    fn up_to_brace(&mut self) -> Option<&'a str> {
        let mut depth = 1;
        for (at, character) in self.rest.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let (text, rest) = (&self.rest[..at], &self.rest[at + 1..]);
                self.rest = rest;
                return Some(text);
            }
        }
        None
    }
}

fn unclosed(word: &str, quote: char) -> BuildError {
    BuildError::refused(format!("`{word}`: a {quote} is not closed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(word: &str) -> String {
        let lookup = |name: &str| match name {
            "A" => Some("a value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(word, '\\', &lookup).unwrap_or_else(|error| format!("error: {error}"))
    }

    #[test]
    fn blanks_part_words_unless_they_are_quoted_or_escaped() {
        let words = split(r#" a "b  c"='d "e'   f\ g "#, '\\');
        assert_eq!(words, ["a", r#""b  c"='d "e'"#, r"f\ g"]);
        assert_eq!(split("a` b", '`'), ["a` b"]);
        assert!(split("  ", '\\').is_empty());
    }

    #[test]
    fn variables_stand_for_their_values() {
        for (word, value) in [
            ("$A/${A}", "a value/a value"),
            ("'$A' \"$A\"", "$A a value"),
            ("\\$A \"\\$A\"", "$A $A"),
            ("x${NONE}y$NONE", "xy"),
            ("${NONE:-b} ${EMPTY:-b} ${EMPTY-b} ${A:-b}", "b b  a value"),
            ("${A:+b} ${NONE:+b}${EMPTY+c}", "b c"),
            ("${NONE:-${A}}", "a value"),
            ("100$ $1 a\"b\"c", "100$  abc"),
        ] {
            assert_eq!(expanded(word), value, "{word}");
        }
        let nested = "${NONE:-".repeat(60) + &"}".repeat(60);
        for word in [
            nested.as_str(),
            "a\0",
            "${",
            "${}",
            "${A",
            "${A:x}",
            "'a",
            "\"a",
            "${NONE:?it must be}",
        ] {
            assert!(expanded(word).starts_with("error: "), "{word}: {}", expanded(word));
        }
    }
}
