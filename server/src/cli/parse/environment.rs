//! Environments of containers: `--env`, `--env-file`, and what the client's own has.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// An environment is at most some hundreds of kilobytes (execve(2)).
const MAX_FILE: u64 = 1 << 20;

/// One `--env`, or one line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Variable {
    /// NAME=value.
    Set(Vec<u8>),
    /// As the client has it; nothing where it has none.
    Inherited(OsString),
}

/// Reads `NAME=value` or `NAME`. The value may be any bytes.
pub(in crate::cli) fn variable(text: OsString) -> Result<Variable, String> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    if end == Some(0) || bytes.is_empty() {
        return Err("the name is empty; write NAME=value, or NAME to pass one on".to_owned());
    }
    Ok(match end {
        Some(_) => Variable::Set(text.into_vec()),
        None => Variable::Inherited(text),
    })
}

/// Reads a file of variables: a line each, as `--env` has them; `#` begins a comment.
///
/// # Errors
/// The file cannot be read, or a line is wrong; both are named.
pub(in crate::cli) fn read_file(path: &Path) -> Result<Vec<Variable>, String> {
    let named = |problem: String| format!("--env-file {}: {problem}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(|error| named(error.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(named("is larger than 1 MiB".to_owned()));
    }
    parse_file(&text).map_err(named)
}

fn parse_file(text: &[u8]) -> Result<Vec<Variable>, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let wrong = |problem: &str| format!("line {number}: {problem}");
        let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        if name.iter().any(u8::is_ascii_whitespace) {
            return Err(wrong("the name has a space; write NAME=value"));
        }
        if line.contains(&0) {
            return Err(wrong("has a zero byte"));
        }
        variables
            .push(variable(OsStr::from_bytes(line).to_owned()).map_err(|error| wrong(&error))?);
    }
    Ok(variables)
}

/// The variables in order, those that are passed on looked up; what is not set is left out.
pub(in crate::cli) fn collect(
    variables: impl IntoIterator<Item = Variable>,
    lookup: impl Fn(&OsStr) -> Option<OsString>,
) -> Vec<Vec<u8>> {
    let bytes = |variable: Variable| match variable {
        Variable::Set(bytes) => Some(bytes),
        Variable::Inherited(name) => lookup(&name).map(|value| {
            let mut bytes = name.into_vec();
            bytes.push(b'=');
            bytes.extend(value.into_vec());
            bytes
        }),
    };
    variables.into_iter().filter_map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Variable {
        Variable::Set(text.into())
    }

    fn inherited(name: &str) -> Variable {
        Variable::Inherited(name.into())
    }

    #[test]
    fn a_variable_has_a_name_and_any_value() {
        let check = |text: &[u8], expected: Variable| {
            assert_eq!(variable(OsStr::from_bytes(text).to_owned()), Ok(expected));
        };
        check(b"A=b", set("A=b"));
        check(b"A=", set("A="));
        check(b"A=b=c d", set("A=b=c d"));
        check(b"A=\xff", Variable::Set(b"A=\xff".to_vec()));
        check(b"A", inherited("A"));
        for bad in ["", "=b", "="] {
            assert!(variable(bad.into()).unwrap_err().contains("the name is empty"), "{bad}");
        }
    }

    #[test]
    fn a_file_has_a_variable_a_line() {
        let text = b"\xef\xbb\xbfA=1\r\n\n  # comment\n  B=a # no comment\nC\nD='x'\nE=\xff";
        assert_eq!(
            parse_file(text),
            Ok(vec![
                set("A=1"),
                set("B=a # no comment"),
                inherited("C"),
                set("D='x'"),
                Variable::Set(b"E=\xff".to_vec())
            ])
        );
        assert_eq!(parse_file(b""), Ok(vec![]));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let check = |text: &[u8], expected: &str| {
            assert_eq!(parse_file(text).unwrap_err(), expected);
        };
        check(b"A=1\nB C=2", "line 2: the name has a space; write NAME=value");
        check(b"\n=2", "line 2: the name is empty; write NAME=value, or NAME to pass one on");
        check(b"A=\0", "line 1: has a zero byte");
        let missing = read_file(Path::new("/nonexistent/env")).unwrap_err();
        assert!(missing.starts_with("--env-file /nonexistent/env: No such file"), "{missing}");
    }

    #[test]
    fn what_is_passed_on_is_looked_up() {
        let lookup = |name: &OsStr| (name == "A").then(|| "x".into());
        let found = collect([inherited("A"), inherited("B"), set("C=1"), set("A=2")], lookup);
        assert_eq!(found, [b"A=x".to_vec(), b"C=1".to_vec(), b"A=2".to_vec()]);
    }
}
