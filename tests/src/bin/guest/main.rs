//! What tests run inside a guest.
//!
//! Against the shared-memory device, without any daemon:
//!
//! * `guest echo CHOICE VECTORS`: answers questions on all vectors, until one is `END`. Without interrupts it looks at the
//!   memory instead. A question of member M by vector V stands in the slot of the two: a word for the question, one for
//!   the answer. Member 0 is the host.
//! * `guest ask CHOICE TARGET VECTOR`: asks the member `TARGET`, which echoes.
//! * `guest add CHOICE TIMES`: adds to a word that others add to, atomically.
//! * `guest wait CHOICE`: waits until the device is wanted back.
//!
//! By TCP:
//!
//! * `guest serve PORT [HOW]`: sends back what it gets; it waits for that by `read`, `poll` or `epoll`.
//! * `guest talk FROM TO ROUNDS BYTES PAUSE_MS`: sends `BYTES` to a server and checks what comes back, again and again.
//! * `guest crowd FROM TO COUNT`: the same once on each of many connections, and once more when all are there.
//!
//! Against its host, see [`attack`]:
//!
//! * `guest garbage SEED SECONDS`, `guest lies SEED SECONDS`, `guest flood SECONDS`.

mod attack;
mod device;
mod traffic;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

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
    match arguments {
        ["echo", choice, vectors] => {
            let (device, memory) = device::opened(choice)?;
            device::echo(&*device, &memory, vectors.parse()?)
        }
        ["ask", choice, target, vector] => {
            let (device, memory) = device::opened(choice)?;
            device::ask(&*device, &memory, target.parse()?, vector.parse()?)
        }
        ["add", choice, times] => device::add(&device::opened(choice)?.1, times.parse()?),
        ["wait", choice] => device::wait(&*device::opened(choice)?.0),
        ["serve", port] => traffic::serve(port.parse()?, "read"),
        ["serve", port, how] => traffic::serve(port.parse()?, how),
        ["talk", from, to, rounds, bytes, pause] => {
            let connection = traffic::connect(from.parse()?, to.parse()?)?;
            traffic::talk(connection, rounds.parse()?, bytes.parse()?, pause.parse()?)
        }
        ["crowd", from, to, count] => traffic::crowd(from.parse()?, to.parse()?, count.parse()?),
        ["garbage", seed, seconds] => attack::garbage(seed.parse()?, seconds.parse()?),
        ["lies", seed, seconds] => attack::lies(seed.parse()?, seconds.parse()?),
        ["flood", seconds] => attack::flood(seconds.parse()?),
        _ => bail!("see the source"),
    }
}

/// A line for the test that reads it.
fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
