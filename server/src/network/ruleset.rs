//! What the kernel's nf_tables hold, as far as we must know it: our own table, and chains and
//! rules of others that decide about our packets.

use std::os::fd::AsFd;

use super::netlink::{
    Attributes, Batch, Message, NLM_F_DUMP, Socket, Writer, malformed, read_text, read_u32_be,
};
use super::nftables::{
    Meta, NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_HOOK_HOOKNUM, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE,
    NFTA_TABLE_NAME, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE, SUBSYSTEM, family_header,
};
use super::{Error, Result};

const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;

const FAMILY_HEADER: usize = 4;

/// A chain that the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Number of the hook of a base chain.
    pub(crate) hook: Option<u32>,
    /// NF_ACCEPT or NF_DROP, of a base chain.
    pub(crate) policy: Option<u32>,
}

/// All chains of all families.
pub(crate) fn chains<F: AsFd>(socket: &Socket<F>) -> Result<Vec<FoundChain>> {
    let request = || get(NFT_MSG_GETCHAIN, NLM_F_DUMP, "list chains of nf_tables", 0, |_| {});
    socket.dump(request, |message| read_chain(message).map(Some))
}

fn read_chain(message: Message<'_>) -> Result<FoundChain> {
    let (header, attributes) = message.split(FAMILY_HEADER)?;
    let mut chain = FoundChain { family: header[0], ..FoundChain::default() };
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            NFTA_CHAIN_TABLE => chain.table = read_text(value).into_owned(),
            NFTA_CHAIN_NAME => chain.name = read_text(value).into_owned(),
            NFTA_CHAIN_HOOK => {
                chain.hook = Attributes(value).find(NFTA_HOOK_HOOKNUM)?.and_then(read_u32_be);
            }
            NFTA_CHAIN_POLICY => chain.policy = read_u32_be(value),
            _ => {}
        }
    }
    Ok(chain)
}

/// A rule that the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) table: String,
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) steps: Vec<Step>,
}

/// What we look for in the rules of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The name of the interface the packet came in by.
    InName,
    /// The name of the interface the packet goes out by.
    OutName,
    /// Equal to these bytes.
    Equal(Vec<u8>),
    Accept,
    Drop,
    Reject,
    /// Goes on in this chain.
    Call(String),
    /// Changes nothing about where a packet goes.
    Neutral,
    /// Anything else.
    Other,
}

/// The rules of a table, or of one of its chains.
pub(crate) fn rules<F: AsFd>(
    socket: &Socket<F>,
    family: u8,
    table: &str,
    chain: Option<&str>,
) -> Result<Vec<Rule>> {
    let doing = format!("list the rules of table {table}");
    let request = || {
        get(NFT_MSG_GETRULE, NLM_F_DUMP, doing.clone(), family, |body| {
            body.text(NFTA_RULE_TABLE, table);
            if let Some(chain) = chain {
                body.text(NFTA_RULE_CHAIN, chain);
            }
        })
    };
    socket.dump(request, |message| read_rule(message).map(Some))
}

fn read_rule(message: Message<'_>) -> Result<Rule> {
    let (_, attributes) = message.split(FAMILY_HEADER)?;
    let mut rule = Rule::default();
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            NFTA_RULE_TABLE => rule.table = read_text(value).into_owned(),
            NFTA_RULE_CHAIN => rule.chain = read_text(value).into_owned(),
            NFTA_RULE_HANDLE => {
                rule.handle = u64::from_be_bytes(value.try_into().map_err(|_| malformed())?);
            }
            NFTA_RULE_EXPRESSIONS => {
                for element in Attributes(value) {
                    rule.steps.push(read_step(Attributes(element?.1))?);
                }
            }
            _ => {}
        }
    }
    Ok(rule)
}

fn read_step(expression: Attributes<'_>) -> Result<Step> {
    let name = read_text(expression.find(NFTA_EXPR_NAME)?.unwrap_or_default());
    let data = Attributes(expression.find(NFTA_EXPR_DATA)?.unwrap_or_default());
    let key = |kind| Ok::<_, Error>(data.find(kind)?.and_then(read_u32_be));
    Ok(match name.as_ref() {
        "meta" if key(2)? == Some(Meta::InName as u32) => Step::InName,
        "meta" if key(2)? == Some(Meta::OutName as u32) => Step::OutName,
        "cmp" if key(2)? == Some(0) => {
            let value = Attributes(data.find(3)?.unwrap_or_default());
            Step::Equal(value.find(NFTA_DATA_VALUE)?.unwrap_or_default().to_vec())
        }
        "immediate" => {
            let value = Attributes(data.find(2)?.unwrap_or_default());
            let verdict = Attributes(value.find(NFTA_DATA_VERDICT)?.unwrap_or_default());
            match verdict.find(NFTA_VERDICT_CODE)?.and_then(read_u32_be) {
                Some(NF_ACCEPT) => Step::Accept,
                Some(NF_DROP) => Step::Drop,
                _ => match verdict.find(NFTA_VERDICT_CHAIN)? {
                    Some(chain) => Step::Call(read_text(chain).into_owned()),
                    None => Step::Other,
                },
            }
        }
        "reject" => Step::Reject,
        "counter" | "log" => Step::Neutral,
        // iptables-nft writes REJECT and comments as extensions of its own.
        "target" if data.find(1)?.is_some_and(|name| read_text(name) == "REJECT") => Step::Reject,
        "match" if data.find(1)?.is_some_and(|name| read_text(name) == "comment") => Step::Neutral,
        _ => Step::Other,
    })
}

/// Whether there is a table of family ip with this name.
pub(crate) fn has_table<F: AsFd>(socket: &Socket<F>, table: &str) -> Result<bool> {
    let doing = format!("look for nf_tables table ip {table}");
    exists(socket.apply(get(NFT_MSG_GETTABLE, 0, doing, NFPROTO_IPV4, |body| {
        body.text(NFTA_TABLE_NAME, table);
    })))
}

/// Whether a table of family ip has a chain with this name.
pub(crate) fn has_chain<F: AsFd>(socket: &Socket<F>, table: &str, chain: &str) -> Result<bool> {
    let doing = format!("look for chain {chain} of nf_tables table ip {table}");
    exists(socket.apply(get(NFT_MSG_GETCHAIN, 0, doing, NFPROTO_IPV4, |body| {
        body.text(NFTA_CHAIN_TABLE, table);
        body.text(NFTA_CHAIN_NAME, chain);
    })))
}

fn exists(asked: Result<()>) -> Result<bool> {
    match asked {
        Err(error) if error.errno() == libc::ENOENT => Ok(false),
        asked => asked.map(|()| true),
    }
}

fn get(
    kind: u16,
    flags: u16,
    doing: impl Into<std::borrow::Cow<'static, str>>,
    family: u8,
    body: impl FnOnce(&mut Writer<'_>),
) -> Batch {
    let mut batch = Batch::default();
    batch.message(SUBSYSTEM << 8 | kind, flags, doing, &family_header(family), body);
    batch
}
