//! The language of nf_tables over netlink (linux/netfilter/nf_tables.h): tables, chains, rules,
//! maps, and transactions of them. What our own table says is in `rules.rs`; reading is in
//! `ruleset.rs`.

use super::netlink::{Batch, NLM_F_APPEND, NLM_F_CREATE, Writer};
use super::ruleset::Rule;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(crate) const SUBSYSTEM: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;

const NFTA_LIST_ELEM: u16 = 1;
pub(crate) const NFTA_TABLE_NAME: u16 = 1;
pub(crate) const NFTA_CHAIN_TABLE: u16 = 1;
pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
pub(crate) const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
pub(crate) const NFTA_RULE_TABLE: u16 = 1;
pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_HANDLE: u16 = 3;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_COMPAT: u16 = 5;
const NFTA_RULE_COMPAT_PROTO: u16 = 1;
const NFTA_RULE_COMPAT_FLAGS: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFT_SET_MAP: u32 = 8;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
pub(crate) const NFTA_EXPR_NAME: u16 = 1;
pub(crate) const NFTA_EXPR_DATA: u16 = 2;
pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_DATA_VERDICT: u16 = 2;
pub(crate) const NFTA_VERDICT_CODE: u16 = 1;
pub(crate) const NFTA_VERDICT_CHAIN: u16 = 2;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = Register::First as u32;

/// Where a value is loaded to. What is looked up in a set lies in words of four bytes that follow
/// each other; an interface name fills four of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    First = 1,
    /// The four words after those of the first.
    Second = 2,
    /// Word two and three of the first register.
    Word2 = 9,
    Word3 = 10,
}

/// Bytes of an interface name in a register.
pub(crate) const NAME_SIZE: usize = 16;

pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const HOOK_FORWARD: u32 = 2;
pub(crate) const NF_DROP: u32 = 0;
pub(crate) const NF_ACCEPT: u32 = 1;

/// The end of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    Goto(&'static str),
}

impl Verdict {
    fn code(self) -> u32 {
        let negative = |number: i32| u32::from_ne_bytes(number.to_ne_bytes());
        match self {
            Verdict::Accept => NF_ACCEPT,
            Verdict::Drop => NF_DROP,
            Verdict::Jump(_) => negative(-3),
            Verdict::Goto(_) => negative(-4),
            Verdict::Return => negative(-5),
        }
    }

    fn chain(self) -> Option<&'static str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        }
    }
}

/// What can be loaded about a packet. The numbers are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    InName = 6,
    OutName = 7,
    Layer4Protocol = 16,
    InKind = 26,
    OutKind = 27,
}

/// Where bytes of a packet are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Network = 1,
    Transport = 2,
}

/// What can be loaded about the connection of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    State = 0,
    Status = 2,
}

/// One step of a rule. Steps that name no register work on the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    Meta {
        key: Meta,
        to: Register,
    },
    Payload {
        header: Header,
        offset: u32,
        length: u32,
        to: Register,
    },
    Connection(Connection),
    /// Type of the destination address by the routing tables.
    DestinationType,
    Mask([u8; 4]),
    Compare {
        equal: bool,
        value: Vec<u8>,
    },
    /// Whether a set has the register's value.
    InSet {
        set: &'static str,
        wanted: bool,
    },
    /// Replaces the register's value by what a map has for it.
    Map(&'static str),
    /// Translates the destination to the address and port in the register.
    TranslateDestination,
    Masquerade {
        random: bool,
    },
    Counter,
    End(Verdict),
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Expression::Meta { .. } => "meta",
            Expression::Payload { .. } => "payload",
            Expression::Connection(_) => "ct",
            Expression::DestinationType => "fib",
            Expression::Mask(_) => "bitwise",
            Expression::Compare { .. } => "cmp",
            Expression::InSet { .. } | Expression::Map(_) => "lookup",
            Expression::TranslateDestination => "nat",
            Expression::Masquerade { .. } => "masq",
            Expression::Counter => "counter",
            Expression::End(_) => "immediate",
        }
    }

    /// The attributes of each kind count from 1, in the order of nf_tables.h.
    fn write(&self, data: &mut Writer<'_>) {
        match self {
            Expression::Meta { key, to } => {
                data.u32_be(2, *key as u32);
                data.u32_be(1, *to as u32);
            }
            Expression::Payload { header, offset, length, to } => {
                data.u32_be(1, *to as u32);
                data.u32_be(2, *header as u32);
                data.u32_be(3, *offset);
                data.u32_be(4, *length);
            }
            Expression::Connection(key) => {
                data.u32_be(2, *key as u32);
                data.u32_be(1, REGISTER);
            }
            Expression::DestinationType => {
                data.u32_be(3, 2); // NFTA_FIB_F_DADDR
                data.u32_be(2, 3); // NFT_FIB_RESULT_ADDRTYPE
                data.u32_be(1, REGISTER);
            }
            Expression::Mask(mask) => {
                data.u32_be(1, REGISTER);
                data.u32_be(2, REGISTER);
                data.u32_be(3, 4);
                data.nest(4, |value| value.bytes(NFTA_DATA_VALUE, mask));
                data.nest(5, |value| value.bytes(NFTA_DATA_VALUE, &[0; 4]));
            }
            Expression::Compare { equal, value } => {
                data.u32_be(1, REGISTER);
                data.u32_be(2, u32::from(!equal));
                data.nest(3, |nest| nest.bytes(NFTA_DATA_VALUE, value));
            }
            Expression::InSet { set, wanted } => {
                data.text(1, set);
                data.u32_be(2, REGISTER);
                data.u32_be(5, u32::from(!wanted)); // NFT_LOOKUP_F_INV
            }
            Expression::Map(map) => {
                data.text(1, map);
                data.u32_be(2, REGISTER);
                data.u32_be(3, REGISTER);
            }
            Expression::TranslateDestination => {
                data.u32_be(1, 1); // NFT_NAT_DNAT
                data.u32_be(2, u32::from(NFPROTO_IPV4));
                data.u32_be(3, REGISTER);
                data.u32_be(5, Register::Word2 as u32);
            }
            Expression::Masquerade { random } => {
                if *random {
                    data.u32_be(1, 0x10); // NF_NAT_RANGE_PROTO_RANDOM_FULLY
                }
            }
            Expression::Counter => {
                data.bytes(1, &[0; 8]);
                data.bytes(2, &[0; 8]);
            }
            Expression::End(verdict) => write_verdict(data, *verdict),
        }
    }
}

fn write_verdict(data: &mut Writer<'_>, verdict: Verdict) {
    data.u32_be(1, VERDICT_REGISTER);
    data.nest(2, |value| {
        value.nest(NFTA_DATA_VERDICT, |nest| {
            nest.u32_be(NFTA_VERDICT_CODE, verdict.code());
            if let Some(chain) = verdict.chain() {
                nest.text(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    /// "filter" or "nat".
    pub(crate) kind: &'static str,
    /// Number of the hook: 0 prerouting, 2 forward, 3 output, 4 postrouting.
    pub(crate) number: u32,
    /// Lower is called first.
    pub(crate) priority: i32,
}

/// A chain and its rules. Without a hook it is only called by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Vec<Expression>>,
}

/// A set, or a map where it has data. The types are those of the program nft, which it needs to
/// print them; several fields are six bits each, the last one lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key_type: u32,
    pub(crate) key_length: u32,
    /// Type and length.
    pub(crate) data: Option<(u32, u32)>,
}

/// Messages that take effect together or not at all.
#[derive(Debug)]
pub(crate) struct Transaction(Batch);

impl Transaction {
    pub(crate) fn begin() -> Transaction {
        let mut batch = Batch::transaction();
        let doing = "begin a transaction of nf_tables";
        batch.message(NFNL_MSG_BATCH_BEGIN, 0, doing, &batch_header(), |_| {});
        Transaction(batch)
    }

    /// The finished batch.
    pub(crate) fn end(self) -> Batch {
        let Transaction(mut batch) = self;
        let doing = "commit a transaction of nf_tables";
        batch.message(NFNL_MSG_BATCH_END, 0, doing, &batch_header(), |_| {});
        batch
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        doing: String,
        body: impl FnOnce(&mut Writer<'_>),
    ) {
        let kind = SUBSYSTEM << 8 | kind;
        self.0.message(kind, flags, doing, &family_header(NFPROTO_IPV4), body);
    }

    /// Makes a table of family ip; one that exists is left as it is.
    pub(crate) fn make_table(&mut self, table: &str) {
        let doing = format!("make nf_tables table ip {table}");
        self.message(NFT_MSG_NEWTABLE, NLM_F_CREATE, doing, |body| {
            body.text(NFTA_TABLE_NAME, table);
        });
    }

    /// Deletes a table with all that is in it.
    pub(crate) fn delete_table(&mut self, table: &str) {
        let doing = format!("delete nf_tables table ip {table}");
        self.message(NFT_MSG_DELTABLE, 0, doing, |body| body.text(NFTA_TABLE_NAME, table));
    }

    /// Makes an empty set or map.
    pub(crate) fn make_set(&mut self, table: &str, set: &Set) {
        let doing = format!("make set {} in table ip {table}", set.name);
        self.message(NFT_MSG_NEWSET, NLM_F_CREATE, doing, |body| {
            body.text(NFTA_SET_TABLE, table);
            body.text(NFTA_SET_NAME, set.name);
            body.u32_be(NFTA_SET_FLAGS, if set.data.is_some() { NFT_SET_MAP } else { 0 });
            body.u32_be(NFTA_SET_KEY_TYPE, set.key_type);
            body.u32_be(NFTA_SET_KEY_LEN, set.key_length);
            if let Some((kind, length)) = set.data {
                body.u32_be(NFTA_SET_DATA_TYPE, kind);
                body.u32_be(NFTA_SET_DATA_LEN, length);
            }
            body.u32_be(NFTA_SET_ID, 1); // Must be there; we refer to sets by name.
        });
    }

    /// Makes a chain without its rules.
    pub(crate) fn make_chain(&mut self, table: &str, chain: &Chain) {
        let doing = format!("make chain {} in table ip {table}", chain.name);
        self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, doing, |body| {
            body.text(NFTA_CHAIN_TABLE, table);
            body.text(NFTA_CHAIN_NAME, chain.name);
            if let Some(hook) = chain.hook {
                body.nest(NFTA_CHAIN_HOOK, |nest| {
                    nest.u32_be(NFTA_HOOK_HOOKNUM, hook.number);
                    nest.bytes(NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes());
                });
                body.text(NFTA_CHAIN_TYPE, hook.kind);
                body.u32_be(NFTA_CHAIN_POLICY, NF_ACCEPT);
            }
        });
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn append_rule(&mut self, table: &str, chain: &str, rule: &[Expression]) {
        let doing = format!("add a rule to chain {chain} of table ip {table}");
        self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, doing, |body| {
            write_rule(body, table, chain, rule);
        });
    }

    /// Adds a rule at the beginning of a chain of iptables-nft, marked as one of its own.
    pub(crate) fn insert_iptables_rule(&mut self, table: &str, chain: &str, rule: &[Expression]) {
        let doing = format!("add a rule to chain {chain} of table ip {table}");
        self.message(NFT_MSG_NEWRULE, NLM_F_CREATE, doing, |body| {
            write_rule(body, table, chain, rule);
            body.nest(NFTA_RULE_COMPAT, |compat| {
                compat.u32_be(NFTA_RULE_COMPAT_PROTO, 0);
                compat.u32_be(NFTA_RULE_COMPAT_FLAGS, 0);
            });
        });
    }

    /// Deletes one rule.
    pub(crate) fn delete_rule(&mut self, rule: &Rule) {
        let Rule { table, chain, .. } = rule;
        let doing = format!("delete a rule of chain {chain} of table ip {table}");
        self.message(NFT_MSG_DELRULE, 0, doing, |body| {
            body.text(NFTA_RULE_TABLE, table);
            body.text(NFTA_RULE_CHAIN, chain);
            body.bytes(NFTA_RULE_HANDLE, &rule.handle.to_be_bytes());
        });
    }

    /// Adds elements, (key, data), to a set or map. One that is there with the same data is fine.
    pub(crate) fn add_elements(&mut self, table: &str, set: &str, elements: &[Element]) {
        let doing = format!("add to {set} of table ip {table}");
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, doing, (table, set), elements);
    }

    /// Deletes elements by their keys. All of them must be there.
    pub(crate) fn delete_elements(&mut self, table: &str, set: &str, elements: &[Element]) {
        let doing = format!("delete from {set} of table ip {table}");
        self.elements(NFT_MSG_DELSETELEM, 0, doing, (table, set), elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        doing: String,
        (table, set): (&str, &str),
        elements: &[Element],
    ) {
        for some in elements.chunks(ELEMENTS_AT_ONCE) {
            self.message(kind, flags, doing.clone(), |body| {
                body.text(NFTA_SET_ELEM_LIST_TABLE, table);
                body.text(NFTA_SET_ELEM_LIST_SET, set);
                body.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    for element in some {
                        list.nest(NFTA_LIST_ELEM, |nest| write_element(nest, element));
                    }
                });
            });
        }
    }
}

/// Key and, in a map, data.
pub(crate) type Element = (Vec<u8>, Option<Vec<u8>>);

/// The list of elements is an attribute, which holds 64 KiB; an element of ours has at most 80
/// bytes.
const ELEMENTS_AT_ONCE: usize = 700;

fn write_element(nest: &mut Writer<'_>, (key, data): &Element) {
    nest.nest(NFTA_SET_ELEM_KEY, |value| value.bytes(NFTA_DATA_VALUE, key));
    if let Some(data) = data {
        nest.nest(NFTA_SET_ELEM_DATA, |value| value.bytes(NFTA_DATA_VALUE, data));
    }
}

fn write_rule(body: &mut Writer<'_>, table: &str, chain: &str, rule: &[Expression]) {
    body.text(NFTA_RULE_TABLE, table);
    body.text(NFTA_RULE_CHAIN, chain);
    body.nest(NFTA_RULE_EXPRESSIONS, |list| {
        for expression in rule {
            list.nest(NFTA_LIST_ELEM, |nest| {
                nest.text(NFTA_EXPR_NAME, expression.name());
                nest.nest(NFTA_EXPR_DATA, |data| expression.write(data));
            });
        }
    });
}

/// `struct nfgenmsg` of a message about a family.
pub(crate) fn family_header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// `struct nfgenmsg` around a transaction: the subsystem in network byte order.
fn batch_header() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}
