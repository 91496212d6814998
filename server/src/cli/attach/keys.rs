//! The keys that leave a program and let it go on, `ctrl-p,ctrl-q` unless others are chosen.

/// Keys in what is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Keys {
    sequence: Vec<u8>,
    /// So many of them were typed last, and are held back.
    seen: usize,
}

impl Default for Keys {
    fn default() -> Keys {
        Keys { sequence: vec![ctrl(b'p'), ctrl(b'q')], seen: 0 }
    }
}

fn ctrl(letter: u8) -> u8 {
    letter & 0x1f
}

impl Keys {
    /// Reads docker's notation: keys with commas between them, each a character or `ctrl-` and one of `a-z@[\]^_`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in super::super) fn parse(text: &str) -> Result<Keys, String> {
        let key =
            |word: &str| match (word.as_bytes(), word.strip_prefix("ctrl-").map(str::as_bytes)) {
                ([key], _) => Ok(*key),
                (_, Some([letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')])) => Ok(ctrl(*letter)),
                _ => Err(format!(
                    "{word:?} is no key: a character, or ctrl- and one of a-z, @, [, \\, ], ^ and _"
                )),
            };
        let sequence = text.split(',').map(key).collect::<Result<_, _>>()?;
        Ok(Keys { sequence, seen: 0 })
    }

    /// Takes what was typed: what of it is for the program, and whether the keys were all there.
    pub(super) fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut rest = Vec::with_capacity(typed.len() + self.seen);
        for &byte in typed {
            if byte != self.sequence[self.seen] {
                rest.extend_from_slice(&self.sequence[..self.seen]);
                self.seen = 0;
            }
            if byte == self.sequence[self.seen] {
                self.seen += 1;
                if self.seen == self.sequence.len() {
                    return (rest, true);
                }
            } else {
                rest.push(byte);
            }
        }
        (rest, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(keys: &str, typed: &[&str], expected: &str, left: bool) {
        let mut keys = Keys::parse(keys).unwrap();
        let (mut all, mut ended) = (Vec::new(), false);
        for part in typed {
            let (rest, end) = keys.take(part.as_bytes());
            all.extend(rest);
            ended |= end;
        }
        assert_eq!((String::from_utf8(all).unwrap().as_str(), ended), (expected, left));
    }

    #[test]
    fn the_keys_are_held_back_and_end_it() {
        check("ctrl-p,ctrl-q", &["ls\n\x10\x11"], "ls\n", true);
        check("ctrl-p,ctrl-q", &["a\x10", "\x11"], "a", true);
        check("ctrl-p,ctrl-q", &["a\x10", "b"], "a\x10b", false);
        check("ctrl-p,ctrl-q", &["\x10\x10\x11"], "\x10", true);
        check("ctrl-p,ctrl-q", &["\x11\x10"], "\x11", false);
        check("a,b,ctrl-]", &["abab\x1d"], "ab", true);
    }

    #[test]
    fn dockers_notation_is_read() {
        assert_eq!(Keys::parse("ctrl-p,ctrl-q").unwrap(), Keys::default());
        assert_eq!(Keys::parse("ctrl-@,x").unwrap().sequence, [0, b'x']);
        for wrong in ["", "ctrl-", "ctrl-P", "ab", "ctrl-p,"] {
            assert!(Keys::parse(wrong).is_err(), "{wrong}");
        }
    }
}
