//! The agent's side: a blocking socket program that does what its standard input says.
//!
//! One line, one answer. `I` numbers the agent's connections.
//!
//! ```text
//! listen              -> PORT
//! accept I, connect I PORT, close I, nonblocking I        -> ok
//! connect-all N PORT  -> ok           connections 0 to N, by threads, in the same moment
//! ping I N, pong I N  -> ok           N exchanges of one byte
//! recv I N, send I N, poll I, epoll I, fill I             -> ret N | err ERRNO
//! select I, epoll-level I                                 -> the same
//! become-cat I        -> (nothing)    becomes cat by a raw system call, with connection I only
//! stream I BYTES SEED -> ok           sends and receives that many, and checks them
//! put I BYTES SEED, take I BYTES SEED -> ok       only one of the two
//! lag I BYTES SEED   -> ok           takes them with a pause before each call; lag-epoll: without blocking, by epoll
//! jammed I MS         -> err 4        fills the socket without blocking, and polls until a signal comes MS later
//! put-polling I BYTES SEED -> ok      sends them without blocking, and polls
//! bursts I N OWN FAR FORKS -> ok      sends N bursts of seed OWN and receives those of FAR; FORKS 1: by children, too
//! echo I              -> ret N | err ERRNO    echoes until the end
//! echo-epoll I        -> the same        with epoll_wait before each receive
//! orphan I N          -> ok           N times: a child that sends 'c's is killed, then one 'P' is sent
//! census I            -> ret C P X    counts 'c', 'P' and everything else until the end
//! exit-reading I      -> (nothing)    exits while a thread is blocked in a receive call
//! write-die I N       -> (nothing)    sends N bytes and kills itself
//! kernel I            -> N            bytes received through the kernel's TCP
//! patience I MS       -> ok           SO_RCVTIMEO and SO_SNDTIMEO
//! limit WHAT N        -> ok           WHAT is nofile or as
//! fds                 -> N N N        open descriptors
//! step-back           -> ok           has the library take everything back to TCP, as io_uring makes it
//! jam                 -> ret N        fills its N eventfds, for good, so that whoever writes to them waits
//! ```

#![expect(unsafe_code, reason = "fork, exec, descriptors of the library")]

use std::io::{BufRead, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use viaduct_tests::rig::program::{MARK, ROLE};

use crate::behind::{jammed, lag, put_polling};
use crate::bursts::bursts;
use crate::kernel_bytes::kernel_bytes;
use crate::pattern::Pattern;

/// Bytes per call of the streams.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Becomes an agent if the environment says so; else does nothing.
pub(crate) fn run_if_told() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let mut out = std::io::stdout().lock();
    // The test runner's own line is not finished.
    writeln!(out).expect("standard output");
    let mut agent = Agent::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input");
        let answer = agent.obey(&line);
        writeln!(out, "{MARK}{answer}").expect("standard output");
    }
    std::process::exit(0);
}

#[derive(Default)]
struct Agent {
    listener: Option<TcpListener>,
    connections: Vec<Option<TcpStream>>,
}

impl Agent {
    fn obey(&mut self, line: &str) -> String {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default().to_owned();
        let words: Vec<&str> = words.collect();
        match self.act(&verb, &words) {
            Ok(answer) => answer,
            Err(error) => format!("err {}", error.raw_os_error().unwrap_or(-1)),
        }
    }

    fn act(&mut self, verb: &str, words: &[&str]) -> Result<String> {
        let number = |at: usize| -> usize {
            let word = words.get(at).unwrap_or(&"0");
            word.parse().expect("a number")
        };
        let done = || Ok("ok".to_owned());
        match verb {
            "listen" => {
                let address = words.first().unwrap_or(&"127.0.0.1");
                let listener = TcpListener::bind((*address, 0))?;
                let port = listener.local_addr()?.port();
                self.listener = Some(listener);
                return Ok(port.to_string());
            }
            "accept" => {
                let listener = self.listener.as_ref().expect("it listens");
                let (stream, _) = listener.accept()?;
                self.put(number(0), stream);
                return done();
            }
            "connect" => {
                let port = u16::try_from(number(1)).expect("a port");
                let address = words.get(2).unwrap_or(&"127.0.0.1");
                let stream = TcpStream::connect((*address, port))?;
                self.put(number(0), stream);
                return done();
            }
            "connect-all" => {
                let port = u16::try_from(number(1)).expect("a port");
                for (index, stream) in connect_all(number(0), port)?.into_iter().enumerate() {
                    self.put(index, stream);
                }
                return done();
            }
            "close" => {
                self.connections[number(0)] = None;
                return done();
            }
            "limit" => {
                let what = match words[0] {
                    "nofile" => Resource::RLIMIT_NOFILE,
                    "as" => Resource::RLIMIT_AS,
                    other => panic!("limit {other}"),
                };
                let hard = getrlimit(what)?.1;
                setrlimit(what, number(1) as u64, hard)?;
                return done();
            }
            "fds" => return fds(),
            "jam" => return jam(),
            "step-back" => {
                // SAFETY: refused, for there are no parameters.
                unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
                return done();
            }
            _ => {}
        }
        let index = number(0);
        let stream = self
            .connections
            .get(index)
            .and_then(Option::as_ref)
            .expect("that connection");
        let answer = match verb {
            "nonblocking" => {
                stream.set_nonblocking(true)?;
                "ok".to_owned()
            }
            "patience" => {
                let patience = Duration::from_millis(number(1) as u64);
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                "ok".to_owned()
            }
            "ping" => ping(stream, number(1))?,
            "pong" => pong(stream, number(1))?,
            "recv" => format!("ret {}", (&mut &*stream).read(&mut vec![0; number(1)])?),
            "send" => format!("ret {}", (&mut &*stream).write(&vec![b's'; number(1)])?),
            "poll" => wait_poll(stream)?,
            "epoll" => wait_epoll(stream, EpollFlags::EPOLLET)?,
            "epoll-level" => wait_epoll(stream, EpollFlags::empty())?,
            "select" => wait_select(stream)?,
            "become-cat" => become_cat(stream)?,
            "fill" => fill(stream)?,
            "stream" => exchange(stream, number(1), number(2) as u64),
            "put" => {
                let sent = AtomicUsize::new(0);
                put(stream, number(1), number(2) as u64, &sent)?;
                "ok".to_owned()
            }
            "take" => told(take(stream, number(1), number(2) as u64)),
            "lag" | "lag-epoll" => {
                let by_epoll = verb == "lag-epoll";
                told(lag(stream, number(1), number(2) as u64, by_epoll)?)
            }
            "jammed" => jammed(stream, number(1))?,
            "exit-reading" => exit_reading(stream)?,
            "put-polling" => {
                put_polling(stream, number(1), number(2) as u64)?;
                "ok".to_owned()
            }
            "bursts" => {
                let (own, far) = (number(2) as u64, number(3) as u64);
                bursts(stream, number(1), own, far, number(4) == 1)?
            }
            "echo" => echo(stream, || Ok(()))?,
            "echo-epoll" => echo_epoll(stream)?,
            "orphan" => orphan(stream, number(1))?,
            "census" => census(stream)?,
            "write-die" => {
                let mut writer = stream;
                writer.write_all(&vec![b'd'; number(1)])?;
                raise(Signal::SIGKILL)?;
                String::new()
            }
            "kernel" => kernel_bytes(stream)?.to_string(),
            other => panic!("the agent does not know {other}"),
        };
        Ok(answer)
    }

    fn put(&mut self, index: usize, stream: TcpStream) {
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(stream);
    }
}

/// What a receiver tells.
fn told(received: std::result::Result<(), String>) -> String {
    received.err().unwrap_or_else(|| "ok".to_owned())
}

fn connect_all(count: usize, port: u16) -> Result<Vec<TcpStream>> {
    let start = Arc::new(Barrier::new(count));
    let connect = |_| {
        let start = start.clone();
        std::thread::spawn(move || {
            start.wait();
            TcpStream::connect(("127.0.0.1", port))
        })
    };
    let threads: Vec<_> = (0..count).map(connect).collect();
    let joined = threads.into_iter().map(|thread| thread.join());
    joined
        .map(|stream| stream.expect("no panic"))
        .collect::<Result<Vec<_>>>()
}

fn ping(mut stream: &TcpStream, rounds: usize) -> Result<String> {
    let mut byte = [0];
    for _ in 0..rounds {
        stream.write_all(b"p")?;
        stream.read_exact(&mut byte)?;
    }
    Ok("ok".to_owned())
}

fn pong(mut stream: &TcpStream, rounds: usize) -> Result<String> {
    let mut byte = [0];
    for _ in 0..rounds {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
    Ok("ok".to_owned())
}

/// Children that share the connection are killed in the middle of their sends, again and again.
fn orphan(mut stream: &TcpStream, rounds: usize) -> Result<String> {
    for round in 0..rounds {
        // SAFETY: the child only sends, until it is killed.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let chunk = [b'c'; CHUNK];
                while stream.write(&chunk).is_ok() {}
                std::process::abort();
            }
            ForkResult::Parent { child } => {
                std::thread::sleep(Duration::from_micros(500 + 137 * round as u64 % 1500));
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
                stream.write_all(b"P")?;
            }
        }
    }
    Ok("ok".to_owned())
}

fn census(mut stream: &TcpStream) -> Result<String> {
    let (mut child, mut parent, mut other) = (0, 0, 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = stream.read(&mut chunk)?;
        if got == 0 {
            return Ok(format!("ret {} {parent} {other}", u8::from(child > 0)));
        }
        for byte in &chunk[..got] {
            match byte {
                b'c' => child += 1,
                b'P' => parent += 1,
                _ => other += 1,
            }
        }
    }
}

fn wait_poll(stream: &TcpStream) -> Result<String> {
    let mut entry = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let count = poll(&mut entry, PollTimeout::NONE)?;
    let events = entry[0].revents().unwrap_or(PollFlags::empty()).bits();
    Ok(format!("ret {count} {events:#x}"))
}

fn wait_select(stream: &TcpStream) -> Result<String> {
    let mut set = FdSet::new();
    set.insert(stream.as_fd());
    let count = select(None, Some(&mut set), None, None, None)?;
    Ok(format!("ret {count} {}", set.contains(stream.as_fd())))
}

fn wait_epoll(stream: &TcpStream, how: EpollFlags) -> Result<String> {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let wanted = EpollFlags::EPOLLIN | how;
    set.add(stream, EpollEvent::new(wanted, 7))?;
    let mut events = [EpollEvent::empty(); 4];
    let count = set.wait(&mut events, nix::sys::epoll::EpollTimeout::NONE)?;
    let bits = events[0].events().bits();
    Ok(format!("ret {count} {bits:#x} {}", events[0].data()))
}

/// Exits while another thread waits for bytes.
fn exit_reading(stream: &TcpStream) -> Result<String> {
    let mut blocked = stream.try_clone()?;
    std::thread::spawn(move || blocked.read(&mut [0]));
    std::thread::sleep(Duration::from_millis(100));
    std::process::exit(0);
}

/// Becomes a program without the library in a way that no library sees. Nothing else is kept open.
fn become_cat(stream: &TcpStream) -> Result<String> {
    for number in [0, 1] {
        // The library would take the connection back to TCP at once, for what stdio does there.
        let there = viaduct_tests::sys::dup2_unseen(stream.as_raw_fd(), number);
        there.map_err(Error::from_raw_os_error)?;
    }
    let error = viaduct_tests::sys::become_unseen(c"/bin/cat", &[c"cat"]);
    Err(Error::from_raw_os_error(error))
}

/// Sends until that fails.
fn fill(mut stream: &TcpStream) -> Result<String> {
    loop {
        stream.write_all(&[b'f'; 65_536])?;
    }
}

/// As programs do after an error.
fn give_up(stream: &TcpStream) -> impl FnOnce(Error) -> Error {
    move |error| {
        let _ = stream.shutdown(Shutdown::Both);
        error
    }
}

/// Sends so many bytes by `write`; counts those that were taken.
pub(crate) fn send_pattern(
    bytes: usize,
    seed: u64,
    sent: &AtomicUsize,
    mut write: impl FnMut(&[u8]) -> Result<usize>,
) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    for begin in (0..bytes).step_by(CHUNK) {
        let mut left = &mut chunk[..CHUNK.min(bytes - begin)];
        pattern.fill(left);
        while !left.is_empty() {
            match write(left)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                taken => {
                    sent.fetch_add(taken, Ordering::Relaxed);
                    left = &mut left[taken..];
                }
            }
        }
    }
    Ok(())
}

/// Receives so many bytes by `read` and looks at each of them; what came instead, and after how many.
pub(crate) fn receive_pattern(
    bytes: usize,
    seed: u64,
    mut read: impl FnMut(&mut [u8]) -> Result<usize>,
) -> std::result::Result<(), String> {
    let mut pattern = Pattern::new(seed);
    let (mut chunk, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut done = 0;
    while done < bytes {
        let size = CHUNK.min(bytes - done);
        match read(&mut chunk[..size]) {
            Ok(0) => return Err(format!("end after {done}")),
            Ok(got) => {
                pattern.fill(&mut wanted[..got]);
                if chunk[..got] != wanted[..got] {
                    return Err(format!("wrong bytes after {done}"));
                }
                done += got;
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                return Err(format!("err {errno} after {done}"));
            }
        }
    }
    Ok(())
}

fn put(mut stream: &TcpStream, bytes: usize, seed: u64, sent: &AtomicUsize) -> Result<()> {
    send_pattern(bytes, seed, sent, |left| {
        stream.write(left).map_err(give_up(stream))
    })
}

fn take(mut stream: &TcpStream, bytes: usize, seed: u64) -> std::result::Result<(), String> {
    receive_pattern(bytes, seed, |chunk| {
        stream.read(chunk).map_err(give_up(stream))
    })
}

/// Both directions at once. What is not "ok" says how many bytes were sent, and what came after how many.
fn exchange(stream: &TcpStream, bytes: usize, seed: u64) -> String {
    let sent = AtomicUsize::new(0);
    let (written, read) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| put(stream, bytes, seed, &sent));
        let read = take(stream, bytes, seed);
        (writer.join().expect("the writer"), read)
    });
    let sent = sent.into_inner();
    let errno = |error: Error| error.raw_os_error().unwrap_or(0);
    match (written.map_err(errno), read) {
        (Ok(()), Ok(())) => "ok".to_owned(),
        // What the reader saw is then our own shutdown.
        (Err(errno), Err(end)) if end.starts_with("end") => format!("err {errno}, {sent} sent"),
        (Err(errno), Ok(())) => format!("err {errno}, {sent} sent"),
        (_, Err(end)) => format!("{end}, {sent} sent"),
    }
}

fn echo_epoll(stream: &TcpStream) -> Result<String> {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    set.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
    echo(stream, || {
        let mut events = [EpollEvent::empty(); 4];
        set.wait(&mut events, 10_000u16)?;
        Ok(())
    })
}

/// Echoes until the end; `wait` comes before each receive.
fn echo(mut stream: &TcpStream, wait: impl Fn() -> Result<()>) -> Result<String> {
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        wait()?;
        let got = stream.read(&mut chunk)?;
        if got == 0 {
            return Ok(format!("ret {total}"));
        }
        stream.write_all(&chunk[..got])?;
        total += got;
    }
}

/// The numbers of all open descriptors.
fn fds() -> Result<String> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.push(entry?.file_name().to_string_lossy().into_owned());
    }
    numbers.sort();
    Ok(numbers.join(" "))
}

/// By raw system calls: they are the library's.
fn jam() -> Result<String> {
    let mut jammed = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.as_os_str() != "anon_inode:[eventfd]" {
            continue;
        }
        let number = entry.file_name().to_string_lossy().parse();
        // SAFETY: open, and the library closes its eventfds only with what they are for.
        let bell = unsafe { BorrowedFd::borrow_raw(number.expect("a number")) };
        let own = rustix::io::dup(bell)?;
        rustix::fs::fcntl_setfl(&own, rustix::fs::OFlags::empty())?;
        std::thread::spawn(move || {
            // Waits until the library has emptied it.
            while rustix::io::write(&own, &(u64::MAX - 1).to_ne_bytes()).is_ok() {}
        });
        jammed += 1;
    }
    Ok(format!("ret {jammed}"))
}
