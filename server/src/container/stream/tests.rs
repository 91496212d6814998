//! On real pipes and terminals.

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use super::*;

/// A master as the shim hands it over, and its raw slave.
fn terminal() -> (Terminal, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut attributes = tcgetattr(&slave).unwrap();
    attributes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &attributes).unwrap();
    (Terminal::new(master).unwrap(), slave)
}

async fn read_all(output: &mut Output) -> Vec<u8> {
    let mut all = Vec::new();
    while output.read(&mut all).await.unwrap() > 0 {}
    all
}

#[tokio::test]
async fn a_pipe_is_read_to_its_end_and_no_further_than_its_room() {
    let (mut output, theirs) = Output::pipe().unwrap();
    rustix::io::write(&theirs, b"abcdef").unwrap();
    let mut two = Vec::with_capacity(2);
    assert_eq!((output.read(&mut two).await.unwrap(), two.as_slice()), (2, &b"ab"[..]));
    drop(theirs);
    assert_eq!(read_all(&mut output).await, b"cdef");
}

#[tokio::test]
async fn the_end_of_an_input_is_its_drop() {
    let (mut input, theirs) = Input::pipe().unwrap();
    input.write_all(b"text").await.unwrap();
    drop(input);
    let mut read = Vec::with_capacity(16);
    assert_eq!(rustix::io::read(&theirs, rustix::buffer::spare_capacity(&mut read)).unwrap(), 4);
    assert_eq!(rustix::io::read(&theirs, rustix::buffer::spare_capacity(&mut read)).unwrap(), 0);
}

#[tokio::test]
async fn an_input_that_nobody_reads_is_a_broken_pipe() {
    let (mut input, theirs) = Input::pipe().unwrap();
    drop(theirs);
    assert_eq!(input.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let (terminal, slave) = terminal();
    drop(slave);
    let mut input = Input::Terminal(terminal);
    // It takes what nobody will read, until it is full.
    let mut written = Ok(());
    while written.is_ok() {
        written = input.write_all(&[b'x'; 4096]).await;
    }
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_terminal_is_read_written_and_sized_by_all_who_share_it() {
    let (terminal, slave) = terminal();
    let (mut input, mut output) =
        (Input::Terminal(terminal.clone()), Output::Terminal(terminal.clone()));
    input.write_all(b"in").await.unwrap();
    let mut read = Vec::with_capacity(16);
    rustix::io::read(&slave, rustix::buffer::spare_capacity(&mut read)).unwrap();
    assert_eq!(read, b"in");
    terminal.resize(31, 97).unwrap();
    terminal.resize(0, 5).unwrap();
    let size = tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (31, 97));
    rustix::io::write(&slave, b"out").unwrap();
    drop(slave);
    assert_eq!(read_all(&mut output).await, b"out", "what was written before the end is read");
}

#[tokio::test]
async fn more_than_a_terminal_holds_goes_through_as_it_is_read() {
    let (terminal, slave) = terminal();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        while all.len() < 1 << 20 {
            all.reserve(4096);
            rustix::io::read(&slave, rustix::buffer::spare_capacity(&mut all)).unwrap();
        }
        all.iter().map(|byte| u64::from(*byte)).sum::<u64>()
    });
    let bytes: Vec<u8> =
        (0..1u32 << 20).map(|number| u8::try_from(number % 251).unwrap()).collect();
    // The master has to outlive the reading: its end is the end of the slave.
    let mut input = Input::Terminal(terminal);
    input.write_all(&bytes).await.unwrap();
    assert_eq!(reader.join().unwrap(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
}
