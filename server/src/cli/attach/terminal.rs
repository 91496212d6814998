//! Our own terminal: raw while a program's terminal stands behind it, and as it was afterwards.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use proto::control::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::Failure;

/// Standard input in raw mode: every key goes to the program, Ctrl-C too. Its drop restores it, and everything that ends
/// this program but SIGKILL goes by there: an error, a signal that was caught, a panic.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes standard input over; `None` where it is no terminal.
    ///
    /// # Errors
    /// Those of the terminal.
    pub(super) fn enter() -> Result<Option<Raw>, Failure> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let enter = || {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            Ok::<_, rustix::io::Errno>(Raw { before })
        };
        enter()
            .map(Some)
            .map_err(|errno| Failure::step("make the terminal raw", &io::Error::from(errno)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no care.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.before).ok();
    }
}

/// What `-i` and `-t` together need.
///
/// # Errors
/// Standard input is no terminal.
pub(in super::super) fn require_terminal(interactive: bool, tty: bool) -> Result<(), Failure> {
    if interactive && tty && !io::stdin().is_terminal() {
        return Err(Failure::new(
            "-t needs a terminal to read from, and standard input is none; leave -t out to pass input on as it is",
        ));
    }
    Ok(())
}

/// The size of the terminal that output goes to, else of the one that input comes from.
pub(in super::super) fn window_size() -> Option<TerminalSize> {
    let (stdout, stdin) = (io::stdout(), io::stdin());
    [stdout.as_fd(), stdin.as_fd()].into_iter().find_map(|terminal| {
        let size = tcgetwinsize(terminal).ok()?;
        (size.ws_row > 0 && size.ws_col > 0)
            .then(|| TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
    })
}
