//! `berth version`: of this program, and of the daemon where one answers.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::{InfoRequest, InfoResponse};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{Failure, Outcome, within};
use super::human::printable;
use super::table::{print, print_json};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A daemon that is busy need not be waited for.
const DEADLINE: Duration = Duration::from_secs(2);

/// The flags of `berth version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) async fn run(args: Args) -> Outcome {
    let daemon = ask(&args.socket).await;
    if args.json {
        print_json(&document(daemon.as_ref()))?;
    } else {
        print(&lines(daemon.as_ref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(socket: &Socket) -> Result<InfoResponse, Failure> {
    let mut client = connect(socket).await?;
    Ok(within(DEADLINE, client.info(InfoRequest {})).await?.into_inner())
}

fn lines(daemon: Result<&InfoResponse, &Failure>) -> String {
    let told = match daemon {
        Err(failure) => format!("daemon: {}\n", printable(&failure.text)),
        Ok(info) => {
            let build = match info.build.as_str() {
                "" => String::new(),
                build => format!(" ({build})"),
            };
            let facts = [
                ("daemon", format!("{}{build}", info.version)),
                ("pid", info.pid.to_string()),
                ("instance", info.instance.clone()),
                ("root", info.root.clone()),
                ("state", info.state.clone()),
                ("cgroups", format!("v{}, {}", info.cgroup_version, info.cgroup_driver)),
                ("network", info.network.clone()),
            ];
            facts.map(|(name, fact)| format!("{name}: {}\n", printable(&fact))).concat()
        }
    };
    format!("berth {VERSION}\n{told}")
}

fn document(daemon: Result<&InfoResponse, &Failure>) -> Value {
    let daemon = daemon.ok().map(|info| {
        json!({
            "version": info.version,
            "build": info.build,
            "instance": info.instance,
            "root": info.root,
            "state": info.state,
            "pid": info.pid,
            "cgroupDriver": info.cgroup_driver,
            "cgroupVersion": info.cgroup_version,
            "network": info.network,
        })
    });
    json!({ "version": VERSION, "daemon": daemon })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> InfoResponse {
        InfoResponse {
            version: "0.2.0".into(),
            build: "3f2a".into(),
            instance: "0a1b".into(),
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            pid: 7,
            cgroup_driver: "cgroupfs".into(),
            cgroup_version: 2,
            network: "the built-in bridge serves".into(),
        }
    }

    #[test]
    fn the_daemon_is_told_where_it_answers() {
        let expected = format!(
            "berth {VERSION}\ndaemon: 0.2.0 (3f2a)\npid: 7\ninstance: 0a1b\nroot: /var/lib/berth\n\
             state: /run/berth\ncgroups: v2, cgroupfs\nnetwork: the built-in bridge serves\n"
        );
        assert_eq!(lines(Ok(&info())), expected);
        assert_eq!(document(Ok(&info()))["daemon"]["cgroupVersion"], 2);
    }

    #[test]
    fn without_a_daemon_our_own_is_told_with_the_reason() {
        let failure = Failure::new("no daemon at /run/x");
        assert_eq!(lines(Err(&failure)), format!("berth {VERSION}\ndaemon: no daemon at /run/x\n"));
        assert_eq!(document(Err(&failure)), json!({"version": VERSION, "daemon": null}));
    }
}
