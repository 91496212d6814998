//! A terminal with a program of ours in it, and fingers that type.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::case::lock;
use crate::scaled;

/// What is typed, or comes back, has to be there by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    master: std::fs::File,
    slave: OwnedFd,
    child: Child,
    /// What the screen shows and nobody has looked at.
    shown: Arc<Mutex<Vec<u8>>>,
    before: String,
}

impl Terminal {
    /// Starts a program in a terminal of so many rows and columns, as the leader of its session.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Terminal> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("open a terminal")?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        set_size(&master, rows, columns)?;
        let before = attributes(&slave)?;
        let mut led = Command::new("setsid");
        led.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            value.map(|value| led.env(name, value));
        }
        led.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        let child = led.spawn().context("start a program in a terminal")?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let master = std::fs::File::from(master);
        let (mut reader, screen) = (master.try_clone()?, shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends when the last who has the slave open is gone.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                lock(&screen).extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Terminal { master, slave, child, shown, before })
    }

    /// Types.
    pub fn send(&mut self, keys: impl AsRef<[u8]>) -> Result<()> {
        self.master.write_all(keys.as_ref()).context("type")
    }

    /// Changes the size of the window, as who drags its corner.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.master, rows, columns)
    }

    /// Waits until a text is shown; returns what was shown up to there.
    pub fn expect(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + scaled(PATIENCE);
        loop {
            let mut shown = lock(&self.shown);
            if let Some(at) = shown.windows(text.len()).position(|part| part == text.as_bytes()) {
                let seen = shown.drain(..at + text.len()).collect::<Vec<_>>();
                return Ok(String::from_utf8_lossy(&seen).into_owned());
            }
            if Instant::now() > deadline {
                bail!("no {text:?} in {:?}", String::from_utf8_lossy(&shown));
            }
            drop(shown);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Whether keys go to the program as they are, Ctrl-C too.
    pub fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(&self.slave)?.local_modes.contains(rustix::termios::LocalModes::ICANON))
    }

    /// Waits for the end of the program; returns its exit code. The terminal must be as it was before.
    pub fn end(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + scaled(PATIENCE);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                let shown = String::from_utf8_lossy(&lock(&self.shown)).into_owned();
                bail!("it does not end, and shows {shown:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        crate::same("the terminal afterwards", &attributes(&self.slave)?, &self.before)?;
        Ok(status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn set_size(master: impl std::os::fd::AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).context("set the size of a window")
}

fn attributes(slave: &OwnedFd) -> Result<String> {
    Ok(format!("{:?}", tcgetattr(slave)?))
}
