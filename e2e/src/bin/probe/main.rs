//! The probe: a static program for test images, for what a shell cannot do or tell.

#![allow(clippy::print_stdout, clippy::print_stderr)] // What it prints is what it is for.
#![allow(clippy::exit)] // It ends as a test wants it to.

mod attack;
mod net;
mod strike;
mod sys;

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::exit;
use std::time::Duration;

const USAGE: &str = "usage: probe COMMAND [ARG]...
  idle                     sleeps until SIGTERM or SIGINT, then ends with 0
  ignore-term              says ready, ignores SIGTERM and sleeps for ever
  signal                   says ready, waits for one signal, says which
  exit CODE                ends with a code
  die SIGNAL               sends itself a signal
  cat FILE                 prints a file
  args ARG...              prints its arguments, one a line
  env                      prints the environment as it is, one variable a line
  fds                      prints its open descriptors and what they are
  tty                      says which of the descriptors 0 to 2 are terminals
  euid                     prints the effective user id
  statfs PATH              prints the magic number of a file system, in hexadecimal
  xattr PATH NAME          prints an extended attribute
  lines COUNT SIZE         writes numbered lines of SIZE bytes
  alloc MIB                touches so much memory, says done and sleeps
  alloc-child MIB          the same in a child; says how the child ended
  zombies COUNT            leaves children unreaped, says ready and sleeps
  try NAME...              makes system calls by name and says how they ended
  race PATH PATH           exchanges two names for ever
  hunt SECONDS FILE        looks for ways to the host through the processes that appear in /proc
  overwrite FILE           tries to open a file for writing, and says how that ended
  http PORT TEXT           serves a text over HTTP
  tcp-echo PORT            sends back what comes, with the peer's address in front
  udp-echo PORT            the same by datagrams
  tcp HOST PORT TEXT       sends a text, prints the answer
  udp HOST PORT TEXT       the same by datagrams
  strike PID N             kills a process before its Nth call that changes something, and names the call";

fn main() {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["idle"] => idle(),
        ["ignore-term"] => ignore_term(),
        ["signal"] => wait_for_signal(),
        ["exit", code] => exit(number(code)),
        ["die", signal] => sys::raise(number(signal)),
        ["cat", file] => std::fs::read(file).and_then(|text| std::io::stdout().write_all(&text)),
        ["args", rest @ ..] => {
            rest.iter().for_each(|arg| println!("{arg}"));
            Ok(())
        }
        ["env"] => environment(),
        ["fds"] => descriptors(),
        ["tty"] => {
            (0..3).for_each(|fd| {
                println!("{fd} {}", if sys::is_terminal(fd) { "tty" } else { "no" })
            });
            Ok(())
        }
        ["euid"] => {
            println!("{}", sys::effective_user());
            Ok(())
        }
        ["statfs", path] => sys::file_system_magic(path).map(|magic| println!("{magic:#x}")),
        ["xattr", path, name] => sys::attribute(path, name).and_then(|mut value| {
            value.push(b'\n');
            std::io::stdout().write_all(&value)
        }),
        ["lines", count, size] => lines(number(count), number(size)),
        ["alloc", size] => allocate(number(size)),
        ["alloc-child", size] => allocate_in_child(size),
        ["zombies", count] => zombies(number(count)),
        ["try", names @ ..] => {
            names.iter().for_each(|name| println!("{name}: {}", attack::outcome(name)));
            Ok(())
        }
        ["race", one, other] => attack::race(one, other),
        ["hunt", seconds, file] => attack::hunt(Duration::from_secs(number(seconds)), file),
        ["overwrite", file] => {
            println!("{}", attack::overwrite(file));
            Ok(())
        }
        ["http", port, text] => net::http(number(port), text),
        ["tcp-echo", port] => net::tcp_echo(number(port)),
        ["udp-echo", port] => net::udp_echo(number(port)),
        ["tcp", host, port, text] => net::tcp(host, number(port), text),
        ["udp", host, port, text] => net::udp(host, number(port), text),
        ["strike", process, nth] => strike::strike(number(process), number(nth)),
        _ => {
            eprintln!("{USAGE}");
            exit(2);
        }
    };
    if let Err(error) = outcome {
        eprintln!("probe {}: {error}", words.join(" "));
        exit(1);
    }
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| {
        eprintln!("probe: not a number: {word}");
        exit(2);
    })
}

type Outcome = std::io::Result<()>;

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().ok();
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn idle() -> Outcome {
    sys::wait_for(&[libc::SIGTERM, libc::SIGINT]).map(drop)
}

fn ignore_term() -> Outcome {
    sys::block(&[libc::SIGTERM])?;
    say("ready");
    sleep_for_ever()
}

fn wait_for_signal() -> Outcome {
    let all: Vec<i32> = (1..=64)
        .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(signal))
        .collect();
    sys::block(&all)?;
    say("ready");
    let signal = sys::wait_for(&all)?;
    say(&format!("signal {signal}"));
    Ok(())
}

fn environment() -> Outcome {
    let mut out = std::io::stdout();
    for (key, value) in std::env::vars_os() {
        out.write_all(&[key.as_bytes(), b"=", value.as_bytes(), b"\n"].concat())?;
    }
    Ok(())
}

fn descriptors() -> Outcome {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if let Ok(target) = std::fs::read_link(entry.path()) {
            all.push((entry.file_name().to_string_lossy().parse::<i32>().unwrap_or(-1), target));
        }
    }
    all.sort();
    for (fd, target) in all {
        // The descriptor of the listing itself.
        if !target.to_string_lossy().ends_with("/fd") {
            println!("{fd} {}", target.display());
        }
    }
    Ok(())
}

/// Lines that begin with their number; many go out in one write.
fn lines(count: u64, size: usize) -> Outcome {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    for line in 0..count {
        let mut text = format!("{line:010} ");
        text.extend(std::iter::repeat_n('x', size.saturating_sub(text.len())));
        text.push('\n');
        out.write_all(text.as_bytes())?;
    }
    out.flush()
}

fn allocate(mebibytes: usize) -> Outcome {
    let mut memory = Vec::new();
    for _ in 0..mebibytes {
        memory.push(vec![1u8; 1 << 20]);
    }
    say(&format!("done {}", memory.len()));
    sleep_for_ever()
}

fn allocate_in_child(mebibytes: &str) -> Outcome {
    let status =
        std::process::Command::new("/proc/self/exe").args(["alloc", mebibytes]).status()?;
    say(&format!("child {status}"));
    Ok(())
}

fn zombies(count: usize) -> Outcome {
    for _ in 0..count {
        // Nobody waits for the child, which is the point.
        std::process::Command::new("/proc/self/exe")
            .args(["exit", "0"])
            .spawn()
            .map(std::mem::forget)?;
    }
    say("ready");
    sleep_for_ever()
}
