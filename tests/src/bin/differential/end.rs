//! One end of the connection under test, with the calls that cases make on it.

use core::sync::atomic::{AtomicI32, Ordering};

use libc::{EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, POLLIN, POLLOUT, POLLRDHUP};

use crate::form::Form;
use crate::pattern::{self, Pattern, Sizes};
use viaduct_tests::show;
use viaduct_tests::sys::{self, Ret};

/// Which end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// It connects (unless the run swaps the roles).
    A,
    /// It accepts.
    B,
}

impl Side {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// How long anything that must happen is waited for. Not a limit that a test asserts: what has not
/// happened by then is printed as not having happened.
static PATIENCE_MS: AtomicI32 = AtomicI32::new(20_000);

/// The present patience in milliseconds.
pub(crate) fn patience() -> i32 {
    PATIENCE_MS.load(Ordering::Relaxed)
}

/// Less patience, for whoever debugs a case that hangs.
pub(crate) fn set_patience(ms: i32) {
    PATIENCE_MS.store(ms, Ordering::Relaxed);
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) side: Side,
    pub(crate) fd: i32,
    pub(crate) form: Form,
    /// The epoll set of the form; -1 if it has none.
    pub(crate) set: i32,
    /// An epoll set of the case's own; -1 if it has none.
    pub(crate) epfd: i32,
    /// More descriptors of the case.
    pub(crate) more: Vec<i32>,
    /// What the form asks of the socket, once it is prepared for it; `None`: not yet.
    asked: Option<i32>,
    /// The connection was upgraded before the case began: no edge of the upgrade itself can come.
    pub(crate) settled: bool,
}

impl End {
    pub(crate) const fn new(side: Side, form: Form) -> Self {
        Self {
            side,
            fd: -1,
            form,
            set: -1,
            epfd: -1,
            more: Vec::new(),
            asked: None,
            settled: false,
        }
    }

    /// Another socket from now on; the form has it from the first call that waits.
    pub(crate) const fn hold(&mut self, fd: i32) {
        self.fd = fd;
        self.asked = None;
    }

    /// Takes a connected socket and prepares it for the form.
    pub(crate) fn take(&mut self, fd: i32) {
        self.hold(fd);
        self.prepare();
    }

    /// Prepares the socket for the form, unless it is.
    fn prepare(&mut self) {
        if self.form == Form::Blocking || self.asked.is_some() {
            return;
        }
        let _ = sys::set_nonblocking(self.fd, true);
        let asked = match self.form {
            Form::Edge => EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
            Form::OneShot => EPOLLONESHOT,
            _ => EPOLLIN,
        };
        self.asked = Some(asked);
        if self.form.has_set() {
            if self.set == -1 {
                self.set = sys::fd_of(sys::epoll_create());
            }
            let added = sys::epoll_ctl(self.set, libc::EPOLL_CTL_ADD, self.fd, asked, 7);
            if added == Err(libc::EEXIST) {
                let _ = sys::epoll_ctl(self.set, libc::EPOLL_CTL_MOD, self.fd, asked, 7);
            }
        }
    }

    /// The connection that was last set aside.
    pub(crate) fn aside(&self) -> i32 {
        self.more.last().copied().unwrap_or(-1)
    }

    /// Takes the socket out of the form's set, until this end waits again.
    pub(crate) fn leave_set(&mut self) {
        if self.set != -1 {
            let _ = sys::close(self.set);
        }
        self.set = -1;
        self.asked = None;
    }

    /// The same socket for another thread, which waits in the form by itself.
    pub(crate) const fn another(&self) -> Self {
        let mut end = Self::new(self.side, self.form);
        end.fd = self.fd;
        end
    }

    /// Waits in the form for readability (or writability), whatever signals come. False: patience is at its end.
    pub(crate) fn wait(&mut self, to_write: bool) -> bool {
        self.wait_for(!to_write, to_write)
    }

    /// Waits in the form for either.
    fn wait_for(&mut self, to_read: bool, to_write: bool) -> bool {
        loop {
            match self.wait_once(to_read, to_write) {
                Err(libc::EINTR) => {}
                waited => return waited == Ok(true),
            }
        }
    }

    /// One call that waits.
    fn wait_once(&mut self, to_read: bool, to_write: bool) -> Result<bool, i32> {
        self.prepare();
        let fd = self.fd;
        let wish = |read, write| if to_read { read } else { 0 } | if to_write { write } else { 0 };
        match self.form {
            Form::Blocking => Ok(true),
            Form::Poll => {
                let events = if to_read { POLLIN } else { 0 } | if to_write { POLLOUT } else { 0 };
                sys::poll(&[(fd, events)], patience())
                    .0
                    .map(|ready| ready > 0)
            }
            Form::Select => {
                let (read, write) = (to_read.then_some(fd), to_write.then_some(fd));
                let patience = Some(i64::from(patience()));
                sys::select(read.as_slice(), write.as_slice(), &[], patience, None)
                    .ret
                    .map(|ready| ready > 0)
            }
            Form::Level | Form::OneShot => {
                let wish = wish(EPOLLIN, EPOLLOUT);
                let one_shot = self.form == Form::OneShot;
                let wish = if one_shot { wish | EPOLLONESHOT } else { wish };
                if self.asked != Some(wish) || one_shot {
                    self.asked = Some(wish);
                    let _ = sys::epoll_ctl(self.set, libc::EPOLL_CTL_MOD, fd, wish, 7);
                }
                self.wait_set()
            }
            Form::Edge => self.wait_set(),
        }
    }

    fn wait_set(&self) -> Result<bool, i32> {
        sys::epoll_wait(self.set, 4, patience()).map(|events| !events.is_empty())
    }

    /// Whether the form waits before it calls.
    const fn waits_first(&self) -> bool {
        matches!(self.form, Form::Poll | Form::Select | Form::Level)
    }

    /// One receive that waits in the form.
    pub(crate) fn recv_some(&mut self, out: &mut [u8]) -> Ret {
        self.patiently(false, |fd| sys::recv(fd, out, 0))
    }

    /// One send that waits in the form.
    pub(crate) fn send_some(&mut self, data: &[u8]) -> Ret {
        self.patiently(true, |fd| sys::send(fd, data, libc::MSG_NOSIGNAL))
    }

    /// A call that waits in the form: before it, or once it has answered that it would block.
    pub(crate) fn patiently(&mut self, to_write: bool, mut call: impl FnMut(i32) -> Ret) -> Ret {
        self.prepare();
        if self.waits_first() {
            return self.after_waiting(to_write, call);
        }
        match call(self.fd) {
            Err(libc::EAGAIN) if self.form != Form::Blocking => self.after_waiting(to_write, call),
            other => other,
        }
    }

    /// Waits in the form and calls, until the call does not say that it would block.
    fn after_waiting(&mut self, to_write: bool, mut call: impl FnMut(i32) -> Ret) -> Ret {
        loop {
            if !self.wait(to_write) {
                return Err(libc::ETIMEDOUT);
            }
            match call(self.fd) {
                Err(libc::EAGAIN) if self.form != Form::Blocking => {}
                other => return other,
            }
        }
    }

    /// Sends everything; how much was sent before an error, and the error.
    pub(crate) fn send_all(&mut self, data: &[u8]) -> Result<(), (usize, i32)> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match self.send_some(rest) {
                Ok(sent) => done += usize::try_from(sent).unwrap_or(0),
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }

    /// Receives up to `want` bytes, until end of stream or an error; the bytes, and what ended it early.
    pub(crate) fn recv_all(&mut self, want: usize) -> (Vec<u8>, Option<String>) {
        let mut bytes = vec![0; want];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.recv_some(rest) {
                Ok(0) => {
                    bytes.truncate(done);
                    return (bytes, Some("end".to_owned()));
                }
                Ok(got) => done += usize::try_from(got).unwrap_or(0),
                Err(error) => {
                    bytes.truncate(done);
                    return (bytes, Some(show::errno(error)));
                }
            }
        }
        (bytes, None)
    }

    /// Sends `text`, and says how that went.
    pub(crate) fn say(&mut self, text: &str) -> String {
        match self.send_all(text.as_bytes()) {
            Ok(()) => format!("sent {}", text.len()),
            Err((done, error)) => format!("sent {done} then {}", show::errno(error)),
        }
    }

    /// Receives exactly `want` bytes, and says what came.
    pub(crate) fn hear(&mut self, want: usize) -> String {
        let (bytes, ended) = self.recv_all(want);
        match ended {
            None => show::data(&bytes),
            Some(why) => format!("{} then {why}", show::data(&bytes)),
        }
    }

    /// One receive with flags, which waits in the form if it would block.
    pub(crate) fn recv(&mut self, room: usize, flags: i32) -> String {
        let waits = flags & (libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) == 0;
        let mut buffer = vec![0; room];
        let mut call = |fd| sys::recv(fd, &mut buffer, flags);
        let mut ret = call(self.fd);
        if waits && ret == Err(libc::EAGAIN) && self.form != Form::Blocking {
            ret = self.after_waiting(false, call);
        }
        show::got(ret, &buffer)
    }

    /// One receive with flags, without any waiting of ours.
    pub(crate) fn recv_once(&self, room: usize, flags: i32) -> String {
        let mut buffer = vec![0; room];
        let ret = sys::recv(self.fd, &mut buffer, flags);
        show::got(ret, &buffer)
    }

    /// One send with flags, without any waiting of ours; never a signal.
    pub(crate) fn send(&self, data: &[u8], flags: i32) -> String {
        show::ret(sys::send(self.fd, data, flags | libc::MSG_NOSIGNAL))
    }

    /// Everything that poll can say of a stream socket, once it says `expected` (or patience ends).
    pub(crate) fn ready(&self, expected: i16) -> String {
        settle(
            self.fd,
            POLLIN | POLLOUT | POLLRDHUP | libc::POLLPRI,
            expected,
        )
    }

    /// Waits until `count` bytes have arrived (FIONREAD); how many have.
    pub(crate) fn arrived(&self, count: i32) -> String {
        let mut last = -1;
        for _ in 0..patience() / 4 {
            last = sys::ioctl(self.fd, sys::FIONREAD, -1).1;
            if last >= count {
                break;
            }
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        last.to_string()
    }

    /// The state of the kernel's connection, by number.
    pub(crate) fn state(&self) -> String {
        let info = sys::getsockopt(self.fd, libc::IPPROTO_TCP, libc::TCP_INFO);
        info.map_or_else(show::errno, |info| (info & 0xff).to_string())
    }

    /// As [`End::state`], once a FIN that was sent is acknowledged: when the far kernel finds it convenient. To a set
    /// that is an edge.
    pub(crate) fn state_after_fin(&self) -> String {
        const FIN_WAIT1: &str = "4";
        for _ in 0..2000 {
            let state = self.state();
            if state != FIN_WAIT1 {
                return state;
            }
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        FIN_WAIT1.to_owned()
    }

    /// SO_ERROR, by name.
    pub(crate) fn so_error(&self) -> String {
        match sys::getsockopt(self.fd, libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok(0) => "none".to_owned(),
            Ok(error) => show::errno(i32::try_from(error).unwrap_or(-1)),
            Err(error) => format!("getsockopt: {}", show::errno(error)),
        }
    }

    pub(crate) fn shutdown(&self, how: i32) -> String {
        show::ok(sys::shutdown(self.fd, how))
    }

    pub(crate) fn close(&mut self) -> String {
        let closed = sys::close(self.fd);
        self.fd = -1;
        show::ok(closed)
    }

    /// Sends `bytes` of a pattern in chunks of varying size.
    pub(crate) fn pour(&mut self, pattern: &Pattern, bytes: usize, seed: u64) -> String {
        let mut sizes = Sizes::new(seed);
        let mut done = 0;
        while done < bytes {
            let chunk = pattern.at(done, sizes.next_size().min(bytes - done));
            match self.send_some(chunk) {
                Ok(sent) => done += usize::try_from(sent).unwrap_or(0),
                Err(error) => return format!("{done} then {}", show::errno(error)),
            }
        }
        format!("poured {done}")
    }

    /// Receives `bytes` of a pattern in chunks of varying size and compares each.
    pub(crate) fn drink(&mut self, pattern: &Pattern, bytes: usize, seed: u64) -> String {
        let mut sizes = Sizes::new(seed);
        let mut buffer = vec![0; pattern::SIZE_MAX];
        let mut done = 0;
        while done < bytes {
            let room = sizes.next_size().min(bytes - done);
            let Some(out) = buffer.get_mut(..room) else {
                break;
            };
            match self.recv_some(out) {
                Ok(0) => return format!("{done} then end"),
                Ok(got) => {
                    let got = usize::try_from(got).unwrap_or(0);
                    if out.get(..got) != Some(pattern.at(done, got)) {
                        return format!("other bytes between {done} and {}", done + got);
                    }
                    done += got;
                }
                Err(error) => return format!("{done} then {}", show::errno(error)),
            }
        }
        format!("drank {done}")
    }

    /// Pours one stream and drinks another at the same time: two threads if the form is blocking, else
    /// one that serves both directions.
    pub(crate) fn duplex(
        &mut self,
        out: &Pattern,
        back: &Pattern,
        bytes: usize,
        seed: u64,
    ) -> String {
        if self.form != Form::Blocking {
            return self.duplex_alone(out, back, bytes, seed);
        }
        let mut writer = self.another();
        std::thread::scope(|scope| {
            let poured = scope.spawn(move || writer.pour(out, bytes, seed));
            let drunk = self.drink(back, bytes, seed + 1);
            format!("{} {drunk}", poured.join().unwrap_or_default())
        })
    }

    fn duplex_alone(&mut self, out: &Pattern, back: &Pattern, bytes: usize, seed: u64) -> String {
        let (mut sizes, mut rooms) = (Sizes::new(seed), Sizes::new(seed + 1));
        let mut buffer = vec![0; pattern::SIZE_MAX];
        let (mut sent, mut read) = (0, 0);
        while sent < bytes || read < bytes {
            let mut moved = false;
            if sent < bytes {
                let chunk = out.at(sent, sizes.next_size().min(bytes - sent));
                match sys::send(self.fd, chunk, libc::MSG_NOSIGNAL) {
                    Ok(count) => {
                        sent += usize::try_from(count).unwrap_or(0);
                        moved = true;
                    }
                    Err(libc::EAGAIN) => {}
                    Err(error) => return format!("sent {sent} then {}", show::errno(error)),
                }
            }
            if read < bytes {
                let room = rooms.next_size().min(bytes - read);
                let place = buffer.get_mut(..room).unwrap_or_default();
                match sys::recv(self.fd, place, 0) {
                    Ok(0) => return format!("read {read} then end"),
                    Ok(count) => {
                        let count = usize::try_from(count).unwrap_or(0);
                        if place.get(..count) != Some(back.at(read, count)) {
                            return format!("other bytes between {read} and {}", read + count);
                        }
                        read += count;
                        moved = true;
                    }
                    Err(libc::EAGAIN) => {}
                    Err(error) => return format!("read {read} then {}", show::errno(error)),
                }
            }
            if !moved && !self.wait_for(read < bytes, sent < bytes) {
                return format!("stuck at {sent} sent, {read} read");
            }
        }
        format!("poured {sent} drank {read}")
    }
}

/// Polls until the answer is `expected` or patience ends; the last answer.
pub(crate) fn settle(fd: i32, events: i16, expected: i16) -> String {
    let mut last = 0;
    for _ in 0..patience() / 4 {
        let (ret, revents) = sys::poll(&[(fd, events)], 0);
        if let Err(error) = ret {
            return show::errno(error);
        }
        last = revents.first().copied().unwrap_or(0);
        if last == expected {
            break;
        }
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    show::bits(last)
}
