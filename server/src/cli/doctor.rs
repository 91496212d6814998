//! `berth doctor`: what the daemon finds, and what can be seen without one.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use proto::control::{Check, CheckResult, DoctorRequest};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{FAILED, Failure, Outcome, within};
use super::human::printable;
use super::table::{Table, print, print_json};
use crate::doctor;

/// The daemon gives up on a disk that hangs before this.
const DEADLINE: Duration = Duration::from_secs(60);

/// The flags of `berth doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what is not as it should be
    #[arg(short, long)]
    quiet: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut checks = match ask(&args.socket).await {
        Ok(checks) => checks,
        // Then what is wrong with the node may be why there is none.
        Err(failure) => local(&failure),
    };
    if args.quiet {
        checks.retain(|check| check.result() != CheckResult::Ok);
    }
    if args.json {
        let checks: Vec<Value> = checks.iter().map(json).collect();
        print_json(&json!({ "checks": checks }))?;
    } else {
        print(&text(&checks, has_colours()))?;
    }
    let failed = checks.iter().any(|check| check.result() == CheckResult::Failed);
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

async fn ask(socket: &Socket) -> Result<Vec<Check>, Failure> {
    let mut client = connect(socket).await?;
    Ok(within(DEADLINE, client.doctor(DoctorRequest {})).await?.into_inner().checks)
}

/// What can be seen from here, with the missing daemon in front.
fn local(failure: &Failure) -> Vec<Check> {
    let daemon = Check {
        area: "runtime".into(),
        name: "daemon".into(),
        result: CheckResult::Failed.into(),
        found: "no answer; what follows was looked at without it".into(),
        advice: failure.text.clone(),
    };
    let mut found = doctor::check(&doctor::Paths::default());
    found.push(doctor::cni(&crate::config::Config::default().network));
    std::iter::once(daemon).chain(found.into_iter().map(Check::from)).collect()
}

fn has_colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// Name and colour of a result.
fn shown(result: CheckResult) -> (&'static str, &'static str) {
    match result {
        CheckResult::Ok => ("OK", "32"),
        CheckResult::Warning => ("warning", "33"),
        CheckResult::Failed => ("failed", "31"),
    }
}

/// The table, then what to do, a line for each gap, then the sum.
fn text(checks: &[Check], colours: bool) -> String {
    let mut table = Table::new(&["RESULT", "AREA", "CHECK", "FOUND"]);
    for check in checks {
        let (result, _) = shown(check.result());
        table.row([result.into(), check.area.clone(), check.name.clone(), check.found.clone()]);
    }
    let mut text = String::new();
    let results = std::iter::once(None).chain(checks.iter().map(|check| Some(check.result())));
    for (line, result) in table.render().lines().zip(results) {
        match result.map(shown) {
            Some((name, colour)) if colours => {
                let rest = line.strip_prefix(name).unwrap_or(line);
                text.push_str(&format!("\x1b[{colour}m{name}\x1b[0m{rest}\n"));
            }
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    let gaps: Vec<&Check> = checks.iter().filter(|check| !check.advice.is_empty()).collect();
    if !gaps.is_empty() {
        text.push_str("\nWhat to do:\n");
    }
    for gap in gaps {
        let (area, name) = (printable(&gap.area), printable(&gap.name));
        text.push_str(&format!("- {area}, {name}: {}\n", printable(&gap.advice)));
    }
    text
}

fn json(check: &Check) -> Value {
    json!({
        "area": check.area,
        "name": check.name,
        "result": shown(check.result()).0.to_lowercase(),
        "found": check.found,
        "advice": check.advice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(result: CheckResult, name: &str, advice: &str) -> Check {
        Check {
            area: "kernel".into(),
            name: name.into(),
            result: result.into(),
            found: "x".into(),
            advice: advice.into(),
        }
    }

    #[test]
    fn gaps_are_listed_with_what_to_do() {
        let checks = [
            check(CheckResult::Ok, "version", ""),
            check(CheckResult::Failed, "overlay", "modprobe overlay"),
        ];
        assert_eq!(
            text(&checks, false),
            "RESULT   AREA     CHECK     FOUND\n\
             OK       kernel   version   x\n\
             failed   kernel   overlay   x\n\
             \n\
             What to do:\n\
             - kernel, overlay: modprobe overlay\n"
        );
        assert_eq!(
            text(&checks[..1], true),
            "RESULT   AREA     CHECK     FOUND\n\x1b[32mOK\x1b[0m       kernel   version   x\n"
        );
        assert_eq!(json(&checks[1])["result"], "failed");
    }

    #[test]
    fn without_a_daemon_the_node_is_looked_at_all_the_same() {
        let checks = local(&Failure::new("no daemon at /run/x"));
        assert_eq!((checks[0].name.as_str(), checks[0].result()), ("daemon", CheckResult::Failed));
        assert_eq!(checks[0].advice, "no daemon at /run/x");
        assert!(checks.len() > 10);
    }
}
