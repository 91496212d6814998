//! What is typed becomes the request that is meant.

use clap::Parser;
use proto::control::{PortMapping, RestartCondition};

use super::*;
use crate::cli::{Cli, Command, Verb};

fn parse(line: &str) -> Result<Args, clap::Error> {
    let words = ["berth", "run"].into_iter().chain(line.split_whitespace());
    let Command::Client(Verb::Run(args)) = Cli::try_parse_from(words)?.command else {
        panic!("{line}");
    };
    Ok(*args)
}

/// What every run of `img` has.
fn plain() -> RunSpec {
    RunSpec { image: "img".into(), restart: Some(RestartPolicy::default()), ..RunSpec::default() }
}

#[track_caller]
fn check(line: &str, expected: RunSpec) {
    let args = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(args.spec(), expected, "{line}");
}

#[test]
fn an_image_alone_is_enough() {
    check("img", plain());
    check("-- img", plain());
}

#[test]
fn what_follows_the_image_is_the_command() {
    let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    check("img sh -c x", RunSpec { args: args(&["sh", "-c", "x"]), ..plain() });
    check("--rm img -d --rm", RunSpec { remove: true, args: args(&["-d", "--rm"]), ..plain() });
    check("img -- -x", RunSpec { args: args(&["--", "-x"]), ..plain() });
    check("img --help", RunSpec { args: args(&["--help"]), ..plain() });
    check(
        "-d img a -p 80:80",
        RunSpec { detach: true, args: args(&["a", "-p", "80:80"]), ..plain() },
    );
}

#[test]
fn dockers_flags_are_understood() {
    let port = PortMapping { container_port: 80, host_port: 8080, ..Default::default() };
    check("-p 8080:80 img", RunSpec { ports: vec![port.clone()], ..plain() });
    check("-dp8080:80 img", RunSpec { detach: true, ports: vec![port.clone()], ..plain() });
    check(
        "--publish=8080:80 --publish 8080:80 img",
        RunSpec { ports: vec![port.clone(), port], ..plain() },
    );
    let volume = |source: &str, target: &str, readonly| Volume {
        source: source.into(),
        target: target.into(),
        readonly,
    };
    check(
        "-v /a:/b:ro -v data:/c --volume=/d img",
        RunSpec {
            volumes: vec![
                volume("/a", "/b", true),
                volume("data", "/c", false),
                volume("", "/d", false),
            ],
            ..plain()
        },
    );
    check(
        "-m 64m --cpus 1.5 img",
        RunSpec { memory: 64 << 20, nano_cpus: 1_500_000_000, ..plain() },
    );
    check(
        "-u 1000:1000 -w /srv img",
        RunSpec { user: "1000:1000".into(), working_directory: "/srv".into(), ..plain() },
    );
    check(
        "--name web --hostname h img",
        RunSpec { name: "web".into(), hostname: "h".into(), ..plain() },
    );
    check("--net host img", RunSpec { network: NetworkMode::Host.into(), ..plain() });
    check("--network=none img", RunSpec { network: NetworkMode::None.into(), ..plain() });
    check(
        "--privileged --read-only img",
        RunSpec { privileged: true, readonly_rootfs: true, ..plain() },
    );
    check("--entrypoint sh img", RunSpec { entrypoint: Some("sh".into()), ..plain() });
    check("--entrypoint= img", RunSpec { entrypoint: Some(String::new()), ..plain() });
    check(
        "--restart=on-failure:3 img",
        RunSpec {
            restart: Some(RestartPolicy {
                condition: RestartCondition::OnFailure.into(),
                maximum_retries: 3,
            }),
            ..plain()
        },
    );
    check(
        "-l a=b --label c img",
        RunSpec {
            labels: [("a".into(), "b".into()), ("c".into(), String::new())].into(),
            ..plain()
        },
    );
    check(
        "--cap-add net_admin --cap-drop=ALL img",
        RunSpec {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            ..plain()
        },
    );
    check(
        "--security-opt seccomp=unconfined img",
        RunSpec { seccomp: "unconfined".into(), ..plain() },
    );
    check("--stop-signal SIGQUIT img", RunSpec { stop_signal: "SIGQUIT".into(), ..plain() });
    check(
        "--shm-size 1g --pids-limit 100 img",
        RunSpec { shm_size: 1 << 30, pids_limit: 100, ..plain() },
    );
    check("--pids-limit -1 img", plain());
    check("--pull always img", RunSpec { pull: PullPolicy::Always.into(), ..plain() });
}

#[test]
fn variables_of_flags_come_after_those_of_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("env");
    std::fs::write(&file, "A=file\nB=file\n").unwrap();
    let args = parse(&format!("-e A=flag --env-file {} -eC=d img", file.display())).unwrap();
    let found = environment(&args.env_file, &args.env).unwrap();
    assert_eq!(found, ["A=file", "B=file", "A=flag", "C=d"].map(|text| text.as_bytes().to_vec()));
}

#[track_caller]
fn refused(line: &str, flag: &str, fix: &str) {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains(flag) && text.contains(fix), "{text}");
}

#[test]
fn bad_values_name_the_flag_and_the_fix() {
    refused("", "IMAGE", "required");
    refused("-p http img", "--publish", "1 to 65535");
    refused("-v data:x img", "--volume", "absolute path");
    refused("-e =x img", "--env", "NAME=value");
    refused("-m lots img", "--memory", "such as 64m");
    refused("--cpus many img", "--cpus", "such as 2 or 0.5");
    refused("--net web img", "--network", "host, none or bridge");
    refused("--restart sometimes img", "--restart", "unless-stopped");
    refused("--pull sometimes img", "--pull", "missing");
    refused("--security-opt apparmor=x img", "--security-opt", "seccomp=unconfined");
    refused("--pids-limit few img", "--pids-limit", "-1 for no limit");
    refused("--cap-add 1 img", "--cap-add", "NET_ADMIN");
    refused("--nope img", "--nope", "");
}

#[test]
fn input_and_a_terminal_are_asked_for() {
    let both = |line: &str| {
        let spec = parse(line).unwrap().spec();
        (spec.interactive, spec.terminal)
    };
    assert_eq!(both("-it img sh"), (true, true));
    assert_eq!(both("-d -i img"), (true, false));
    assert_eq!(both("--tty img -i"), (false, true));
    assert!(parse("-it --detach-keys ctrl-a,d img").is_ok());
    refused("--detach-keys ctrl-1 img", "--detach-keys", "is no key");
}
