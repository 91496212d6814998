//! One run of a CNI plugin: a program with a configuration on its standard input, a bounded answer, and a deadline.
//!
//! What it leaves running when it ends or is ended goes with it: a plugin has a process group of its own. A daemon
//! that is killed leaves the plugin it had started; [`RunFile`] is how the next one finds and ends that before it
//! does anything else to the same attachment.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{Doing, Error, Result};
use crate::store::gone_is_fine;

/// The longest answer: a result with thousands of routes is well below.
pub const MAX_OUTPUT: usize = 1 << 20;
/// What is kept of its standard error, for messages: the end.
pub const MAX_LOG: usize = 8 << 10;
/// A killed process is gone after this, or hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// What a service manager tells the daemon alone, and what is the daemon's own.
const NOT_THEIRS: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "BERTH_SOCKET",
    "BERTH_LOG",
];
/// For a daemon that was started without one: plugins call iptables and the like.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A run that is wanted.
#[derive(Debug)]
pub struct Run<'a> {
    /// The plugin's program.
    pub program: &'a Path,
    /// `CNI_...` variables.
    pub variables: &'a [(&'static str, String)],
    /// What it reads.
    pub input: &'a [u8],
    /// Holds the input, and tells the next daemon of this run.
    pub file: &'a RunFile,
    /// After so long it is killed.
    pub deadline: Duration,
}

/// How a run ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its end.
    pub status: ExitStatus,
    /// All that it wrote to its standard output.
    pub output: Vec<u8>,
    /// The last of what it wrote to its standard error.
    pub log: String,
}

/// The file of an attachment that a running plugin has as its standard input.
///
/// It is locked, and the lock lasts as long as any process has that open file: where a daemon after this one finds it
/// locked, a plugin still runs.
#[derive(Debug, Clone)]
pub struct RunFile(PathBuf);

impl RunFile {
    /// By its path, in a directory that exists.
    pub fn new(path: PathBuf) -> RunFile {
        RunFile(path)
    }

    /// Ends what a daemon before this one has left running, and removes the file. Blocks for up to five seconds.
    ///
    /// # Errors
    /// A plugin hangs in the kernel.
    pub fn clear(&self) -> Result<()> {
        let doing = |what: &str| format!("{what} {}", self.0.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&self.0, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.doing(|| doing("open"))?,
        };
        let deadline = Instant::now() + KILL_PATIENCE;
        while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != Errno::WOULDBLOCK {
                return Err(errno).doing(|| doing("lock"));
            }
            for pid in self.holders() {
                tracing::warn!(
                    pid = pid.as_raw_nonzero(),
                    "a plugin of an earlier daemon still runs: it is killed"
                );
                // Its group has its number.
                kill_process_group(pid, Signal::KILL).ok();
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable {
                    what: "a CNI plugin that an earlier daemon started".into(),
                    problem: format!("it does not end; see who has {} open", self.0.display()),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        gone_is_fine(std::fs::remove_file(&self.0)).doing(|| doing("remove"))
    }

    /// Processes whose standard input it is.
    fn holders(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let holds = |pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|link| link == self.0)
        };
        pids.filter(holds).filter_map(Pid::from_raw).collect()
    }

    fn fill(&self, input: &[u8]) -> Result<File> {
        let fill = || -> std::io::Result<File> {
            gone_is_fine(std::fs::remove_file(&self.0))?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::open(&self.0, flags, Mode::RUSR | Mode::WUSR)?);
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all(input)?;
            file.rewind()?;
            Ok(file)
        };
        fill().doing(|| format!("write {}", self.0.display()))
    }

    fn remove(&self) {
        if let Err(error) = gone_is_fine(std::fs::remove_file(&self.0)) {
            tracing::warn!(path = %self.0.display(), %error, "remove the input of a plugin");
        }
    }
}

/// Runs a plugin to its end. Blocks, for little longer than the deadline.
///
/// # Errors
/// It cannot be started, says too much, or does not end in time; then it is killed with all its children.
pub fn run(run: &Run<'_>) -> Result<Ended> {
    let input = run.file.fill(run.input)?;
    let ended = start(run, input).and_then(|child| follow(child, run.deadline));
    run.file.remove();
    ended
}

fn start(run: &Run<'_>, input: File) -> Result<Child> {
    let mut command = Command::new(run.program);
    for name in NOT_THEIRS {
        command.env_remove(name);
    }
    if std::env::var_os("PATH").is_none_or(|path| path.is_empty()) {
        command.env("PATH", PATH);
    }
    command
        .envs(run.variables.iter().map(|(name, value)| (*name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("start {}", run.program.display()))
}

/// A started plugin with the pipes that it writes to.
struct Running {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
}

fn follow(mut child: Child, deadline: Duration) -> Result<Ended> {
    let pid = Pid::from_child(&child);
    let pipes = (child.stdout.take(), child.stderr.take());
    let watched = pidfd_open(pid, PidfdFlags::empty()).doing(|| "watch a CNI plugin");
    let pidfd = match watched {
        Ok(pidfd) => pidfd,
        Err(error) => {
            kill_process_group(pid, Signal::KILL).ok();
            reap_later(child);
            return Err(error);
        }
    };
    let running = Running { child, pid, pidfd };
    let (Some(output), Some(log)) = pipes else {
        running.end().ok();
        return Err(Error::Failed {
            doing: "read from a CNI plugin".into(),
            source: "it has no pipes".into(),
        });
    };
    let mut output = Pipe::new(output.into());
    let mut log = Pipe::new(log.into());
    let heard = running.listen(&mut output, &mut log, Instant::now() + deadline, deadline);
    // Whatever it has left behind goes, too, and it is not yet reaped: the group's number is still its own.
    let status = running.end();
    let log = log.into_text();
    heard.map_err(|error| with_log(error, &log))?;
    Ok(Ended { status: status?, output: output.bytes, log })
}

/// What the plugin said last may be why it hangs.
fn with_log(error: Error, log: &str) -> Error {
    if log.is_empty() {
        return error;
    }
    Error::Failed {
        doing: format!("run it (its log ends with {:?})", last_line(log)),
        source: error.into(),
    }
}

/// The last line that is not empty.
pub fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

impl Running {
    /// Reads until it ends.
    fn listen(
        &self,
        output: &mut Pipe,
        log: &mut Pipe,
        until: Instant,
        deadline: Duration,
    ) -> Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout {
                    doing: "wait for its answer".into(),
                    after: deadline,
                });
            }
            let ended = self.wait(&[&*output, &*log], left)?;
            output.read(MAX_OUTPUT + 1)?;
            log.read_end(MAX_LOG)?;
            if output.bytes.len() > MAX_OUTPUT {
                return Err(Error::Failed {
                    doing: "read its answer".into(),
                    source: format!("it is longer than {} KiB", MAX_OUTPUT >> 10).into(),
                });
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// True when the process has ended.
    fn wait(&self, pipes: &[&Pipe], left: Duration) -> Result<bool> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let open = pipes.iter().filter_map(|pipe| pipe.fd.as_ref());
        fds.extend(open.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(errno) => Err(errno).doing(|| "wait for a CNI plugin"),
        }
    }

    /// Kills what is left of the group and reaps the plugin.
    fn end(mut self) -> Result<ExitStatus> {
        kill_process_group(self.pid, Signal::KILL).ok();
        let until = Instant::now() + KILL_PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                reap_later(self.child);
                return Err(Error::Timeout {
                    doing: "kill a CNI plugin, which hangs in the kernel".into(),
                    after: KILL_PATIENCE,
                });
            }
            if self.wait(&[], left)? {
                return self.child.wait().doing(|| "reap a CNI plugin");
            }
        }
    }
}

/// A process that hangs in the kernel ends when the kernel lets it go.
fn reap_later(mut child: Child) {
    let thread = std::thread::Builder::new().name("reap-plugin".into()).stack_size(64 << 10);
    if let Err(error) = thread.spawn(move || child.wait()) {
        tracing::warn!(%error, "start a thread for a plugin that does not end");
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::from(u32::MAX), tv_nsec: 0 })
}

/// The reading end of a pipe, which never blocks; no descriptor after its end.
struct Pipe {
    fd: Option<File>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(fd: OwnedFd) -> Pipe {
        Pipe { fd: Some(File::from(fd)), bytes: Vec::new() }
    }

    /// Reads what there is, until it has so many bytes.
    fn read(&mut self, enough: usize) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        while let Some(fd) = &mut self.fd {
            if self.bytes.len() >= enough || !is_readable(&*fd)? {
                return Ok(());
            }
            match fd.read(&mut buffer) {
                Ok(0) => self.fd = None,
                Ok(count) => self.bytes.extend(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing(|| "read from a CNI plugin"),
            }
        }
        Ok(())
    }

    /// Reads some of what there is and keeps the end of it. It comes back soon even where the writer never stops.
    fn read_end(&mut self, keep: usize) -> Result<()> {
        self.read(self.bytes.len() + (64 << 10))?;
        let too_many = self.bytes.len().saturating_sub(keep);
        self.bytes.drain(..too_many);
        Ok(())
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

fn is_readable(fd: impl AsFd) -> Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&zero)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno).doing(|| "look at the pipe of a CNI plugin"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    /// Programs that every machine has stand in for plugins: a script that has just been written cannot always be
    /// executed in a process of many threads (ETXTBSY). The shell takes its script as a plugin its configuration.
    struct Case {
        dir: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Case {
            Case { dir: tempfile::tempdir().unwrap() }
        }

        fn file(&self) -> RunFile {
            RunFile::new(self.dir.path().join("run"))
        }

        fn run(&self, program: &str, input: &str, deadline: Duration) -> Result<Ended> {
            let file = self.file();
            let here = self.dir.path().display().to_string();
            run(&Run {
                program: Path::new(program),
                variables: &[("CNI_COMMAND", "ADD".into()), ("HERE", here)],
                input: input.as_bytes(),
                file: &file,
                deadline,
            })
        }

        /// A process that a script wrote its pid of goes: it was killed, which takes a moment.
        #[track_caller]
        fn check_gone(&self, name: &str) {
            let pid = std::fs::read_to_string(self.dir.path().join(name)).unwrap();
            let until = Instant::now() + LONG;
            loop {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
                // A zombie waits for whoever is init here.
                if stat.map_or(true, |stat| stat.contains(") Z ")) {
                    return;
                }
                assert!(Instant::now() < until, "process {pid} of {name} is still there");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHELL: &str = "/bin/sh";

    #[test]
    fn a_plugin_reads_its_configuration_and_answers() {
        let case = Case::new();
        assert_eq!(case.run("/bin/cat", "{}", LONG).unwrap().output, b"{}");
        let ended = case.run(SHELL, "echo $CNI_COMMAND; pwd; echo oops >&2; exit 3", LONG).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(String::from_utf8(ended.output).unwrap(), "ADD\n/\n");
        assert_eq!(ended.log, "oops");
        assert!(!case.dir.path().join("run").exists(), "the input is left");
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_its_children() {
        let case = Case::new();
        let script =
            "echo thinking >&2; sleep 1000 & echo $! > $HERE/child; echo $$ > $HERE/own; wait";
        let text = chain(&case.run(SHELL, script, Duration::from_secs(2)).unwrap_err());
        assert!(text.contains("thinking") && text.contains("not done after 2s"), "{text}");
        case.check_gone("child");
        case.check_gone("own");
    }

    #[test]
    fn a_child_that_keeps_the_pipes_is_not_waited_for() {
        let case = Case::new();
        let ended = case.run(SHELL, "sleep 1000 & echo $! > $HERE/child; echo done", LONG).unwrap();
        assert_eq!(ended.output, b"done\n");
        case.check_gone("child");
    }

    #[test]
    fn a_flood_is_cut_off() {
        let case = Case::new();
        let text = chain(&case.run("/usr/bin/yes", "", LONG).unwrap_err());
        assert!(text.contains("longer than 1024 KiB"), "{text}");
        let script = "yes | head -c 1000000 >&2; echo end >&2";
        let ended = case.run(SHELL, script, LONG).unwrap();
        assert!(ended.log.len() <= MAX_LOG && ended.log.ends_with("end"));
    }

    #[test]
    fn a_missing_plugin_is_an_error_that_names_it() {
        let text = chain(&Case::new().run("/no/plugin", "", LONG).unwrap_err());
        assert!(text.contains("/no/plugin: No such file"), "{text}");
    }

    #[test]
    fn what_an_earlier_daemon_left_is_ended() {
        let case = Case::new();
        let file = case.file();
        file.clear().unwrap();
        let input = file.fill(b"").unwrap();
        let mut command = Command::new("/bin/sleep");
        let mut child =
            command.arg("1000").process_group(0).stdin(Stdio::from(input)).spawn().unwrap();
        drop(command);
        assert_eq!(file.holders(), [Pid::from_child(&child)]);
        file.clear().unwrap();
        assert!(!case.dir.path().join("run").exists());
        assert!(!child.wait().unwrap().success());
    }
}
