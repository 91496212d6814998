//! `berth stats`: what containers use, measured again every second.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use proto::control::{ContainerStats, StatsRequest};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{Failure, Outcome};
use super::human::{self, binary_size, size};
use super::table::{Table, print, print_json};
use crate::shown;

/// Home, clear below: what was there is drawn over, so nothing flickers.
const HOME: &str = "\x1b[H\x1b[J";

/// The flags of `berth stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Once, after the second that processor time is measured over
    #[arg(long)]
    no_stream: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// One JSON document, once
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
    /// Containers, by id, beginning of an id, or name [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn run(args: Args) -> Outcome {
    let once = args.no_stream || args.json;
    let mut client = connect(&args.socket).await?;
    let request = StatsRequest { containers: args.containers, follow: true };
    let mut answers = client.stats(request).await?.into_inner();
    let mut before = HashMap::new();
    let mut first = true;
    while let Some(answer) = answers.message().await? {
        let rows: Vec<Row<'_>> = answer.stats.iter().map(|now| row(&before, now)).collect();
        // One sample says nothing of the processor, so the first is not shown to whoever sees one only.
        if !(once && first) || rows.is_empty() {
            show(&rows, args.json, args.no_trunc, !once && io::stdout().is_terminal())?;
            if once {
                return Ok(ExitCode::SUCCESS);
            }
        }
        before = answer.stats.into_iter().map(|stats| (stats.id.clone(), stats)).collect();
        first = false;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(rows: &[Row<'_>], as_json: bool, whole: bool, redraw: bool) -> Result<(), Failure> {
    if as_json {
        let stats: Vec<Value> = rows.iter().map(json).collect();
        return print_json(&json!({ "stats": stats }));
    }
    let table = table(rows, whole).render();
    if redraw { print(&format!("{HOME}{table}")) } else { print(&table) }
}

/// A measurement, and what the one before makes of it.
struct Row<'a> {
    stats: &'a ContainerStats,
    /// Percent of one processor.
    cpu: Option<f64>,
}

fn row<'a>(before: &HashMap<String, ContainerStats>, stats: &'a ContainerStats) -> Row<'a> {
    Row { stats, cpu: before.get(&stats.id).and_then(|before| cpu(before, stats)) }
}

/// Processor time between two samples by the time between them, in percent. A container that
/// began anew has used less than before.
fn cpu(before: &ContainerStats, now: &ContainerStats) -> Option<f64> {
    let elapsed = u64::try_from(now.timestamp.checked_sub(before.timestamp)?).ok()?;
    let used = now.cpu_usage.checked_sub(before.cpu_usage)?;
    // Tenths of a permille, whole, then shown: no precision is lost on the way.
    let share = u128::from(used) * 10_000 / u128::from(elapsed).max(1);
    (elapsed > 0).then(|| f64::from(u32::try_from(share).unwrap_or(u32::MAX)) / 100.0)
}

fn share(part: u64, whole: u64) -> Option<f64> {
    let share = u128::from(part) * 10_000 / u128::from(whole).max(1);
    (whole > 0).then(|| f64::from(u32::try_from(share).unwrap_or(u32::MAX)) / 100.0)
}

fn table(rows: &[Row<'_>], whole: bool) -> Table {
    let mut table = Table::new(&[
        "CONTAINER ID",
        "NAME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "PIDS",
    ]);
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}%"));
    for Row { stats, cpu } in rows {
        let limit = match stats.memory_limit {
            0 => "-".to_owned(),
            limit => binary_size(limit),
        };
        table.row([
            human::id(&stats.id, whole),
            stats.name.clone(),
            percent(*cpu),
            format!("{} / {limit}", binary_size(stats.memory_working_set)),
            percent(share(stats.memory_working_set, stats.memory_limit)),
            format!("{} / {}", size(stats.network_received), size(stats.network_sent)),
            format!("{} / {}", size(stats.block_read), size(stats.block_written)),
            stats.processes.to_string(),
        ]);
    }
    table
}

fn json(row: &Row<'_>) -> Value {
    let stats = row.stats;
    json!({
        "id": stats.id,
        "name": stats.name,
        "timestamp": shown::time(stats.timestamp),
        "cpuPercent": row.cpu,
        "cpuUsageNanoseconds": stats.cpu_usage,
        "memoryWorkingSetBytes": stats.memory_working_set,
        "memoryLimitBytes": (stats.memory_limit > 0).then_some(stats.memory_limit),
        "processes": stats.processes,
        "networkReceivedBytes": stats.network_received,
        "networkSentBytes": stats.network_sent,
        "blockReadBytes": stats.block_read,
        "blockWrittenBytes": stats.block_written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: i64, cpu_usage: u64) -> ContainerStats {
        ContainerStats {
            id: "0123456789abcdef".repeat(4),
            name: "web".into(),
            timestamp: seconds * 1_000_000_000,
            cpu_usage,
            memory_working_set: 32 << 20,
            memory_limit: 64 << 20,
            processes: 3,
            network_received: 1200,
            network_sent: 5_600_000,
            block_read: 0,
            block_written: 4096,
        }
    }

    #[track_caller]
    fn check_cpu(before: ContainerStats, now: ContainerStats, expected: Option<f64>) {
        assert_eq!(cpu(&before, &now), expected);
    }

    #[test]
    fn processor_time_is_measured_between_two_samples() {
        check_cpu(sample(1, 0), sample(2, 500_000_000), Some(50.0));
        check_cpu(sample(1, 0), sample(3, 3_000_000_000), Some(150.0));
        check_cpu(sample(1, 5), sample(2, 5), Some(0.0));
        check_cpu(sample(1, 0), sample(2, 123_400), Some(0.01));
        check_cpu(sample(1, 0), sample(1, 5), None);
        check_cpu(sample(2, 0), sample(1, 5), None);
        check_cpu(sample(1, 5), sample(2, 0), None);
    }

    #[test]
    fn a_container_has_a_row() {
        let (before, now) = (sample(1, 0), sample(2, 12_500_000));
        let known = HashMap::from([(before.id.clone(), before)]);
        let free = ContainerStats { id: "ff".into(), memory_limit: 0, ..now.clone() };
        let rows = [row(&known, &now), row(&known, &free)];
        assert_eq!(
            table(&rows, false).render(),
            "CONTAINER ID   NAME   CPU %   MEM USAGE / LIMIT   MEM %    NET I/O           BLOCK I/O     PIDS\n\
             0123456789ab   web    1.25%   32.0MiB / 64.0MiB   50.00%   1.20kB / 5.60MB   0B / 4.09kB   3\n\
             ff             web    -       32.0MiB / -         -        1.20kB / 5.60MB   0B / 4.09kB   3\n"
        );
    }

    #[test]
    fn json_says_null_where_nothing_is_known() {
        let now = ContainerStats { memory_limit: 0, ..sample(2, 5) };
        let found = json(&row(&HashMap::new(), &now));
        assert_eq!(found["cpuPercent"], Value::Null);
        assert_eq!(found["memoryLimitBytes"], Value::Null);
        assert_eq!(found["cpuUsageNanoseconds"], 5);
    }
}
