//! The device, without any daemon.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use frontend_drv::device::{Device, Options, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::read;
use viaduct_tests::vm::region::{bell, rings};
use viaduct_tests::vm::slots::{ADDED, END, MEMBERS, answer, question};
use viaduct_tests::vm::window::Window;

use crate::say;

/// Opens the device that is named.
pub(crate) fn opened(choice: &str) -> Result<(Box<dyn Device>, Window)> {
    let choice = choice.parse().map_err(|error: String| anyhow!(error))?;
    let device = open(&Options {
        choice,
        ..Options::default()
    })?;
    let memory = Window::map(device.memory(), usize::try_from(device.memory_bytes())?)?;
    Ok((device, memory))
}

/// Adds to the word that others add to.
pub(crate) fn add(memory: &Window, times: u64) -> Result<()> {
    say("adding")?;
    for _ in 0..times {
        memory.word(ADDED).fetch_add(1, SeqCst);
    }
    Ok(())
}

/// Answers questions.
pub(crate) fn echo(device: &dyn Device, memory: &Window, vectors: u16) -> Result<()> {
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

/// Asks somebody who answers.
pub(crate) fn ask(device: &dyn Device, memory: &Window, target: u16, vector: u16) -> Result<()> {
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

/// Waits until the device is wanted back.
pub(crate) fn wait(device: &dyn Device) -> Result<()> {
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
