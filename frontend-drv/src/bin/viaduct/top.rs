//! `viaduct top`: the busiest connections, drawn anew every second on one screen.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::read;
use rdma_core::control::Query;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::columns::{Columns, Side};
use crate::daemon::Daemon;
use crate::report::{Connection, Status};
use crate::status::{headline, program_of};
use crate::units;

/// Show the busiest connections, once a second.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The daemon's socket [default: VIADUCT_SOCKET, the system's daemon, or this user's embedded one]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(crate) fn run(args: &TopArgs) -> Result<ExitCode> {
    if !io::stdout().is_terminal() {
        bail!("top draws on a terminal, and stdout is none: use viaduct status");
    }
    let socket = args.socket.as_deref();
    let mut rates = Rates::default();
    // The first answer is awaited before the screen changes, so that an error stays readable.
    let mut status = fetch(socket)?;
    let mut signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.extend([Signal::SIGTSTP, Signal::SIGWINCH]);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let mut screen = Screen::enter()?;
    loop {
        let busy = rates.update(&status, Instant::now());
        let mut wake = Instant::now() + PERIOD;
        screen.draw(&status, &busy)?;
        loop {
            match wait(&signals, screen.keys(), wake)? {
                Event::Quit => return Ok(ExitCode::SUCCESS),
                Event::Stop => {
                    drop(screen);
                    raise(Signal::SIGSTOP)?;
                    screen = Screen::enter()?;
                    wake = Instant::now();
                }
                Event::Resize => screen.draw(&status, &busy)?,
                Event::Tick => break,
            }
        }
        status = fetch(socket).unwrap_or_else(|error| {
            let mut gone = Status::default();
            gone.daemon.version = format!("is gone ({error:#})");
            gone
        });
    }
}

/// Asks anew each time: a socket that is kept would keep an embedded daemon from leaving.
fn fetch(socket: Option<&Path>) -> Result<Status> {
    let daemon = Daemon::find(socket)?;
    let text = daemon.connection.ask(Query::STATUS, 0)?;
    Status::parse(&text).context("the daemon sends no status")
}

enum Event {
    Quit,
    Stop,
    Resize,
    Tick,
}

/// Waits for a key, a signal or the time.
fn wait(signals: &SignalFd, keys: Option<BorrowedFd<'_>>, until: Instant) -> Result<Event> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Event::Tick);
        }
        let mut entries = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        entries.extend(keys.map(|keys| PollFd::new(keys, PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut entries, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |at: usize| {
            let entry = entries.get(at).and_then(PollFd::revents);
            entry.is_some_and(|events| !events.is_empty())
        };
        if ready(0) {
            let signal = signals
                .read_signal()?
                .map(|info| info.ssi_signo.cast_signed());
            return Ok(
                match signal.and_then(|number| Signal::try_from(number).ok()) {
                    Some(Signal::SIGTSTP) => Event::Stop,
                    Some(Signal::SIGWINCH) => Event::Resize,
                    _ => Event::Quit,
                },
            );
        }
        if let (true, Some(keys)) = (ready(1), keys) {
            // Not through std's buffer, where poll would not see a second key.
            let mut typed = [0; 64];
            let length = read(keys, &mut typed)?;
            let quits = |key: &u8| matches!(key, b'q' | b'Q');
            if length == 0 || typed.iter().take(length).any(quits) {
                return Ok(Event::Quit);
            }
        }
    }
}

/// Bytes per second of each connection since the last look.
#[derive(Debug, Default)]
struct Rates {
    before: HashMap<(u64, u64, u64), [u64; 4]>,
    at: Option<Instant>,
}

/// A connection's place in [`Status::connections`] and its rates: ring out and in, TCP out and in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Busy {
    index: usize,
    rates: [u64; 4],
}

impl Rates {
    /// The connections, busiest first.
    fn update(&mut self, status: &Status, now: Instant) -> Vec<Busy> {
        let elapsed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let mut after = HashMap::with_capacity(status.connections.len());
        let mut busy = Vec::with_capacity(status.connections.len());
        for (index, c) in status.connections.iter().enumerate() {
            let key = (c.process, c.slot, c.conn_id);
            let bytes = [c.ring_tx, c.ring_rx, c.tcp_tx, c.tcp_rx];
            let rates = self.before.get(&key).map_or([0; 4], |before| {
                let mut rates = bytes;
                for (rate, before) in rates.iter_mut().zip(before) {
                    *rate = per_second(rate.saturating_sub(*before), millis);
                }
                rates
            });
            busy.push(Busy { index, rates });
            after.insert(key, bytes);
        }
        self.before = after;
        self.at = Some(now);
        let all = |busy: &Busy| busy.rates.iter().copied().fold(0, u64::saturating_add);
        let bytes = |busy: &Busy| {
            status
                .connections
                .get(busy.index)
                .map_or(0, Connection::bytes)
        };
        busy.sort_by_key(|entry| std::cmp::Reverse((all(entry), bytes(entry))));
        busy
    }
}

fn per_second(bytes: u64, millis: u64) -> u64 {
    let per_second = u128::from(bytes) * 1000;
    let rate = per_second.checked_div(u128::from(millis)).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The screen as lines, none wider or more than fit.
fn lines(status: &Status, busy: &[Busy], width: usize, height: usize) -> Vec<String> {
    let mut table = Columns::new(&[
        ("PROGRAM", Side::Left),
        ("OWN ADDRESS", Side::Left),
        ("FAR ADDRESS", Side::Left),
        ("TX/RX", Side::Left),
        ("RING OUT", Side::Right),
        ("RING IN", Side::Right),
        ("TCP OUT", Side::Right),
        ("TCP IN", Side::Right),
        ("REASON", Side::Left),
    ]);
    for Busy { index, rates } in busy.iter().take(height) {
        let Some(c) = status.connections.get(*index) else {
            continue;
        };
        let mut cells = vec![
            program_of(c, &status.processes),
            c.own.clone(),
            c.far.clone(),
            format!("{}/{}", c.sending, c.receiving),
        ];
        cells.extend(rates.iter().map(|rate| units::rate(*rate)));
        cells.push(c.reason.clone());
        table.row(cells);
    }
    let mut lines = vec![headline(&status.daemon, status.connections.len())];
    lines.push(String::new());
    lines.extend(table.lines());
    lines.truncate(height);
    for line in &mut lines {
        if let Some((end, _)) = line.char_indices().nth(width) {
            line.truncate(end);
        }
    }
    lines
}

/// The terminal while we draw on it; put back when dropped.
#[derive(Debug)]
struct Screen {
    stdin: io::Stdin,
    before: Option<Termios>,
}

impl Screen {
    fn enter() -> Result<Self> {
        let stdin = io::stdin();
        // Without a keyboard, Ctrl-C and SIGTERM still end it.
        let before = if stdin.is_terminal() {
            tcgetattr(&stdin).ok()
        } else {
            None
        };
        if let Some(before) = &before {
            let mut keys = before.clone();
            keys.local_modes
                .remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(&stdin, OptionalActions::Now, &keys)?;
        }
        let screen = Self { stdin, before };
        write(ENTER)?;
        Ok(screen)
    }

    fn keys(&self) -> Option<BorrowedFd<'_>> {
        self.before.as_ref().map(|_| self.stdin.as_fd())
    }

    fn draw(&self, status: &Status, busy: &[Busy]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout().as_fd()).ok();
        let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let (height, width) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
        let lines = lines(status, busy, width.into(), height.into());
        let lines: Vec<String> = lines
            .iter()
            .map(|line| format!("{line}{END_OF_LINE}"))
            .collect();
        write(&format!("{HOME}{}{END_OF_SCREEN}", lines.join("\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.stdin, OptionalActions::Now, before);
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

const PERIOD: Duration = Duration::from_secs(1);
/// Alternate screen, cursor off.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Cursor on, main screen.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K";
const END_OF_SCREEN: &str = "\x1b[J";

#[cfg(test)]
mod tests {
    use super::*;

    fn status(bytes: [u64; 2]) -> Status {
        let connection = |slot: usize, bytes: u64| {
            format!(
                r#"{{"process": 1, "slot": {slot}, "own": "10.0.0.1:{slot}", "ring_tx": {bytes}}}"#
            )
        };
        let [a, b] = bytes;
        let text = format!(
            r#"{{"connections": [{}, {}]}}"#,
            connection(0, a),
            connection(1, b)
        );
        Status::parse(&text).unwrap()
    }

    #[test]
    fn the_busiest_comes_first_whatever_it_did_before() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let first = rates.update(&status([1 << 30, 0]), start);
        assert_eq!(
            first.first().unwrap().rates,
            [0; 4],
            "nothing to compare with"
        );
        let later = start + Duration::from_millis(500);
        let second = rates.update(&status([1 << 30, 2048]), later);
        let busiest = Busy {
            index: 1,
            rates: [4096, 0, 0, 0],
        };
        assert_eq!(second.first(), Some(&busiest));
    }

    #[test]
    fn the_picture_fits_the_screen() {
        let status = status([1, 2]);
        let busy = Rates::default().update(&status, Instant::now());
        let drawn = lines(&status, &busy, 20, 4);
        assert_eq!(drawn.len(), 4);
        assert!(
            drawn.iter().all(|line| line.chars().count() <= 20),
            "{drawn:?}"
        );
    }

    #[test]
    fn a_rate_over_no_time_is_none() {
        assert_eq!(per_second(5, 0), 0);
        assert_eq!(per_second(u64::MAX, 1), u64::MAX);
    }
}
