//! The configuration: everything that is wrong is told at once, with its place and what would be right.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use e2e::{Cx, same, test};

/// `berth serve --check` with a file and flags.
fn check(cx: &Cx, text: &str, flags: &[&str]) -> Result<Output> {
    let file = cx.scratch.disk.join("checked.toml");
    std::fs::write(&file, text)?;
    Ok(Command::new(e2e::bin_dir().join("berth"))
        .args(["serve", "--check", "--config"])
        .arg(file)
        .args(flags)
        .output()?)
}

#[test]
fn a_good_file_is_good_and_the_defaults_are() {
    test(async |cx| {
        let output = check(cx, "[log]\nlevel = \"debug\"\n", &[])?;
        ensure!(output.status.success(), "{output:?}");
        let defaults = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/config.toml");
        let output = Command::new(e2e::bin_dir().join("berth"))
            .args(["serve", "--check", "--config", defaults])
            .output()?;
        ensure!(output.status.success(), "hack/config.toml: {output:?}");
        Ok(())
    });
}

#[test]
fn every_problem_is_told_with_its_line_and_key() {
    test(async |cx| {
        let text = "root = \"relative\"\nunknown = 1\n[log]\nlevel = \"loud\"\nformt = \"json\"\n[limits]\nlayers = 0\n";
        let output = check(cx, text, &["--socket", "also/relative"])?;
        ensure!(!output.status.success(), "bad values are good");
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        for word in [
            "checked.toml:1",
            "root",
            "checked.toml:2",
            "unknown",
            "checked.toml:4",
            "loud",
            "checked.toml:5",
            "formt",
            "format",
            "checked.toml:7",
            "layers",
            "--socket",
        ] {
            ensure!(said.contains(word), "nothing about {word}:\n{said}");
        }
        Ok(())
    });
}

#[test]
fn a_file_that_is_none_ends_the_start() {
    test(async |cx| {
        for (what, text) in [
            ("no TOML", "[log\nlevel"),
            ("a wrong type", "root = 5"),
            ("a section that is a value", "log = 1"),
        ] {
            ensure!(!check(cx, text, &[])?.status.success(), "{what} is good");
            let mut command = cx.daemon.command();
            let output =
                command.arg("--config").arg(cx.scratch.disk.join("checked.toml")).output()?;
            ensure!(!output.status.success(), "{what}: the daemon starts");
            ensure!(
                String::from_utf8_lossy(&output.stderr).contains("checked.toml"),
                "{what}: {output:?}"
            );
        }
        let output = Command::new(e2e::bin_dir().join("berth"))
            .args(["serve", "--check", "--config", "/no/such/file"])
            .output()?;
        same("a file that was named and is not there", output.status.success(), false)
    });
}
