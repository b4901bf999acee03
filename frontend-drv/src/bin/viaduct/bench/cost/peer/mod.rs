//! The programs that are measured: ordinary sockets by way of the standard library, nothing of ours.
//!
//! * [`holder`]: a server and a client that hold many connections, led over a Unix socket.
//! * [`calls`]: one program with both ends of a connection, which takes the time of its calls.
//!
//! They are hidden commands of the tool, so that a measurement needs no other file.

pub(super) mod calls;
mod holder;

pub(super) use holder::PER_PORT;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::args::{PeerArgs, Role};

/// Plays one role to its end.
pub(in crate::bench) fn run(args: &PeerArgs) -> Result<()> {
    match &args.role {
        Role::Server { control } => {
            raise_descriptor_limit()?;
            holder::serve(Control::open(control)?)
        }
        Role::Client { control } => {
            raise_descriptor_limit()?;
            holder::connect(Control::open(control)?)
        }
        Role::Calls { bytes, calls } => calls::time_calls(*bytes, *calls),
        Role::Connects { count } => calls::time_connects(*count),
    }
}

/// The hard limit, as servers with many connections do.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising RLIMIT_NOFILE")
}

/// Lines from the tool and back.
#[derive(Debug)]
struct Control {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Control {
    fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        let mut control = Self::new(stream);
        control.say(&std::process::id().to_string())?;
        Ok(control)
    }

    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        self.stream
            .write_all(line.as_bytes())
            .context("answering the tool")
    }

    /// Takes in what has come; waits if nothing has.
    fn fill(&mut self) -> Result<()> {
        let mut bytes = [0; 256];
        let length = self
            .stream
            .read(&mut bytes)
            .context("listening to the tool")?;
        if length == 0 {
            bail!("the tool has left");
        }
        self.pending
            .extend_from_slice(bytes.get(..length).unwrap_or_default());
        Ok(())
    }

    /// A whole line of what has been taken in.
    fn line(&mut self) -> Option<String> {
        let end = self.pending.iter().position(|byte| *byte == b'\n')?;
        let line = self.pending.drain(..=end).collect::<Vec<u8>>();
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }
}
