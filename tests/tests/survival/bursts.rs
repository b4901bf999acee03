//! An agent's bursts: messages of all sizes with pauses between them, both ways at once, each byte of which is checked.

#![expect(unsafe_code, reason = "fork")]

use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::pattern::Pattern;

/// Up to more than a ring holds.
const SIZES: [usize; 7] = [1, 40, 3000, 70_000, 300_000, 1 << 20, 5 << 20];
/// Some longer, some shorter than what makes a ring a quiet one.
const PAUSES_US: [u64; 5] = [0, 0, 300, 2000, 5000];
/// A forked child sends each burst of this many.
const FORKED: usize = 3;

/// What one end sends, as both know it.
struct Bursts {
    bytes: Pattern,
    choices: Pattern,
}

impl Bursts {
    fn new(seed: u64) -> Self {
        Self {
            bytes: Pattern::new(seed),
            choices: Pattern::new(!seed),
        }
    }

    /// The next burst, and the pause after it.
    fn next(&mut self) -> (Vec<u8>, Duration) {
        let mut burst = vec![0; *self.choices.pick(&SIZES)];
        self.bytes.fill(&mut burst);
        let pause = Duration::from_micros(*self.choices.pick(&PAUSES_US));
        (burst, pause)
    }
}

/// Sends `rounds` bursts of `own` and receives as many of `far`, at the same time. `forks`: children send some of them.
pub(crate) fn bursts(
    stream: &TcpStream,
    rounds: usize,
    own: u64,
    far: u64,
    forks: bool,
) -> Result<String> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, rounds, own, forks));
        let received = receive(stream, rounds, far);
        let sent = sender.join().expect("the sender");
        match received {
            Ok(answer) if answer == "ok" => sent.map(|()| answer),
            // The cause of whatever the sender met.
            other => other,
        }
    })
}

fn send(mut stream: &TcpStream, rounds: usize, seed: u64, forks: bool) -> Result<()> {
    let mut bursts = Bursts::new(seed);
    for round in 0..rounds {
        let (burst, pause) = bursts.next();
        if forks && round % FORKED == 0 {
            // SAFETY: the child only sends, and ends.
            match unsafe { fork() }? {
                ForkResult::Child => {
                    let failed = stream.write_all(&burst).is_err();
                    // SAFETY: no pointers.
                    unsafe { libc::_exit(failed.into()) }
                }
                ForkResult::Parent { child } => {
                    let end = waitpid(child, None)?;
                    if end != nix::sys::wait::WaitStatus::Exited(child, 0) {
                        return Err(Error::other(format!("{end:?}")));
                    }
                }
            }
        } else {
            stream.write_all(&burst)?;
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, rounds: usize, seed: u64) -> Result<String> {
    let mut bursts = Bursts::new(seed);
    for round in 0..rounds {
        let (burst, pause) = bursts.next();
        // As long as the far end pauses after it: the ring fills meanwhile.
        std::thread::sleep(pause);
        let mut got = vec![0; burst.len()];
        stream.read_exact(&mut got)?;
        if let Some(at) = got.iter().zip(&burst).position(|(got, sent)| got != sent) {
            // Whoever waits for the rest waits no more.
            let _ = stream.shutdown(Shutdown::Both);
            return Ok(format!("wrong bytes in round {round} after {at}"));
        }
    }
    Ok("ok".to_owned())
}
