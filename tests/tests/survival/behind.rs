//! Readers that are always behind their sender, and so never wait: their streams come by ring all the same.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::Form;
use viaduct_tests::sys;

use crate::agent::{CHUNK, receive_pattern, send_pattern};
use crate::duo::{Duo, forms};

/// What each reader reads.
const BYTES: usize = 48 << 20;
/// Of the reader's socket, so that a slow one on a busy machine has little to catch up with.
const BUFFER: usize = 64 << 10;

/// Receives so many bytes, each read after a pause in which the sender fills the buffers again. `by_epoll`: without
/// blocking, so that it waits in an epoll set if there is nothing.
pub(crate) fn lag(
    mut stream: &TcpStream,
    bytes: usize,
    seed: u64,
    by_epoll: bool,
) -> Result<std::result::Result<(), String>> {
    setsockopt(stream, sockopt::RcvBuf, &BUFFER)?;
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    if by_epoll {
        stream.set_nonblocking(true)?;
        set.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
    }
    std::thread::sleep(Duration::from_millis(5));
    Ok(receive_pattern(bytes, seed, |chunk| {
        loop {
            std::thread::sleep(Duration::from_micros(50));
            match stream.read(chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    set.wait(&mut [EpollEvent::empty()], 10_000u16)?;
                }
                done => return done,
            }
        }
    }))
}

/// Sends so many bytes without blocking, and polls at first, as after a connect, and where the socket takes no more.
pub(crate) fn put_polling(mut stream: &TcpStream, bytes: usize, seed: u64) -> Result<()> {
    stream.set_nonblocking(true)?;
    let wait = || {
        let mut entry = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        poll(&mut entry, PollTimeout::NONE)
    };
    wait()?;
    send_pattern(bytes, seed, &AtomicUsize::new(0), |left| {
        loop {
            match stream.write(left) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait()?;
                }
                done => return done,
            }
        }
    })
}

/// Sends until the socket takes no more, which nobody reads, and polls until a signal is handled that comes so long after
/// it has gone to sleep.
pub(crate) fn jammed(mut stream: &TcpStream, milliseconds: usize) -> Result<String> {
    stream.set_nonblocking(true)?;
    while stream.write(&[b'j'; CHUNK]).is_ok() {}
    sys::catch(libc::SIGUSR1, libc::SA_RESTART).map_err(Error::from_raw_os_error)?;
    let (poller, number) = (sys::this_thread(), sys::thread_number());
    std::thread::scope(|scope| {
        let signaller = scope.spawn(move || {
            while !sys::is_asleep(number) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(milliseconds as u64));
            sys::signal_thread(poller, libc::SIGUSR1);
        });
        let mut entry = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut entry, PollTimeout::NONE);
        signaller.join().expect("the signaller");
        Ok(format!("ret {}", ready?))
    })
}

/// How often a stream is tried: where others keep the processors busy, a reader may not catch up within a pause.
const TRIES: usize = 6;

/// Sends to a reader that lags; how many bytes the kernel brought it.
fn stream(form: &Form, writer: &str, reader: &str) -> usize {
    let mut duo = Duo::new(form);
    duo.connect(0);
    let what = format!("0 {BYTES} 3");
    duo.both(&format!("{writer} {what}"), &format!("{reader} {what}"));
    let [_, brought] = duo.kernel(0);
    brought.parse().expect("a number")
}

/// The stream begins in the kernel, and goes on by ring.
fn stream_by(writer: &str, reader: &str) {
    let daemon = Daemon::start();
    let [(plain, _), (accelerated, _)] = forms(&daemon);
    assert_eq!(stream(&plain, writer, reader), BYTES);
    let mut brought = Vec::new();
    let goes_by_ring = (0..TRIES).any(|_| {
        let bytes = stream(&accelerated, writer, reader);
        brought.push(bytes);
        (1..=BYTES / 2).contains(&bytes)
    });
    assert!(
        goes_by_ring,
        "brought by the kernel: {brought:?} of {BYTES}"
    );
}

/// Whether the signal comes while the sender pauses for its reader or later.
#[test]
fn a_signal_ends_the_wait() {
    let daemon = Daemon::start();
    for milliseconds in [0, 300] {
        for (form, _) in forms(&daemon) {
            let mut duo = Duo::new(&form);
            duo.connect(0);
            // Both ends have called, so that they are paired; nobody has waited.
            assert_eq!(duo.server.ask("send 0 1"), "ret 1");
            assert_eq!(duo.client.ask("send 0 1"), "ret 1");
            std::thread::sleep(Duration::from_millis(200));
            let answer = duo.client.ask(&format!("jammed 0 {milliseconds}"));
            assert_eq!(answer, format!("err {}", libc::EINTR), "{milliseconds} ms");
        }
    }
}

#[test]
fn both_block() {
    stream_by("put", "lag");
}

#[test]
fn the_reader_does_not_block() {
    stream_by("put", "lag-epoll");
}

#[test]
fn the_writer_polls() {
    stream_by("put-polling", "lag");
}

#[test]
fn neither_blocks() {
    stream_by("put-polling", "lag-epoll");
}
