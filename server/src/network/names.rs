//! What belongs to an instance is seen from its name in the kernel.

use super::rules::BRIDGE_PREFIX;
use super::{Error, Result};

/// Names in the kernel, all from the instance id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) bridge: String,
    pub(crate) table: String,
    /// The names of all links of pods begin so.
    link_prefix: String,
    /// The instance id as a number.
    pub(crate) number: u32,
}

impl Names {
    pub(crate) fn of(instance: &str) -> Result<Names> {
        let digits = instance.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = u32::from_str_radix(instance, 16).ok().filter(|_| digits);
        match number {
            Some(number) if instance.len() == 8 => Ok(Names {
                bridge: format!("{BRIDGE_PREFIX}{instance}"),
                table: format!("{BRIDGE_PREFIX}_{instance}"),
                link_prefix: format!("b{instance}"),
                number,
            }),
            _ => Err(Error::Invalid(format!(
                "instance id {instance:?} must be eight lower-case hexadecimal digits"
            ))),
        }
    }

    /// The group of links that wait to be deleted. Never 0, which is the group of all others.
    pub(crate) fn doomed_group(&self) -> u32 {
        self.number | 1 << 31
    }

    pub(crate) fn owns_link(&self, name: &str) -> bool {
        name.len() == 15 && name.starts_with(&self.link_prefix)
    }

    /// Name of the node's end of the link of the pod with this offset in the subnet.
    pub(crate) fn link(&self, offset: u32) -> String {
        format!("{}{offset:06x}", self.link_prefix)
    }
}
