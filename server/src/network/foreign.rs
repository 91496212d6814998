//! Firewalls of others: lets our packets through where there is a place for it, and says where
//! there is none.
//!
//! A packet that is forwarded passes the forward chain of every table, and each can drop it; an
//! accept of ours is no help. docker drops what it does not know and has a chain for others to
//! say so, DOCKER-USER, where our two rules go, written as iptables would write them. ufw,
//! firewalld and hand-made rule sets have no such place: they are reported.

use std::os::fd::AsFd;

use super::netlink::Socket;
use super::nftables::{HOOK_FORWARD, Meta, NF_DROP, NFPROTO_INET, NFPROTO_IPV4, Transaction};
use super::rules::{BRIDGE_PREFIX, interface, iptables_accept};
use super::ruleset::{self, FoundChain, Rule, Step};
use super::{Result, files};

/// Table and chain of iptables-nft in which docker lets others have their say.
const FILTER: &str = "filter";
const DOCKER_USER: &str = "DOCKER-USER";
/// Table of firewalld.
const FIREWALLD: &str = "firewalld";
/// Lists the tables of the older iptables, whose rules netlink does not show.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// A firewall that drops packets from or to pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDrop {
    /// "ip", "inet" or "iptables-legacy".
    pub family: String,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// One sentence: what it does, and what to do about it.
    pub why: String,
}

impl ForeignDrop {
    /// Where it is, for people.
    pub fn place(&self) -> String {
        format!("table {} {}, chain {}", self.family, self.table, self.chain)
    }
}

/// Makes sure that DOCKER-USER, where there is one, accepts what comes from and goes to our
/// bridge. True where that was not so.
pub(crate) fn enter_docker_user<F: AsFd>(netfilter: &Socket<F>, bridge: &str) -> Result<bool> {
    if !ruleset::has_chain(netfilter, FILTER, DOCKER_USER)? {
        return Ok(false);
    }
    let rules = docker_user_rules(netfilter, bridge)?;
    let mut transaction = Transaction::begin();
    let mut missing = false;
    for (key, step) in [(Meta::OutName, Step::OutName), (Meta::InName, Step::InName)] {
        if !rules.iter().any(|rule| rule.steps.first() == Some(&step)) {
            let rule = iptables_accept(key, bridge);
            transaction.insert_iptables_rule(FILTER, DOCKER_USER, &rule);
            missing = true;
        }
    }
    if missing {
        netfilter.apply(transaction.end())?;
    }
    Ok(missing)
}

/// Takes our rules out of DOCKER-USER.
pub(crate) fn leave_docker_user<F: AsFd>(netfilter: &Socket<F>, bridge: &str) -> Result<()> {
    if !ruleset::has_chain(netfilter, FILTER, DOCKER_USER)? {
        return Ok(());
    }
    for rule in docker_user_rules(netfilter, bridge)? {
        let mut transaction = Transaction::begin();
        transaction.delete_rule(&rule);
        match netfilter.apply(transaction.end()) {
            Err(error) if error.errno() == libc::ENOENT => {} // Somebody was faster.
            deleted => deleted?,
        }
    }
    Ok(())
}

/// The rules there that accept by the name of our bridge and nothing else.
fn docker_user_rules<F: AsFd>(netfilter: &Socket<F>, bridge: &str) -> Result<Vec<Rule>> {
    let mut rules = ruleset::rules(netfilter, NFPROTO_IPV4, FILTER, Some(DOCKER_USER))?;
    rules.retain(|rule| {
        accepts(rule, &Step::InName, bridge) || accepts(rule, &Step::OutName, bridge)
    });
    Ok(rules)
}

/// The chains of others that drop packets from or to our bridge.
pub(crate) fn drops<F: AsFd>(netfilter: &Socket<F>, bridge: &str) -> Result<Vec<ForeignDrop>> {
    let chains = ruleset::chains(netfilter)?;
    let mut found = Vec::new();
    for chain in chains.iter().filter(|chain| is_foreign_forward(chain)) {
        let rules = ruleset::rules(netfilter, chain.family, &chain.table, None)?;
        found.extend(judge(chain, &rules, bridge));
    }
    let legacy = files::read_small(LEGACY_TABLES.as_ref()).ok().flatten().unwrap_or_default();
    if legacy.lines().any(|name| name == FILTER) {
        found.push(ForeignDrop {
            family: "iptables-legacy".to_owned(),
            table: FILTER.to_owned(),
            chain: "FORWARD".to_owned(),
            why: format!(
                "rules of the older iptables are loaded, which berth cannot see; if they drop, \
                 run: iptables-legacy -I FORWARD -i {bridge} -j ACCEPT; \
                 iptables-legacy -I FORWARD -o {bridge} -j ACCEPT"
            ),
        });
    }
    Ok(found)
}

fn is_foreign_forward(chain: &FoundChain) -> bool {
    let ours = chain.table.starts_with(&format!("{BRIDGE_PREFIX}_"));
    let sees_us = [NFPROTO_IPV4, NFPROTO_INET].contains(&chain.family);
    sees_us && !ours && chain.hook == Some(HOOK_FORWARD)
}

/// A base chain drops what it does not know when its policy says so, or when its last rule does
/// for everything. Rules anywhere in its table that accept our bridge in both directions mean that
/// somebody has taken care of it.
fn judge(chain: &FoundChain, rules: &[Rule], bridge: &str) -> Option<ForeignDrop> {
    let last = rules.iter().rfind(|rule| rule.chain == chain.name);
    let drops_by = if chain.policy == Some(NF_DROP) {
        "its policy is drop"
    } else if last.is_some_and(is_final_drop) {
        "its last rule drops or rejects everything"
    } else {
        return None;
    };
    let accepted = |key: Step| rules.iter().any(|rule| lets_in(rule, rules, &key, bridge));
    // firewalld asks for the way in only, and lets answers and host ports through by itself.
    let out = chain.table == FIREWALLD || accepted(Step::OutName);
    if accepted(Step::InName) && out {
        return None;
    }
    let family = if chain.family == NFPROTO_INET { "inet" } else { "ip" };
    Some(ForeignDrop {
        family: family.to_owned(),
        table: chain.table.clone(),
        chain: chain.name.clone(),
        why: format!(
            "{drops_by}, and no rule of the table accepts {bridge} in both directions; {}",
            advice(chain, rules, bridge)
        ),
    })
}

fn advice(chain: &FoundChain, rules: &[Rule], bridge: &str) -> String {
    let FoundChain { table, name, .. } = chain;
    if rules.iter().any(|rule| rule.chain.starts_with("ufw-")) {
        format!("run: ufw route allow in on {bridge}; ufw route allow out on {bridge}")
    } else if table == FIREWALLD {
        format!(
            "run: firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload"
        )
    } else if table == FILTER && chain.family == NFPROTO_IPV4 {
        format!(
            "run: iptables -I {name} -i {bridge} -j ACCEPT; iptables -I {name} -o {bridge} -j ACCEPT"
        )
    } else {
        format!("add to it: iifname {bridge} accept; oifname {bridge} accept")
    }
}

fn is_final_drop(rule: &Rule) -> bool {
    matches!(verdict(rule).as_slice(), [Step::Drop | Step::Reject])
}

/// Whether a rule accepts by the interface's name, or hands over to a chain that accepts all.
fn lets_in(rule: &Rule, rules: &[Rule], key: &Step, bridge: &str) -> bool {
    let called = match rule.steps.last() {
        Some(Step::Call(chain)) => chain,
        _ => return accepts(rule, key, bridge),
    };
    let accepts_all = |rule: &Rule| rule.chain == *called && verdict(rule) == [&Step::Accept];
    let by_name =
        Rule { steps: rule.steps.iter().map(accept_instead_of_call).collect(), ..Rule::default() };
    accepts(&by_name, key, bridge) && rules.iter().any(accepts_all)
}

fn accept_instead_of_call(step: &Step) -> Step {
    if matches!(step, Step::Call(_)) { Step::Accept } else { step.clone() }
}

/// The steps that decide.
fn verdict(rule: &Rule) -> Vec<&Step> {
    rule.steps.iter().filter(|step| **step != Step::Neutral).collect()
}

/// Whether a rule accepts by the interface's name, whole or by a beginning of it, alone.
fn accepts(rule: &Rule, key: &Step, bridge: &str) -> bool {
    match verdict(rule).as_slice() {
        [first, Step::Equal(value), Step::Accept] => {
            *first == key && interface(bridge).starts_with(value)
        }
        _ => false,
    }
}
