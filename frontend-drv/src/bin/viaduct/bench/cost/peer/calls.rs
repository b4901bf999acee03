//! A program with both ends of a connection and one thread: the time of its calls is that of the
//! code they run, without another processor and without waiting.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::super::clock::monotonic_ns;
use crate::bench::stats::median;
use crate::output;

/// What one run of [`time_calls`] prints, as JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::bench::cost) struct CallTimes {
    /// Medians of the batches, in nanoseconds per call.
    pub(in crate::bench::cost) send_ns: f64,
    pub(in crate::bench::cost) recv_ns: f64,
}

/// What one run of [`time_connects`] prints, as JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::bench::cost) struct ConnectRate {
    /// connect, accept and two closes, per second.
    pub(in crate::bench::cost) per_second: f64,
}

/// Sends a batch, receives it, and so on.
pub(super) fn time_calls(bytes: u32, calls: u32) -> Result<()> {
    let (mut near, mut far) = pair()?;
    let message = vec![b'x'; usize::try_from(bytes)?];
    let mut buffer = message.clone();
    for _ in 0..WARM_UP {
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            from.write_all(&message).context("send")?;
            // Shows the library how this program waits: no receive call of it will ever have to.
            let mut awaited = [PollFd::new(to.as_fd(), PollFlags::POLLIN)];
            poll(&mut awaited, PollTimeout::NONE).context("poll")?;
            to.read_exact(&mut buffer).context("recv")?;
        }
        sleep(WARM_UP_PAUSE);
    }
    let batch = (BATCH_BYTES / bytes).clamp(8, 64);
    let per_call = |ns: u64| ns as f64 / f64::from(batch);
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for _ in 0..(calls / batch).max(1) {
        let start = monotonic_ns();
        for _ in 0..batch {
            near.write_all(&message).context("send")?;
        }
        let sent = monotonic_ns();
        for _ in 0..batch {
            far.read_exact(&mut buffer).context("recv")?;
        }
        sends.push(per_call(sent - start));
        receives.push(per_call(monotonic_ns() - sent));
    }
    print(&CallTimes {
        send_ns: median(&sends).context("no calls")?,
        recv_ns: median(&receives).context("no calls")?,
    })
}

/// Makes and closes connections without a byte on them.
pub(super) fn time_connects(count: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    let address = listener.local_addr()?;
    let start = monotonic_ns();
    for _ in 0..count {
        let near = TcpStream::connect(address).context("connect")?;
        let (far, _) = listener.accept().context("accept")?;
        drop((near, far));
    }
    let seconds = (monotonic_ns() - start) as f64 / 1e9;
    print(&ConnectRate {
        per_second: f64::from(count) / seconds,
    })
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    let near = TcpStream::connect(listener.local_addr()?).context("connect")?;
    let (far, _) = listener.accept().context("accept")?;
    // Else TCP would hold a batch back until the first of it is acknowledged.
    near.set_nodelay(true).context("TCP_NODELAY")?;
    far.set_nodelay(true).context("TCP_NODELAY")?;
    Ok((near, far))
}

fn print(result: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(result).context("encoding the result")?;
    Ok(output::print(&format!("{text}\n"))?)
}

/// Few enough to fit into the socket buffers: nobody reads meanwhile.
const BATCH_BYTES: u32 = 32 * 1024;
/// Messages to and fro before the clock is looked at.
const WARM_UP: u32 = 200;
const WARM_UP_PAUSE: Duration = Duration::from_millis(1);
