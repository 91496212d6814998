//! Servers and clients so small that nothing in them can be the reason why a test fails.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(3);

fn each(port: u16, serve: impl Fn(TcpStream) -> Result<()>) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    crate::say("listening");
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if let Err(error) = serve(stream) {
            eprintln!("{error}");
        }
    }
}

pub(crate) fn http(port: u16, text: &str) -> Result<()> {
    each(port, |mut stream| {
        let mut request = [0; 4096];
        let length = stream.read(&mut request)?;
        eprintln!(
            "{}",
            String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default()
        );
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        stream.write_all(format!("{head}{text}").as_bytes())
    })
}

pub(crate) fn tcp_echo(port: u16) -> Result<()> {
    each(port, |mut stream| {
        let mut text = Vec::new();
        (&stream).take(1 << 20).read_to_end(&mut text)?;
        let peer = stream.peer_addr()?.ip();
        stream.write_all(format!("{peer} ").as_bytes())?;
        stream.write_all(&text)
    })
}

pub(crate) fn udp_echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    crate::say("listening");
    let mut text = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut text)?;
        socket.send_to(&[format!("{} ", peer.ip()).as_bytes(), &text[..length]].concat(), peer)?;
    }
}

pub(crate) fn tcp(host: &str, port: u16, text: &str) -> Result<()> {
    let address = (host, port).to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

pub(crate) fn udp(host: &str, port: u16, text: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(text.as_bytes(), (host, port))?;
    let mut answer = [0; 2048];
    let (length, _) = socket.recv_from(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer[..length]));
    Ok(())
}
