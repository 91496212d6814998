//! IPv4 subnets: text, overlap, the choice of a free one, and the addresses inside.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Error, Result};

/// An IPv4 subnet, such as 10.64.0.0/20. Its host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// Prefix lengths that make a bridge: at least five pods, at most as many as a /16 has.
const BRIDGE_PREFIXES: std::ops::RangeInclusive<u8> = 16..=29;

impl Subnet {
    /// The subnet that `address` is in. `prefix` is at most 32, more counts as 32.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Subnet {
        let prefix = prefix.min(32);
        Subnet { base: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// A subnet that can serve a bridge.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the text is no subnet, has host bits, or its prefix is not
    /// /16 to /29; says what to write instead.
    pub fn for_bridge(text: &str) -> Result<Subnet> {
        let subnet: Subnet = text.parse()?;
        if !BRIDGE_PREFIXES.contains(&subnet.prefix) {
            return Err(Error::Invalid(format!(
                "bridge_subnet {text}: the prefix must be /{} to /{}",
                BRIDGE_PREFIXES.start(),
                BRIDGE_PREFIXES.end()
            )));
        }
        let bad = subnet.base.is_loopback()
            || subnet.base.is_multicast()
            || subnet.base.is_link_local()
            || subnet.base.octets()[0] == 0
            || subnet.base.octets()[0] >= 240;
        if bad {
            return Err(Error::Invalid(format!(
                "bridge_subnet {text} is reserved; take a private one such as 10.64.0.0/20"
            )));
        }
        Ok(subnet)
    }

    /// The first address, with all host bits zero.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network mask as an address.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// The first host address, which the bridge itself has.
    pub fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !mask(self.prefix))
    }

    /// Whether the address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// How far an address of the subnet is from its first.
    pub(crate) fn offset(self, address: Ipv4Addr) -> u32 {
        address.to_bits() & !mask(self.prefix)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + offset)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or_default()
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Subnet> {
        let invalid =
            || Error::Invalid(format!("{text:?} is no IPv4 subnet; write it like 10.64.0.0/20"));
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let digits = prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if !digits || prefix > 32 {
            return Err(invalid());
        }
        let subnet = Subnet::around(address, prefix);
        if subnet.base != address {
            return Err(Error::Invalid(format!("subnet {text} has host bits; write {subnet}")));
        }
        Ok(subnet)
    }
}

/// Subnets to choose from, in the order in which they are tried.
///
/// /20 has room for four times the pods that a Linux bridge has ports (1023). Out of use by habit
/// of others: 10.88 and above (podman), 10.85 (CRI-O), 10.96 (services of kubeadm), 10.42 and 10.43
/// (k3s), 10.244 (flannel), 10.0 (Cilium, clouds), 172.16 to 172.23 (docker begins at 172.17). Each
/// instance begins elsewhere in the first block (`start` is any number of its own), so that two
/// that start at once do not collide.
pub(crate) fn candidates(start: u32) -> impl Iterator<Item = Subnet> {
    let first = (0..256).map(move |number| {
        let number = (number + start % 256) % 256;
        (Ipv4Addr::new(10, 64, 0, 0), number)
    });
    let second = (0..128).map(|number| (Ipv4Addr::new(172, 24, 0, 0), number));
    let third = (0..4).map(|number| (Ipv4Addr::new(192, 168, 192, 0), number));
    first.chain(second).chain(third).map(|(start, number)| {
        Subnet::around(Ipv4Addr::from_bits(start.to_bits() + number * 4096), 20)
    })
}

/// The first candidate that overlaps none of `taken`.
pub(crate) fn choose(start: u32, taken: &[Subnet]) -> Option<Subnet> {
    candidates(start).find(|candidate| !taken.iter().any(|used| used.overlaps(*candidate)))
}

/// The addresses of a subnet and who is free.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Subnet,
    /// A bit for each address, set when it is held.
    held: Vec<u64>,
    /// Where the search for a free address goes on: one that was given back rests until the
    /// others had their turn, so that what the world still sends to it meets nobody.
    next: u32,
}

impl Pool {
    /// A pool in which only the subnet's own three addresses are held: its first, the gateway's
    /// and the last.
    pub(crate) fn new(subnet: Subnet) -> Pool {
        let size = subnet.offset(subnet.broadcast()) + 1;
        let words = size.div_ceil(64) as usize;
        let mut pool = Pool { subnet, held: vec![0; words], next: 2 };
        for own in [subnet.base, subnet.gateway(), subnet.broadcast()] {
            pool.hold(own);
        }
        if size < 64 {
            pool.held[0] |= u64::MAX << size;
        }
        pool
    }

    /// The next free address, now held.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let size = self.subnet.offset(self.subnet.broadcast()) + 1;
        let found = self.free_in(self.next, size).or_else(|| self.free_in(0, self.next))?;
        self.next = (found + 1) % size;
        let address = self.subnet.at(found);
        self.hold(address);
        Some(address)
    }

    /// Marks an address as held. False when it is held already, or not of this subnet.
    pub(crate) fn hold(&mut self, address: Ipv4Addr) -> bool {
        let Some((word, bit)) = self.place(address) else { return false };
        let free = self.held[word] & bit == 0;
        self.held[word] |= bit;
        free
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if let Some((word, bit)) = self.place(address) {
            self.held[word] &= !bit;
        }
    }

    fn place(&self, address: Ipv4Addr) -> Option<(usize, u64)> {
        let offset = self.subnet.offset(address);
        self.subnet.contains(address).then(|| ((offset / 64) as usize, 1 << (offset % 64)))
    }

    /// The first free offset in a range, by whole words.
    fn free_in(&self, from: u32, to: u32) -> Option<u32> {
        let mut offset = from;
        while offset < to {
            let free = !self.held[(offset / 64) as usize] >> (offset % 64);
            if free != 0 {
                let found = offset + free.trailing_zeros();
                return (found < to).then_some(found);
            }
            offset = (offset / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let got = Subnet::for_bridge(text).map(|subnet| subnet.to_string());
        let got = got.map_err(|error| error.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn a_subnet_for_the_bridge_is_checked() {
        check("10.64.0.0/20", Ok("10.64.0.0/20"));
        check("10.64.0.16/28", Ok("10.64.0.16/28"));
        check("10.64.0.1/20", Err("subnet 10.64.0.1/20 has host bits; write 10.64.0.0/20"));
        check("10.64.0.0/30", Err("bridge_subnet 10.64.0.0/30: the prefix must be /16 to /29"));
        check("10.0.0.0/8", Err("bridge_subnet 10.0.0.0/8: the prefix must be /16 to /29"));
        let reserved = "is reserved; take a private one such as 10.64.0.0/20";
        check("127.1.0.0/16", Err(&format!("bridge_subnet 127.1.0.0/16 {reserved}")));
        check("0.1.0.0/16", Err(&format!("bridge_subnet 0.1.0.0/16 {reserved}")));
        for text in ["", "10.64.0.0", "10.64.0.0/", "10.64.0.0/+20", "10.64.0/20", "::/20", "a/33"]
        {
            let no = format!("{text:?} is no IPv4 subnet; write it like 10.64.0.0/20");
            check(text, Err(&no));
        }
    }

    #[test]
    fn a_subnet_that_overlaps_a_route_is_not_chosen() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        assert_eq!(choose(0, &[]), Some(subnet("10.64.0.0/20")));
        assert_eq!(choose(0, &[subnet("10.64.3.0/24")]), Some(subnet("10.64.16.0/20")));
        assert_eq!(choose(17, &[]), Some(subnet("10.65.16.0/20")));
        assert_eq!(choose(255, &[subnet("10.79.240.7/32")]), Some(subnet("10.64.0.0/20")));
        assert_eq!(choose(0, &[subnet("10.0.0.0/8")]), Some(subnet("172.24.0.0/20")));
        let private = ["10.0.0.0/8", "172.16.0.0/12"].map(subnet);
        assert_eq!(choose(9, &private), Some(subnet("192.168.192.0/20")));
        assert_eq!(choose(0, &[subnet("0.0.0.0/0")]), None);
    }

    #[test]
    fn a_small_subnet_gives_each_address_once_and_in_turn() {
        let mut pool = Pool::new("10.64.0.0/29".parse().unwrap());
        let all: Vec<String> =
            std::iter::from_fn(|| pool.take()).map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.64.0.2", "10.64.0.3", "10.64.0.4", "10.64.0.5", "10.64.0.6"]);
        pool.release(Ipv4Addr::new(10, 64, 0, 4));
        pool.release(Ipv4Addr::new(10, 64, 0, 3));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 64, 0, 3)));
        pool.release(Ipv4Addr::new(10, 64, 0, 3));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 64, 0, 4)), "the other one's turn");
    }

    #[test]
    fn an_address_of_another_subnet_is_not_held() {
        let mut pool = Pool::new("10.64.0.0/24".parse().unwrap());
        assert!(!pool.hold(Ipv4Addr::new(10, 65, 0, 9)));
        assert!(pool.hold(Ipv4Addr::new(10, 64, 0, 9)));
        assert!(!pool.hold(Ipv4Addr::new(10, 64, 0, 9)));
        assert!(!pool.hold(Ipv4Addr::new(10, 64, 0, 1)), "the gateway's");
    }

    proptest! {
        #[test]
        fn a_pool_never_gives_what_is_held(
            prefix in 20_u8..=29,
            steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 0..300),
        ) {
            let subnet = Subnet::around(Ipv4Addr::new(10, 64, 0, 0), prefix);
            let room = (1_usize << (32 - prefix)) - 3;
            let mut pool = Pool::new(subnet);
            let mut held = BTreeSet::new();
            for (take, which) in steps {
                if take {
                    match pool.take() {
                        Some(address) => {
                            prop_assert!(subnet.contains(address) && held.insert(address));
                            prop_assert!(address != subnet.gateway());
                        }
                        None => prop_assert_eq!(held.len(), room),
                    }
                } else if let Some(&address) = held.iter().nth(usize::from(which) % room) {
                    pool.release(address);
                    held.remove(&address);
                }
            }
        }
    }
}
