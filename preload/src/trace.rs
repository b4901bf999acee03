//! What the library did, one line an event, for those who ask by VIADUCT_LOG. Written from a buffer on the
//! stack by one system call: a signal handler may be what interrupted us.

#![expect(unsafe_code, reason = "the log's descriptor is a number")]

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use frontend_drv::descriptor::lift;
use rustix::fs::{Mode, OFlags, open};

use crate::conn::Conn;
use crate::fds::{self, Entry};

/// How much is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub(crate) enum Level {
    /// A connection was declined or broken.
    Warn = 1,
    /// A connection changed its state.
    Info = 2,
}

static LEVEL: AtomicU32 = AtomicU32::new(0);
static FD: AtomicI32 = AtomicI32::new(2);

/// Reads VIADUCT_LOG (off, warn, info) and VIADUCT_LOG_FILE (appended to; default standard error).
///
/// # Errors
/// One line that names the bad value.
pub(crate) fn configure(level: Option<&str>, file: Option<&str>) -> Result<(), String> {
    let level = match level {
        None | Some("" | "off") => return Ok(()),
        Some("error" | "warn") => Level::Warn,
        Some("info" | "debug" | "trace") => Level::Info,
        Some(other) => return Err(format!("VIADUCT_LOG: \"{other}\" is not off, warn or info")),
    };
    if let Some(path) = file.filter(|path| !path.is_empty()) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::from_raw_mode(0o600))
            .and_then(lift)
            .map_err(|error| format!("VIADUCT_LOG_FILE: cannot write \"{path}\" ({error})"))?;
        fds::insert(fd.as_raw_fd(), Entry::INTERNAL);
        FD.store(fd.into_raw_fd(), Ordering::Relaxed);
    }
    LEVEL.store(level as u32, Ordering::Relaxed);
    Ok(())
}

/// One event of a connection.
#[inline]
pub(crate) fn event(level: Level, conn: &Conn, what: &str, detail: &str) {
    if LEVEL.load(Ordering::Relaxed) >= level as u32 {
        write(conn, what, detail);
    }
}

#[cold]
fn write(conn: &Conn, what: &str, detail: &str) {
    let meta = &conn.slot().meta;
    let ports = meta.ports.load(Ordering::Relaxed);
    let pid = rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    let mut line = Line::default();
    line.text("viaduct[");
    line.number(pid);
    line.text("] connection ");
    line.number(conn.index());
    line.text(" port ");
    line.number(ports & 0xffff);
    line.text(" to ");
    line.number(ports >> 16);
    line.text(": ");
    line.text(what);
    if !detail.is_empty() {
        line.text(" ");
        line.text(detail);
    }
    line.text("\n");
    // SAFETY: standard error, or a file of ours that stays open.
    let fd = unsafe { BorrowedFd::borrow_raw(FD.load(Ordering::Relaxed)) };
    let _ = rustix::io::write(fd, line.bytes.get(..line.used).unwrap_or_default());
}

/// A line being written; what does not fit is cut.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            used: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
    }

    fn number(&mut self, mut value: u32) {
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.text(core::str::from_utf8(&digits[at..]).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_numbers_are_whole() {
        let mut line = Line::default();
        line.number(0);
        line.text(" ");
        line.number(u32::MAX);
        assert_eq!(&line.bytes[..line.used], b"0 4294967295");
        line.text(&"x".repeat(500));
        assert_eq!(line.used, 256);
    }

    #[test]
    fn levels_are_named() {
        assert!(configure(Some("loud"), None).unwrap_err().contains("loud"));
        assert!(configure(Some("off"), None).is_ok());
    }
}
