//! What is wrong with the configuration: every problem with its place and its fix.

use std::fmt;
use std::path::PathBuf;

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the configuration file, counted from 1.
    Line(PathBuf, usize),
    /// The configuration file as a whole.
    File(PathBuf),
    /// A flag of `berth serve`.
    Flag(&'static str),
    /// What holds without file and flags.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(file, line) => write!(f, "{}:{line}", file.display()),
            Place::File(file) => write!(f, "{}", file.display()),
            Place::Flag(flag) => f.write_str(flag),
            Place::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line or flag to change.
    pub place: Place,
    /// The key with its section, such as `log.level`; empty when the problem has none.
    pub key: String,
    /// What is wrong and how to put it right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.text)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.text)
        }
    }
}

/// All problems of one configuration, in the order of their lines; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The known key (with its section) that `unknown` was probably meant to be: the same
/// word in another section, else the most similar word.
pub(super) fn did_you_mean<'k>(unknown: &str, known: &'k [String]) -> Option<&'k str> {
    let section = unknown.rsplit_once('.').map_or("", |(section, _)| section);
    let score = |key: &str| {
        let alike = strsim::normalized_damerau_levenshtein(last_word(unknown), last_word(key));
        let here = key.rsplit_once('.').map_or("", |(section, _)| section) == section;
        alike + if here { 0.01 } else { 0.0 }
    };
    let scored = known.iter().map(|key| (score(key), key));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    // More than half of the letters: "formt" is format, "colour" is nothing of ours.
    (best.0 > 0.6).then_some(best.1)
}

fn last_word(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}
