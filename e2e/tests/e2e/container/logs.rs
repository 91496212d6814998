//! Logs in the CRI's format: whole lines, in order, none lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::pod::{ContainerBuilder, log_text, parse_log};
use e2e::{same, test};

#[test]
fn both_streams_are_in_the_log() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let (_, log) = cx
            .run_to_end(
                &pod,
                &ContainerBuilder::new(&image)
                    .shell("echo out; echo err >&2; printf 'a b  c\\n\\n'"),
            )
            .await?;
        same("stdout", String::from_utf8(log_text(&log, "stdout"))?, "out\na b  c\n\n")?;
        same("stderr", String::from_utf8(log_text(&log, "stderr"))?, "err\n")?;
        let mut times: Vec<&str> = log.iter().map(|record| record.time.as_str()).collect();
        times.dedup();
        ensure!(times.iter().all(|time| time.starts_with("20")), "{times:?}");
        Ok(())
    });
}

#[test]
fn the_last_words_are_in_the_log_when_the_end_is_known() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for number in 0..e2e::count(30, 500) {
            let container =
                ContainerBuilder::new(&image).shell(&format!("printf 'first\\nlast {number}'"));
            let (_, log) = cx.run_to_end(&pod, &container).await?;
            let last = log.last().context("an empty log")?;
            same(
                "last record",
                (last.full, last.content.as_slice()),
                (false, format!("last {number}").as_bytes()),
            )?;
        }
        Ok(())
    });
}

#[test]
fn long_lines_come_in_parts_of_16_kib() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image)
            .shell("head -c 40000 /dev/zero | tr '\\0' x; echo; echo short");
        let (_, log) = cx.run_to_end(&pod, &container).await?;
        let parts: Vec<(bool, usize)> =
            log.iter().map(|record| (record.full, record.content.len())).collect();
        same(
            "parts",
            parts,
            vec![(false, 16384), (false, 16384), (true, 40000 - 2 * 16384), (true, 5)],
        )
    });
}

#[test]
fn any_byte_is_logged_and_none_makes_a_record() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let line = "printf '2026-01-01T00:00:00Z stderr F fake\\n\\000\\377\\376\\r\\n\\033[1m\\n'";
        let (_, log) = cx.run_to_end(&pod, &ContainerBuilder::new(&image).shell(line)).await?;
        let expected = b"2026-01-01T00:00:00Z stderr F fake\n\0\xff\xfe\n\x1b[1m\n".to_vec();
        let text = log_text(&log, "stdout");
        // Whether the carriage return of a line's end stays is left to the runtime.
        let without: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'\r').collect();
        same("bytes", without, expected)?;
        same("stderr", log_text(&log, "stderr"), Vec::<u8>::new())
    });
}

#[test]
fn many_lines_are_all_there_in_order() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let count = e2e::count(200_000, 10_000_000);
        let container =
            ContainerBuilder::new(&image).command(&["probe", "lines", &count.to_string(), "100"]);
        let (_, log) = cx.run_to_end(&pod, &container).await?;
        same("records", log.len(), count)?;
        for (number, record) in log.iter().enumerate() {
            let start = format!("{number:010} ");
            ensure!(
                record.content.starts_with(start.as_bytes()) && record.content.len() == 100,
                "record {number}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_reopened_log_goes_on_in_the_new_file() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo end";
        let container = ContainerBuilder::new(&image).shell(script);
        let id = cx.create(&pod, &container).await?;
        cx.cri().start(&id).await?;
        let log = pod.log(&container.config);
        let mut text = Vec::new();
        for rotation in 0..10 {
            let old = log.with_extension(rotation.to_string());
            std::fs::rename(&log, &old)?;
            match cx.cri().reopen_log(&id).await {
                Ok(()) => {
                    ensure!(log.exists(), "no new file");
                    text.extend(log_text(&parse_log(&std::fs::read(&old)?)?, "stdout"));
                }
                // It has ended meanwhile: nothing is written any more, and no file was made.
                Err(status) => {
                    ensure!(!log.exists(), "{status:?}, but a new file");
                    std::fs::rename(&old, &log)?;
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cx.wait(&id).await?;
        text.extend(log_text(&parse_log(&std::fs::read(&log)?)?, "stdout"));
        let expected: String = (0..3000).map(|number| format!("line {number}\n")).collect();
        same("all lines", String::from_utf8(text)?, expected + "end\n")
    });
}

#[test]
fn a_log_that_is_rotated_under_a_fast_writer_lacks_no_line() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).command(&["seq", "1", "1000000"]);
        let id = cx.run(&pod, &container).await?;
        let log = pod.log(&container.config);
        let mut old = Vec::new();
        loop {
            let path = log.with_extension(old.len().to_string());
            std::fs::rename(&log, &path)?;
            if cx.cri().reopen_log(&id).await.is_err() {
                std::fs::rename(&path, &log)?;
                break;
            }
            let size = std::fs::metadata(&path)?.len();
            old.push((path, size));
        }
        same("exit code", cx.wait(&id).await?.exit_code, 0)?;
        ensure!(old.len() > 5, "only {} rotations", old.len());
        let size = std::fs::metadata(&log)?.len();
        let mut next = 1_u64;
        for (path, size) in old.into_iter().chain([(log, size)]) {
            let bytes = std::fs::read(&path)?;
            same("size of what was rotated, since", bytes.len(), usize::try_from(size)?)?;
            for line in String::from_utf8(log_text(&parse_log(&bytes)?, "stdout"))?.lines() {
                ensure!(line.parse() == Ok(next), "after {}: {line}", next - 1);
                next += 1;
            }
        }
        same("lines", next, 1_000_001)
    });
}

#[test]
fn a_log_is_made_by_the_start_with_a_mode_that_is_not_for_everybody() {
    test(async |cx| {
        use std::os::unix::fs::PermissionsExt;
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle();
        let id = cx.create(&pod, &container).await?;
        let log = pod.log(&container.config);
        cx.cri().start(&id).await?;
        same("mode", log.metadata()?.permissions().mode() & 0o777, 0o640)?;
        // Without a path the output is thrown away.
        let silent = ContainerBuilder::new(&image)
            .shell("echo nobody hears")
            .with(|config| config.log_path.clear());
        let id = cx.run(&pod, &silent).await?;
        same("end", cx.wait(&id).await?.exit_code, 0)?;
        let names = std::fs::read_dir(&pod.config.log_directory)?.count();
        same("log files", names, 1)
    });
}

#[test]
fn a_terminal_writes_to_stdout_alone() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image)
            .tty()
            .shell("probe tty; echo err >&2; echo $TERM; tty; ls -l /dev/console");
        let (status, log) = cx.run_to_end(&pod, &container).await?;
        same("end", status.exit_code, 0)?;
        ensure!(log.iter().all(|record| record.stream == "stdout"), "{log:?}");
        let text = String::from_utf8(log_text(&log, "stdout"))?.replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        same("output", lines[..5].to_vec(), vec!["0 tty", "1 tty", "2 tty", "err", "xterm"])?;
        ensure!(["/dev/pts/0", "/dev/console"].contains(&lines[5]), "{text}");
        ensure!(lines[6].starts_with('c'), "/dev/console is no device: {text}");
        Ok(())
    });
}

#[test]
fn stdin_is_empty_where_none_is_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let text = cx.output(&pod, &ContainerBuilder::new(&image).shell("cat; probe fds")).await?;
        let targets: Vec<&str> = text.lines().collect();
        same("descriptors", targets.len(), 3)?;
        same("stdin", targets[0], "0 /dev/null")?;
        ensure!(targets[1].starts_with("1 pipe:") && targets[2].starts_with("2 pipe:"), "{text}");
        // With stdin it waits for somebody to attach.
        let open =
            ContainerBuilder::new(&image).command(&["cat"]).with(|config| config.stdin = true);
        let id = cx.run(&pod, &open).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        same("state", cx.status(&id).await?.state, 1)
    });
}

#[test]
fn a_log_disk_that_is_full_does_not_stop_the_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let builder = cx.pod();
        std::fs::create_dir_all(&builder.config.log_directory)?;
        let dir = std::path::PathBuf::from(&builder.config.log_directory);
        nix::mount::mount(
            Some("e2e"),
            &dir,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=64k"),
        )?;
        let outcome = full_disk(cx, builder, &image).await;
        e2e::daemon::unmount_below(&dir);
        outcome
    });
}

async fn full_disk(cx: &e2e::Cx, builder: e2e::pod::PodBuilder, image: &str) -> Result<()> {
    let pod = cx.run_pod(builder).await?;
    let container = ContainerBuilder::new(image).shell("probe lines 5000 100; exit 5");
    let id = cx.run(&pod, &container).await?;
    same("end", cx.wait(&id).await?.exit_code, 5)?;
    cx.cri().remove_pod(&pod.id).await?;
    Ok(())
}
