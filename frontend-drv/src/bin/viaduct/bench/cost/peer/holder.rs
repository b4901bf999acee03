//! A server and a client with many connections, each in one epoll set, where both also wait while
//! they have nothing to do.
//!
//! Commands to the server: `listen PORTS` (answer: their numbers), `accept N`, `serve-one` (one
//! blocking connection, to its end), `open` (how many are), `quit`. To the client: `connect N
//! PORT...`, `run LEAST MOST` (rounds of one byte to and fro on every connection, at least and at
//! most so many; after the least, `stop` ends it; answer: how many, and when the first byte went
//! out), `few N ROUNDS` (the same on the first N connections only; answer: nanoseconds in all), `ping PORT ROUNDS` (one blocking connection), `close`, `quit`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};

use super::super::clock::monotonic_ns;
use super::Control;

/// Connections made to one port, so that the ports of the connecting side suffice.
pub(in crate::bench::cost) const PER_PORT: usize = 10_000;

/// The server, until it is told to quit.
pub(super) fn serve(control: Control) -> Result<()> {
    let mut holder = Holder::new(control)?;
    loop {
        holder.take_events(EpollTimeout::NONE, Holder::echo)?;
        while let Some(line) = holder.control.line() {
            let (verb, number) = words(&line);
            let answer = match verb {
                "listen" => holder.listen(number)?,
                "accept" => holder.accept(number)?,
                "serve-one" => holder.serve_one()?,
                "open" => holder.open.to_string(),
                "quit" => return Ok(()),
                _ => bail!("the tool says {line}"),
            };
            holder.control.say(&answer)?;
        }
    }
}

/// The client, until it is told to quit.
pub(super) fn connect(control: Control) -> Result<()> {
    let mut holder = Holder::new(control)?;
    // Open for as long as it is here.
    let mut blocking: Option<TcpStream> = None;
    loop {
        holder.take_events(EpollTimeout::NONE, Holder::ignore)?;
        while let Some(line) = holder.control.line() {
            let (verb, number) = words(&line);
            let rest = numbers(&line);
            let answer = match verb {
                "connect" => holder.connect(number, rest.get(1..).unwrap_or_default())?,
                "run" => holder.run(number, rest.get(1).copied().unwrap_or(number))?,
                "few" => holder.few(number, rest.get(1).copied().unwrap_or(0))?,
                // It came too late.
                "stop" => continue,
                "ping" => {
                    let (stream, answer) = ping(number, rest.get(1).copied().unwrap_or(0))?;
                    blocking = Some(stream);
                    answer
                }
                "close" => {
                    drop(blocking.take());
                    holder.connections.clear();
                    holder.open = 0;
                    "closed".to_owned()
                }
                "quit" => return Ok(()),
                _ => bail!("the tool says {line}"),
            };
            holder.control.say(&answer)?;
        }
    }
}

#[derive(Debug)]
struct Holder {
    control: Control,
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    connections: Vec<Option<TcpStream>>,
    open: usize,
    /// Replies that are still to come in this round.
    awaited: usize,
}

impl Holder {
    fn new(control: Control) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, CONTROL);
        epoll.add(&control.stream, event).context("epoll_ctl")?;
        Ok(Self {
            control,
            epoll,
            listeners: Vec::new(),
            connections: Vec::new(),
            open: 0,
            awaited: 0,
        })
    }

    /// Waits once, and gives each connection that has something to `work`.
    fn take_events(
        &mut self,
        limit: impl Into<EpollTimeout>,
        work: fn(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let count = match self.epoll.wait(&mut events, limit) {
            Err(Errno::EINTR) => 0,
            other => other.context("epoll_wait")?,
        };
        for event in events.iter().take(count) {
            match event.data() {
                CONTROL => self.control.fill()?,
                index => work(self, usize::try_from(index)?)?,
            }
        }
        Ok(())
    }

    fn listen(&mut self, ports: usize) -> Result<String> {
        let mut numbers = Vec::new();
        for _ in 0..ports {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
            // The standard library's own backlog is short of what comes in a burst.
            listen(&listener, Backlog::new(BACKLOG)?).context("listen")?;
            numbers.push(listener.local_addr()?.port().to_string());
            self.listeners.push(listener);
        }
        Ok(numbers.join(" "))
    }

    fn accept(&mut self, count: usize) -> Result<String> {
        for index in 0..count {
            let listener = self.listeners.get(index / PER_PORT);
            let listener = listener.context("accept before listen")?;
            let (stream, _) = listener.accept().context("accept")?;
            self.keep(stream)?;
        }
        Ok("accepted".to_owned())
    }

    fn connect(&mut self, count: usize, ports: &[usize]) -> Result<String> {
        for index in 0..count {
            let port = ports.get(index / PER_PORT).context("too few ports")?;
            self.keep(dial(*port)?)?;
        }
        Ok("connected".to_owned())
    }

    fn keep(&mut self, stream: TcpStream) -> Result<()> {
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let index = u64::try_from(self.connections.len())?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index);
        self.epoll.add(stream.as_fd(), event).context("epoll_ctl")?;
        self.connections.push(Some(stream));
        self.open += 1;
        Ok(())
    }

    /// Reads what is there: None if nothing is; the connection is closed at its end.
    fn read(&mut self, index: usize, bytes: &mut [u8]) -> Result<Option<usize>> {
        let Some(place) = self.connections.get_mut(index) else {
            return Ok(None);
        };
        let Some(stream) = place else {
            return Ok(None);
        };
        match stream.read(bytes) {
            Ok(0) => {
                *place = None;
                self.open -= 1;
                Ok(None)
            }
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).with_context(|| format!("recv on connection {index}")),
        }
    }

    fn echo(&mut self, index: usize) -> Result<()> {
        let mut bytes = [0; 16];
        if let Some(length) = self.read(index, &mut bytes)?
            && let Some(Some(stream)) = self.connections.get_mut(index)
        {
            let reply = bytes.get(..length).unwrap_or_default();
            stream
                .write_all(reply)
                .with_context(|| format!("send on connection {index}"))?;
        }
        Ok(())
    }

    fn count(&mut self, index: usize) -> Result<()> {
        let open = self.open;
        let mut bytes = [0; 16];
        let came = self.read(index, &mut bytes)?.unwrap_or(0);
        if self.open < open {
            bail!("connection {index} was closed by the far end");
        }
        match self.awaited.checked_sub(came) {
            Some(left) => self.awaited = left,
            None => bail!("connection {index} has received bytes that nobody sent"),
        }
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the ways to take an event")]
    fn ignore(&mut self, _index: usize) -> Result<()> {
        Ok(())
    }

    fn run(&mut self, least: usize, most: usize) -> Result<String> {
        let first = monotonic_ns();
        let (mut rounds, mut stop) = (0, false);
        while rounds < most && !(stop && rounds >= least) {
            self.round().with_context(|| format!("round {rounds}"))?;
            rounds += 1;
            stop |= self.control.line().is_some_and(|line| line == "stop");
        }
        Ok(format!("{rounds} {first}"))
    }

    /// Rounds on the first connections, while the others are silent.
    fn few(&mut self, count: usize, rounds: usize) -> Result<String> {
        let first = monotonic_ns();
        for round in 0..rounds {
            self.round_of(count)
                .with_context(|| format!("round {round}"))?;
        }
        Ok((monotonic_ns() - first).to_string())
    }

    fn round(&mut self) -> Result<()> {
        self.round_of(usize::MAX)
    }

    /// A byte on each of the first connections, and its reply.
    fn round_of(&mut self, count: usize) -> Result<()> {
        let mut sent = 0;
        for (index, stream) in self.connections.iter_mut().enumerate().take(count) {
            if let Some(stream) = stream {
                let done = stream.write_all(b"x");
                done.with_context(|| format!("send on connection {index}"))?;
                sent += 1;
            }
        }
        self.awaited = sent;
        let mut progress = (self.awaited, Instant::now());
        while self.awaited > 0 {
            self.take_events(SLICE_MS, Self::count)?;
            if self.awaited < progress.0 {
                progress = (self.awaited, Instant::now());
            } else if progress.1.elapsed() > PATIENCE {
                let (left, seconds) = (self.awaited, PATIENCE.as_secs());
                bail!(
                    "{left} of {} replies are missing after {seconds} s",
                    self.open
                );
            }
        }
        Ok(())
    }

    /// One connection whose server waits in recv, until the client closes it.
    fn serve_one(&mut self) -> Result<String> {
        let listener = self.listeners.first().context("serve-one before listen")?;
        let (mut stream, _) = listener.accept().context("accept")?;
        let mut bytes = [0; 16];
        loop {
            match stream.read(&mut bytes).context("recv")? {
                0 => return Ok("served".to_owned()),
                length => {
                    let reply = bytes.get(..length).unwrap_or_default();
                    stream.write_all(reply).context("send")?;
                }
            }
        }
    }
}

/// One blocking connection with time between its rounds for everything to happen that may.
fn ping(port: usize, rounds: usize) -> Result<(TcpStream, String)> {
    let mut stream = dial(port)?;
    let mut byte = [0];
    for round in 0..rounds {
        stream
            .write_all(b"x")
            .with_context(|| format!("send of round {round}"))?;
        let reply = stream.read_exact(&mut byte);
        reply.with_context(|| format!("recv of round {round}"))?;
        sleep(PING_PAUSE);
    }
    Ok((stream, "pinged".to_owned()))
}

fn dial(port: usize) -> Result<TcpStream> {
    let address = (Ipv4Addr::LOCALHOST, u16::try_from(port)?);
    TcpStream::connect(address).with_context(|| format!("connect to port {port}"))
}

/// The first word, and the first number after it.
fn words(line: &str) -> (&str, usize) {
    let verb = line.split_ascii_whitespace().next().unwrap_or_default();
    (verb, numbers(line).first().copied().unwrap_or(0))
}

fn numbers(line: &str) -> Vec<usize> {
    let words = line.split_ascii_whitespace().skip(1);
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Data of the tool's socket in the epoll set; others have the number of the connection.
const CONTROL: u64 = u64::MAX;
/// The kernel takes less if net.core.somaxconn says so.
const BACKLOG: i32 = 4096;
/// A round without any reply for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
const SLICE_MS: u16 = 1000;
const PING_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use super::*;

    fn start(work: fn(Control) -> Result<()>) -> (Control, JoinHandle<Result<()>>) {
        let (tool, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || work(Control::new(theirs)));
        (Control::new(tool), thread)
    }

    fn answer(control: &mut Control) -> String {
        loop {
            if let Some(answer) = control.line() {
                return answer;
            }
            control.fill().unwrap();
        }
    }

    fn ask(control: &mut Control, line: &str) -> String {
        control.say(line).unwrap();
        answer(control)
    }

    #[test]
    fn every_connection_gets_its_bytes_back() {
        let (mut server, serving) = start(serve);
        let (mut client, connecting) = start(connect);
        let port = ask(&mut server, "listen 1");
        server.say("accept 5").unwrap();
        assert_eq!(ask(&mut client, &format!("connect 5 {port}")), "connected");
        assert_eq!(answer(&mut server), "accepted");
        client.say("run 3 1000000").unwrap();
        let ran = ask(&mut client, "stop");
        assert!(words(&format!("ran {ran}")).1 >= 3, "{ran}");
        assert_eq!(ask(&mut client, "close"), "closed");
        while ask(&mut server, "open") != "0" {
            thread::yield_now();
        }
        for (control, thread) in [(&mut server, serving), (&mut client, connecting)] {
            control.say("quit").unwrap();
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_blocking_pair_ends_with_its_client() {
        let (mut server, serving) = start(serve);
        let (mut client, connecting) = start(connect);
        let port = ask(&mut server, "listen 1");
        server.say("serve-one").unwrap();
        assert_eq!(ask(&mut client, &format!("ping {port} 2")), "pinged");
        assert_eq!(ask(&mut client, "close"), "closed");
        assert_eq!(answer(&mut server), "served");
        drop((server, client));
        assert!(serving.join().unwrap().is_err(), "the tool has left");
        assert!(connecting.join().unwrap().is_err(), "the tool has left");
    }
}
