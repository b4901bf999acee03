//! Two daemons with a link between them, as if they were on two hosts, and the wire of the link.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::daemon::{Daemon, retry};

/// Two daemons, "a" and "b". All addresses of this machine are the other's.
#[derive(Debug)]
pub struct Linked {
    /// The daemons.
    pub daemons: [Daemon; 2],
    /// What lies between them.
    pub wire: Wire,
}

impl Linked {
    /// Two daemons whose link times out after so many seconds.
    pub fn start(timeout_s: u32) -> Self {
        Self::start_by(Daemon::configured, timeout_s, "")
    }

    /// The same, with more in the configuration of the link.
    pub fn configured(timeout_s: u32, more: &str) -> Self {
        Self::start_by(Daemon::configured, timeout_s, more)
    }

    /// The same, looked after by managers.
    pub fn managed(timeout_s: u32) -> Self {
        Self::start_by(Daemon::managed, timeout_s, "")
    }

    fn start_by(start: impl Fn(&str) -> Daemon, timeout_s: u32, more: &str) -> Self {
        let own = [free_address(), free_address()];
        let wire = Wire::between(own);
        let daemon = |index: usize| {
            let (bind, backend) = (own[index], wire.ends[index]);
            start(&format!(
                "[[link]]\nname = \"lan\"\ndriver = \"udp\"\nbind = \"{bind}\"\ntimeout_s = {timeout_s}\n\
                 peers = [{{ prefix = \"127.0.0.0/8\", backend = \"{backend}\" }}]\n{more}\n"
            ))
        };
        Self {
            daemons: [daemon(0), daemon(1)],
            wire,
        }
    }

    /// Relayed connections that each daemon knows of.
    pub fn relayed(&self) -> [u64; 2] {
        [0, 1].map(|index| self.relayed_at(index))
    }

    /// Relayed connections that one of them knows of.
    pub fn relayed_at(&self, index: usize) -> u64 {
        let status = self.daemons[index].status();
        status["daemon"]["relayed"].as_u64().expect("a number")
    }

    /// Waits until each daemon has that many relayed connections.
    pub fn settle(&self, count: u64) {
        retry("the daemons relay so many connections", || {
            (self.relayed() == [count; 2]).then_some(())
        });
    }
}

fn free_address() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound")
}

/// Carries datagrams between the daemons of a link, unless it is cut.
#[derive(Debug)]
pub struct Wire {
    ends: [SocketAddr; 2],
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    over: AtomicBool,
}

impl Wire {
    /// Daemon `i` at `daemons[i]` finds the other at `ends[i]`.
    fn between(daemons: [SocketAddr; 2]) -> Self {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a free port"));
        let ends = [0, 1].map(|index: usize| sockets[index].local_addr().expect("bound"));
        let state = Arc::new(State::default());
        let threads = [0, 1].map(|index: usize| {
            let from = sockets[index].try_clone().expect("a descriptor");
            let to = sockets[1 - index].try_clone().expect("a descriptor");
            let (state, far) = (Arc::clone(&state), daemons[1 - index]);
            std::thread::spawn(move || carry(&from, &to, far, &state))
        });
        Self {
            ends,
            state,
            threads: threads.into(),
        }
    }

    /// Nothing passes any more, or everything does again.
    pub fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(from: &UdpSocket, to: &UdpSocket, far: SocketAddr, state: &State) {
    let pause = Some(Duration::from_millis(50));
    from.set_read_timeout(pause).expect("not zero");
    let mut frame = vec![0; 65_536];
    while !state.over.load(Ordering::Relaxed) {
        if let Ok((length, _)) = from.recv_from(&mut frame)
            && !state.cut.load(Ordering::Relaxed)
        {
            // A daemon that is not there, or that does not read, is what datagrams are lost to.
            let _ = to.send_to(&frame[..length], far);
        }
    }
}
