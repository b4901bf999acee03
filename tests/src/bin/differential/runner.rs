//! Starts the ends of each case, watches over them, and says how they left.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use viaduct_tests::rig::patience::Patience;
use viaduct_tests::show;
use viaduct_tests::sys;

use crate::cases::{self, Case, Topology};
use crate::end::Side;
use crate::form::Form;
use crate::stage::{Options, Stage};

/// A case that takes longer hangs: time for one call that never returns to run out of patience, and
/// as much again.
fn watchdog() -> Duration {
    Duration::from_millis(2 * u64::from(crate::end::patience().unsigned_abs()))
}

/// Cases that may hang before the run is given up.
const HANGS_MAX: usize = 6;

/// Options of `run` and `play`, which share most of them.
#[derive(Debug)]
struct Wishes {
    topology: Topology,
    options: Options,
    preload: [Option<String>; 2],
    /// Socket of the daemon of end B, if it has another than end A.
    socket_b: Option<String>,
    /// User of end B, if it is another than that of end A.
    user_b: Option<u32>,
    only: Option<String>,
    case: Option<String>,
    form: Form,
    side: Option<Side>,
    evidence: Option<String>,
    /// Every case in every form.
    every_form: bool,
    jobs: usize,
}

fn parse(words: &[String]) -> Result<Wishes, String> {
    let mut wishes = Wishes {
        topology: Topology::Processes,
        options: Options {
            warm: false,
            ring: false,
            swap: false,
        },
        preload: [None, None],
        socket_b: None,
        user_b: None,
        only: None,
        case: None,
        form: Form::Blocking,
        side: None,
        evidence: None,
        every_form: false,
        jobs: 1,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .cloned()
                .ok_or_else(|| format!("{word} needs a value"))
        };
        match word.as_str() {
            "--topology" => wishes.topology = value()?.parse()?,
            "--warm" => wishes.options.warm = true,
            "--ring" => wishes.options.ring = true,
            "--swap" => wishes.options.swap = true,
            "--preload-a" => wishes.preload[0] = Some(value()?),
            "--preload-b" => wishes.preload[1] = Some(value()?),
            "--socket-b" => wishes.socket_b = Some(value()?),
            "--user-b" => {
                let user = value()?;
                let number = user.parse().map_err(|_| format!("--user-b {user}"))?;
                wishes.user_b = Some(number);
            }
            "--every-form" => wishes.every_form = true,
            "--only" => wishes.only = Some(value()?),
            "--evidence" => wishes.evidence = Some(value()?),
            "--jobs" => {
                let jobs = value()?;
                wishes.jobs = jobs.parse().map_err(|_| format!("--jobs {jobs}"))?;
            }
            "--patience" => {
                let ms = value()?;
                crate::end::set_patience(ms.parse().map_err(|_| format!("--patience {ms}"))?);
            }
            "--case" => wishes.case = Some(value()?),
            "--form" => wishes.form = value()?.parse()?,
            "--side" => {
                wishes.side = Some(if value()? == "a" { Side::A } else { Side::B });
            }
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(wishes)
}

/// One case in one form, to be run.
struct Turn {
    case: &'static Case,
    form: Form,
    name: String,
}

/// How a turn went.
struct Outcome {
    output: String,
    session: u64,
    took: Duration,
}

/// `run`: all cases, several at a time, printed in their order.
pub(crate) fn run(words: &[String]) -> Result<(), String> {
    let wishes = parse(words)?;
    let turns = turns(&wishes);
    let next = AtomicUsize::new(0);
    let hangs = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Outcome>>> = turns.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while hangs.load(Ordering::Relaxed) < HANGS_MAX {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (Some(turn), Some(place)) = (turns.get(number), outcomes.get(number)) else {
                return;
            };
            let outcome = take(&wishes, turn, &hangs);
            if let Ok(mut place) = place.lock() {
                *place = Some(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..wishes.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut evidence = match &wishes.evidence {
        Some(path) => Some(File::create(path).map_err(|e| format!("{path}: {e}"))?),
        None => None,
    };
    for (turn, outcome) in turns.iter().zip(outcomes) {
        let Ok(Some(outcome)) = outcome.into_inner() else {
            crate::print(&format!("{} not run: too many cases hang", turn.name));
            continue;
        };
        crate::print(outcome.output.trim_end());
        if let Some(file) = &mut evidence {
            let ms = outcome.took.as_millis();
            let _ = writeln!(file, "{} {:x} {ms}", turn.name, outcome.session);
        }
    }
    Ok(())
}

fn turns(wishes: &Wishes) -> Vec<Turn> {
    let mut turns = Vec::new();
    for case in cases::all().filter(|case| case.fits(wishes.topology)) {
        for &form in case.forms(wishes.every_form) {
            let name = format!("{}/{}", case.name, form.name());
            if wishes
                .only
                .as_ref()
                .is_none_or(|only| match only.strip_prefix('^') {
                    Some(start) => name.starts_with(start),
                    None => name.contains(only.as_str()),
                })
            {
                turns.push(Turn { case, form, name });
            }
        }
    }
    turns
}

fn take(wishes: &Wishes, turn: &Turn, hangs: &AtomicUsize) -> Outcome {
    // Known to the test that reads the daemon's totals.
    let session = show::hash(turn.name.as_bytes()) | 1;
    let started = Instant::now();
    let mut output = String::new();
    match start(wishes, turn, session) {
        Err(error) => output = format!("{}: {error}\n", turn.name),
        Ok((mut ends, printed)) => {
            let reader = std::thread::spawn(move || read_all(printed));
            let left = watch(&turn.name, &mut ends, hangs);
            output += &reader.join().unwrap_or_default();
            output += &left;
        }
    }
    Outcome {
        output,
        session,
        took: started.elapsed(),
    }
}

fn read_all(mut printed: PipeReader) -> String {
    let mut bytes = Vec::new();
    let _ = printed.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

type Started = (Vec<(Side, Child)>, PipeReader);

fn start(wishes: &Wishes, turn: &Turn, session: u64) -> std::io::Result<Started> {
    let (printed, print) = pipe()?;
    if wishes.topology != Topology::Processes {
        let both = spawn(wishes, turn, session, None, Stdio::null(), print)?;
        return Ok((vec![(Side::A, both)], printed));
    }
    let (to_a, to_b) = UnixStream::pair()?;
    let mut ends = Vec::new();
    for (side, link) in [(Side::A, to_a), (Side::B, to_b)] {
        let link = Stdio::from(OwnedFd::from(link));
        ends.push((
            side,
            spawn(wishes, turn, session, Some(side), link, print.try_clone()?)?,
        ));
    }
    Ok((ends, printed))
}

fn spawn(
    wishes: &Wishes,
    turn: &Turn,
    session: u64,
    side: Option<Side>,
    link: Stdio,
    print: PipeWriter,
) -> std::io::Result<Child> {
    let options = wishes.options;
    let flags = [
        (options.warm, "--warm"),
        (options.ring, "--ring"),
        (options.swap, "--swap"),
    ];
    let [a, b] = &wishes.preload;
    let preload = if side == Some(Side::B) { b } else { a };
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["play", "--case", turn.case.name, "--form", turn.form.name()])
        .args(["--topology", wishes.topology.name()])
        .args(["--patience", &crate::end::patience().to_string()])
        .args(
            flags
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, flag)| flag),
        )
        .env("VIADUCT_SESSION", format!("{session:x}"))
        .process_group(0)
        .stdin(link)
        .stdout(print);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    if let Some(socket) = wishes.socket_b.as_ref().filter(|_| side == Some(Side::B)) {
        command.env("VIADUCT_SOCKET", socket);
    }
    if let Some(user) = wishes.user_b.filter(|_| side == Some(Side::B)) {
        command.uid(user).gid(user);
    }
    if let Some(side) = side {
        command.args(["--side", side.name()]);
    }
    command.spawn()
}

/// Waits for the ends; what must be said of how they left.
fn watch(name: &str, ends: &mut [(Side, Child)], hangs: &AtomicUsize) -> String {
    let mut patience = Patience::new();
    while ends
        .iter_mut()
        .any(|(_, child)| matches!(child.try_wait(), Ok(None)))
    {
        if patience.is_beyond(watchdog()) {
            for (side, child) in ends.iter_mut() {
                eprintln!(
                    "{name} hangs: end {}: {}",
                    side.name(),
                    whereabouts(child.id())
                );
                // With whatever it forked, which would keep our pipe open.
                sys::kill_group(child.id());
                let _ = child.wait();
            }
            hangs.fetch_add(1, Ordering::Relaxed);
            return format!("{name} hangs\n");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut left = String::new();
    for (side, child) in ends.iter_mut() {
        let status = child.wait().ok();
        if status.is_none_or(|status| !status.success()) {
            left += &format!("{name} end {}: {}\n", side.name(), departure(status));
        }
    }
    left
}

fn departure(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "lost".to_owned(), |status| status.to_string())
}

/// What the threads of a process are doing, for whoever reads the log.
fn whereabouts(pid: u32) -> String {
    let mut all = String::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return all;
    };
    for task in tasks.flatten() {
        let read = |what: &str| std::fs::read_to_string(task.path().join(what)).unwrap_or_default();
        all += &format!("[{} {}] ", read("wchan"), read("syscall").trim_end());
    }
    all
}

/// `play`: one case, in this process.
pub(crate) fn play(words: &[String]) -> Result<(), String> {
    let wishes = parse(words)?;
    let name = wishes.case.clone().unwrap_or_default();
    let case = cases::all()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("no such case: {name}"))?;
    let stage = |side, link| Stage::new(case.name, wishes.form, side, link, wishes.options);
    match wishes.topology {
        Topology::Single => (case.play)(&mut stage(None, -1)),
        Topology::Processes => (case.play)(&mut stage(wishes.side, 0)),
        Topology::Threads => {
            let (to_a, to_b) = sys::socketpair();
            let mut at_b = stage(Some(Side::B), to_b);
            let other = std::thread::spawn(move || (case.play)(&mut at_b));
            (case.play)(&mut stage(Some(Side::A), to_a));
            other.join().map_err(|_| "end b panicked".to_owned())?;
        }
    }
    Ok(())
}
