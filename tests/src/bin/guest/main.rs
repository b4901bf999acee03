//! What tests run inside a guest, against its shared-memory device.
//!
//! * `guest echo CHOICE VECTORS`: answers questions on all vectors, until one is [`END`]. Without interrupts it looks
//!   at the memory instead.
//! * `guest ask CHOICE TARGET VECTOR`: asks the member `TARGET`, which echoes.
//! * `guest add CHOICE TIMES`: adds to a word that others add to, atomically.
//! * `guest wait CHOICE`: waits until the device is wanted back.
//!
//! A question of member M by vector V stands in the slot of the two: a word for the question, one for the answer.
//! Member 0 is the host.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use frontend_drv::device::{Device, Options, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::read;
use viaduct_tests::vm::region::{bell, rings};
use viaduct_tests::vm::slots::{ADDED, END, MEMBERS, answer, question};
use viaduct_tests::vm::window::Window;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match act(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: &[&str]) -> Result<()> {
    let [action, choice, rest @ ..] = arguments else {
        bail!("see the source");
    };
    let choice = choice.parse().map_err(|error: String| anyhow!(error))?;
    let device = open(&Options { choice })?;
    let memory = Window::map(device.memory(), usize::try_from(device.memory_bytes())?)?;
    match (*action, rest) {
        ("echo", [vectors]) => echo(&*device, &memory, vectors.parse()?),
        ("ask", [target, vector]) => ask(&*device, &memory, target.parse()?, vector.parse()?),
        ("add", [times]) => {
            let times: u64 = times.parse()?;
            say("adding")?;
            for _ in 0..times {
                memory.word(ADDED).fetch_add(1, SeqCst);
            }
            Ok(())
        }
        ("wait", []) => wait(&*device),
        _ => bail!("see the source"),
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn echo(device: &dyn Device, memory: &Window, vectors: u16) -> Result<()> {
    let bells: Vec<_> = (0..device.vectors())
        .map(|_| bell())
        .collect::<Result<_, _>>()?;
    for (vector, bell) in (0..).zip(&bells) {
        device.bind(vector, bell.as_fd())?;
    }
    let beyond = device.bind(device.vectors(), bell()?.as_fd());
    ensure!(beyond.is_err(), "a vector too many");
    let register = device.register().is_some();
    say(&format!(
        "id {} vectors {} bytes {} register {register}",
        device.id(),
        device.vectors(),
        device.memory_bytes()
    ))?;
    loop {
        let rang = if bells.is_empty() {
            thread::sleep(Duration::from_millis(1));
            (0..vectors).collect()
        } else {
            rung(&bells)?
        };
        for vector in rang {
            for member in 0..MEMBERS {
                let asked = memory.word(question(member, vector)).load(SeqCst);
                let answer = memory.word(answer(member, vector));
                if asked == answer.load(SeqCst) {
                    continue;
                }
                answer.store(asked, SeqCst);
                device.ring(member, vector);
                if asked == END {
                    return Ok(());
                }
            }
        }
    }
}

/// The vectors that rang.
fn rung(bells: &[OwnedFd]) -> Result<Vec<u16>> {
    let mut entries: Vec<_> = bells
        .iter()
        .map(|bell| PollFd::new(bell, PollFlags::IN))
        .collect();
    poll(&mut entries, None)?;
    let rang = (0..)
        .zip(entries)
        .filter(|(_, entry)| !entry.revents().is_empty());
    let rang: Vec<u16> = rang.map(|(vector, _)| vector).collect();
    for &vector in &rang {
        let bell = bells.get(usize::from(vector)).context("no bell")?;
        read(bell, &mut [0u8; 8])?;
    }
    Ok(rang)
}

fn ask(device: &dyn Device, memory: &Window, target: u16, vector: u16) -> Result<()> {
    let own = bell()?;
    device.bind(vector, own.as_fd())?;
    for asked in 1..=100 {
        memory
            .word(question(device.id(), vector))
            .store(asked, SeqCst);
        device.ring(target, vector);
        ensure!(rings(&own)?, "no answer to question {asked}");
        let answer = memory.word(answer(device.id(), vector)).load(SeqCst);
        ensure!(answer == asked, "{answer} in answer to {asked}");
    }
    say("answered")
}

fn wait(device: &dyn Device) -> Result<()> {
    ensure!(device.is_present(), "the device is not there");
    say("there")?;
    let news = device.news().context("nobody would tell")?;
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    poll(
        &mut [PollFd::from_borrowed_fd(news, PollFlags::IN)],
        Some(&limit),
    )?;
    ensure!(!device.is_present(), "the device is still there");
    say("wanted back")
}
