//! Requests become what is wanted: all validation of the CRI's messages, and nothing else.

pub mod container;
pub mod local;
pub mod sandbox;

use crate::error::{Error, Result};

/// Longest text of a name, label or path that is taken.
const MAX_TEXT: usize = 4096;

/// A part of a message that must be there.
fn required<T>(part: Option<T>, field: &str) -> Result<T> {
    part.ok_or_else(|| Error::invalid(field, "is missing"))
}

/// A name: not empty, and nothing that could be taken for a path or a second line.
fn name(text: String, field: &str) -> Result<String> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if text.len() > MAX_TEXT
        || text.contains('/')
        || text == "."
        || text == ".."
        || text.chars().any(char::is_control)
    {
        return Err(Error::invalid(
            field,
            "must be a name: at most 4096 bytes, no slash, no control characters",
        ));
    }
    Ok(text)
}

/// An absolute path without `..`.
fn absolute_path(text: String, field: &str) -> Result<String> {
    if !text.starts_with('/') {
        return Err(Error::invalid(field, format!("{:?} must be an absolute path", shown(&text))));
    }
    plain_path(text, field)
}

/// A path without `..`, NUL and endless length.
fn plain_path(text: String, field: &str) -> Result<String> {
    if text.split('/').any(|part| part == "..") {
        return Err(Error::invalid(field, format!("{:?} must not contain ..", shown(&text))));
    }
    if text.len() > MAX_TEXT || text.contains('\0') {
        return Err(Error::invalid(field, "must be at most 4096 bytes, without NUL"));
    }
    Ok(text)
}

/// An absolute path with its `.` and `..` resolved by their text, as `path.Clean` of Go has it.
fn clean_path(text: String, field: &str) -> Result<String> {
    if !text.starts_with('/') {
        return Err(Error::invalid(field, format!("{:?} must be an absolute path", shown(&text))));
    }
    if text.len() > MAX_TEXT || text.contains('\0') {
        return Err(Error::invalid(field, "must be at most 4096 bytes, without NUL"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Text of the request in an error: not all of it.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

/// An id of a user or a group: -1 is none.
fn numeric_id(value: i64, field: &str) -> Result<u32> {
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| Error::invalid(field, format!("{value} must be 0 to 4294967294")))
}
