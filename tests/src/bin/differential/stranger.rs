//! `stranger`: a program without the library that is handed connections over a Unix socket, and uses them as it
//! is told. [`Stranger`] is what an end of a case has of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::end::{End, Side};
use crate::form::Form;
use crate::pattern::Pattern;
use viaduct_tests::sys;

/// Longest order or answer.
const WORDS_MAX: usize = 4096;

/// A program that runs without the library, and the socket that leads to it.
#[derive(Debug)]
pub(crate) struct Stranger {
    child: Child,
    link: UnixStream,
}

impl Stranger {
    /// Starts one; it knows nothing of what this process has open.
    pub(crate) fn start() -> Self {
        let (link, theirs) = UnixStream::pair().expect("a pair of sockets");
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .arg("stranger")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn();
        Self {
            child: child.expect("the stranger starts"),
            link,
        }
    }

    /// Hands the connection of `end` over, to be used in the same form.
    pub(crate) fn give(&self, end: &End) -> String {
        self.hand_over(end.fd, end.form)
    }

    /// The same by another way of sending.
    pub(crate) fn give_by(&self, end: &End, send: fn(i32, &[u8], i32) -> sys::Ret) -> String {
        self.pass(end.fd, end.form, send)
    }

    /// Hands any descriptor over.
    pub(crate) fn hand_over(&self, fd: i32, form: Form) -> String {
        self.pass(fd, form, |link, order, fd| {
            sys::send_fds(link, order, &[fd])
        })
    }

    fn pass(&self, fd: i32, form: Form, send: fn(i32, &[u8], i32) -> sys::Ret) -> String {
        let order = format!("take {}", form.name());
        match send(self.link.as_raw_fd(), order.as_bytes(), fd) {
            Ok(_) => self.answer(),
            Err(error) => viaduct_tests::show::errno(error),
        }
    }

    /// Has it do something; what came of that.
    pub(crate) fn does(&self, order: &str) -> String {
        self.begins(order);
        self.answer()
    }

    /// Has it begin something.
    pub(crate) fn begins(&self, order: &str) {
        let _ = sys::write(self.link.as_raw_fd(), order.as_bytes());
    }

    /// What came of what it began.
    pub(crate) fn answer(&self) -> String {
        let mut words = [0; WORDS_MAX];
        let got = sys::read(self.link.as_raw_fd(), &mut words).unwrap_or(0);
        let got = usize::try_from(got).unwrap_or(0);
        String::from_utf8_lossy(words.get(..got).unwrap_or_default()).into_owned()
    }

    /// Has it hand back what it has.
    pub(crate) fn gives_back(&self) -> i32 {
        self.begins("give");
        sys::recv_fd(self.link.as_raw_fd())
    }

    /// Has it leave, with all that it still has open.
    pub(crate) fn leaves(self) -> String {
        let Self { mut child, link } = self;
        drop(link);
        child
            .wait()
            .map_or_else(|error| error.to_string(), |left| left.to_string())
    }

    /// Kills it.
    pub(crate) fn dies(mut self) -> String {
        let _ = self.child.kill();
        self.leaves()
    }
}

/// The program itself: orders come over standard input, and answers go there.
pub(crate) fn serve() -> Result<(), String> {
    const LINK: i32 = 0;
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    if maps.contains("libviaduct") {
        return Err("the library is loaded".to_owned());
    }
    let mut end = End::new(Side::A, Form::Blocking);
    let mut words = [0; WORDS_MAX];
    loop {
        let (got, fd) = sys::recv_with_fd(LINK, &mut words);
        let got = usize::try_from(got.unwrap_or(0)).unwrap_or(0);
        if got == 0 {
            return Ok(());
        }
        let order = String::from_utf8_lossy(words.get(..got).unwrap_or_default()).into_owned();
        if order == "give" {
            let _ = sys::send_fds(LINK, b"given", &[end.fd]);
            let _ = end.close();
            continue;
        }
        let answer = obey(&mut end, &order, fd);
        let _ = sys::write(LINK, answer.as_bytes());
    }
}

/// Does what it is told; what is said of that.
fn obey(end: &mut End, order: &str, fd: i32) -> String {
    let (what, with) = order.split_once(' ').unwrap_or((order, ""));
    let numbers: Vec<usize> = with.split(' ').filter_map(|n| n.parse().ok()).collect();
    match (what, numbers.as_slice()) {
        ("take", _) => {
            *end = End::new(Side::A, with.parse().unwrap_or(Form::Blocking));
            end.take(fd);
            (fd >= 0).to_string()
        }
        ("accept", _) => {
            let listener = std::mem::replace(&mut end.fd, -1);
            end.take(sys::fd_of(sys::accept4(listener, 0)));
            let _ = sys::close(listener);
            (end.fd >= 0).to_string()
        }
        ("say", _) => end.say(with),
        ("arrived", &[count]) => end.arrived(i32::try_from(count).unwrap_or(0)),
        ("hear", &[count]) => end.hear(count),
        ("pour", &[seed, from, to]) => pour(end, seed, from, to),
        ("drink", &[seed, from, to]) => drink(end, seed, from, to),
        ("shut", _) => end.shutdown(libc::SHUT_WR),
        ("close", _) => end.close(),
        _ => "what?".to_owned(),
    }
}

/// Sends a part of a stream.
pub(crate) fn pour(end: &mut End, seed: usize, from: usize, to: usize) -> String {
    let pattern = Pattern::new(seed as u64);
    let mut at = from;
    while at < to {
        let chunk = pattern.at(at, CHUNK.min(to - at));
        if let Err((done, error)) = end.send_all(chunk) {
            return format!("{} then {}", at + done, viaduct_tests::show::errno(error));
        }
        at += chunk.len();
    }
    format!("poured to {to}")
}

/// Receives a part of a stream, and compares it.
pub(crate) fn drink(end: &mut End, seed: usize, from: usize, to: usize) -> String {
    let pattern = Pattern::new(seed as u64);
    let mut at = from;
    while at < to {
        let (bytes, ended) = end.recv_all(CHUNK.min(to - at));
        if bytes != pattern.at(at, bytes.len()) {
            return format!("other bytes between {at} and {}", at + bytes.len());
        }
        at += bytes.len();
        if let Some(why) = ended {
            return format!("{at} then {why}");
        }
    }
    format!("drank to {to}")
}

const CHUNK: usize = 10_000;
