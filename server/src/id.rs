//! Ids of sandboxes and containers: 64 lower-case hex digits, as the CRI's clients expect.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of randomness in an id.
const BYTES: usize = 32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new one, that nobody has.
            pub fn random() -> $name {
                $name(random_hex(BYTES))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// As much of it as people are shown.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }

            /// Takes an id that berth wrote itself, such as the name of one of its files.
            pub fn from_name(name: &str) -> Option<$name> {
                is_id(name).then(|| $name(name.to_owned()))
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A sandbox.
    SandboxId
}

id! {
    /// A container.
    ContainerId
}

fn is_id(text: &str) -> bool {
    text.len() == 2 * BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Random bytes as hex digits.
pub fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        let got =
            rustix::rand::getrandom(&mut random[filled..], rustix::rand::GetRandomFlags::empty());
        filled +=
            got.expect("getrandom(2) fails only for a bad address or where the kernel lacks it");
    }
    random.iter().fold(String::with_capacity(2 * bytes), |mut text, byte| {
        use fmt::Write as _;
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let (a, b) = (SandboxId::random(), SandboxId::random());
        assert!(is_id(a.as_str()));
        assert_ne!(a, b);
        assert_eq!(SandboxId::from_name(a.as_str()), Some(a));
    }

    #[test]
    fn other_names_are_no_ids() {
        for name in ["", "..", &"A".repeat(64), &"a".repeat(63)] {
            assert_eq!(ContainerId::from_name(name), None);
        }
    }
}
