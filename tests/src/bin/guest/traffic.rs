//! Connections whose every byte is checked. All calls are libc's, so that a library before it sees them.

use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_to, socket,
};

use crate::say;

/// How long an answer may take: longer than any test.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends back what comes, on every connection.
pub(crate) fn serve(port: u16, how: &str) -> Result<()> {
    let wait: fn(&TcpStream) -> Result<()> = match how {
        "read" => |_| Ok(()),
        "poll" => by_poll,
        "epoll" => by_epoll,
        _ => bail!("read, poll or epoll"),
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    say("serving")?;
    loop {
        let (mut connection, _) = listener.accept()?;
        thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while wait(&connection).is_ok()
                && let Ok(got @ 1..) = connection.read(&mut bytes)
            {
                if connection
                    .write_all(bytes.get(..got).unwrap_or_default())
                    .is_err()
                {
                    return;
                }
            }
        });
    }
}

fn by_poll(connection: &TcpStream) -> Result<()> {
    let mut entry = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    poll(&mut entry, PollTimeout::NONE)?;
    Ok(())
}

fn by_epoll(connection: &TcpStream) -> Result<()> {
    thread_local! {
        static SET: OnceCell<Epoll> = const { OnceCell::new() };
    }
    SET.with(|cell| {
        if cell.get().is_none() {
            let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            set.add(connection, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
            let _ = cell.set(set);
        }
        let set = cell.get().context("no set")?;
        set.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)?;
        Ok(())
    })
}

/// A connection from one address to another.
pub(crate) fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let name = |address: SocketAddr| SockaddrStorage::from(address);
    bind(socket.as_raw_fd(), &name(SocketAddr::new(from, 0)))?;
    connect_to(socket.as_raw_fd(), &name(to)).with_context(|| format!("connecting to {to}"))?;
    let connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// Sends so many bytes and checks what comes back, again and again.
pub(crate) fn talk(connection: TcpStream, rounds: u64, bytes: usize, pause: u64) -> Result<()> {
    for round in 1..=rounds {
        exchange(&connection, round, bytes).with_context(|| format!("round {round}"))?;
        say(&format!("round {round}"))?;
        thread::sleep(Duration::from_millis(pause));
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    let rest = (&connection).read(&mut [0; 1])?;
    ensure!(rest == 0, "more than was sent came back");
    say("done")
}

/// Many connections at once.
pub(crate) fn crowd(from: IpAddr, to: SocketAddr, count: u64) -> Result<()> {
    let mut connections = Vec::new();
    for number in 0..count {
        let connection = connect(from, to).with_context(|| format!("connection {number}"))?;
        exchange(&connection, number, 1000).with_context(|| format!("connection {number}"))?;
        connections.push(connection);
    }
    say("all there")?;
    for (number, connection) in (0..).zip(&connections) {
        exchange(connection, number, 3000).with_context(|| format!("connection {number} again"))?;
    }
    say("done")
}

/// Sends a pattern, and reads it at the same time, because neither side's buffers hold all of it.
fn exchange(connection: &TcpStream, seed: u64, bytes: usize) -> Result<()> {
    let sent = pattern(seed, bytes);
    let mut received = vec![0; bytes];
    thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| {
            let mut connection = connection;
            connection.write_all(&sent)
        });
        let mut connection = connection;
        connection.read_exact(&mut received)?;
        sender.join().expect("no panic")?;
        Ok(())
    })?;
    let wrong = sent
        .iter()
        .zip(&received)
        .position(|(sent, received)| sent != received);
    ensure!(
        wrong.is_none(),
        "byte {} is not what was sent",
        wrong.unwrap_or_default()
    );
    Ok(())
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pattern = Vec::with_capacity(bytes + 8);
    while pattern.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern.extend(state.to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern
}
