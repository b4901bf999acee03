//! An idle pair of programs with one connection: one that waits in recv, and one in epoll.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::connections::{Idle, watch};
use super::lab::{Backend, Program, Under, pause};
use crate::bench::process::ScratchDir;

/// A way to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Wait {
    /// The server in recv; the client in epoll, without the connection in its set.
    Blocking,
    /// Both in epoll with the connection in their sets.
    Epoll,
}

impl Wait {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Blocking => "waits in recv",
            Self::Epoll => "waits in epoll_wait",
        }
    }
}

/// What an idle pair uses.
#[derive(Clone, Debug, Serialize)]
pub(super) struct IdlePair {
    pub(super) wait: Wait,
    /// Bytes that had gone by ring before.
    pub(super) ring_bytes: u64,
    pub(super) idle: Idle,
}

pub(super) fn measure(wait: Wait, seconds: u32, scratch: &ScratchDir) -> Result<IdlePair> {
    let backend = Backend::start(scratch)?;
    let under = Under::Viaduct {
        backend: &backend,
        session: 1,
    };
    let mut server = Program::start(under, "server", scratch)?;
    let mut client = Program::start(under, "client", scratch)?;
    let port = server.ask("listen 1", ANSWER)?;
    match wait {
        Wait::Blocking => {
            server.tell("serve-one")?;
            client.ask(&format!("ping {port} {ROUNDS}"), ANSWER)?;
        }
        Wait::Epoll => {
            server.tell("accept 1")?;
            client.ask(&format!("connect 1 {port}"), ANSWER)?;
            server.answer(ANSWER)?;
            for _ in 0..ROUNDS {
                client.ask("run 1 1", ANSWER)?;
            }
        }
    }
    let totals = backend.totals(1)?;
    let ring_bytes = totals.ring_tx_bytes + totals.ring_rx_bytes;
    if ring_bytes == 0 {
        bail!("the connection stayed on TCP: {}", totals.reasons_text());
    }
    // The daemon goes back to sleep, and so do those who spin for a while.
    pause(SETTLE)?;
    let idle = watch(&server, &client, &backend, seconds)?;
    Ok(IdlePair {
        wait,
        ring_bytes,
        idle,
    })
}

const ROUNDS: u32 = 200;
const SETTLE: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(30);
