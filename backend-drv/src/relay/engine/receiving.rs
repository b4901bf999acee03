//! What comes from other hosts, and who they are.

use std::net::IpAddr;

use super::Engine;
use crate::ids::PeerId;
use crate::nic::Address;
use crate::relay::nics::Received;

/// Bytes of one NIC in a round. With as much as the window of a link (1 MiB) the far end would wait for its
/// acknowledgement while all of it is placed, and we then for the far end.
const ROUND_BYTES: usize = 192 << 10;
/// Calls of one NIC in a round, whatever they bring.
const ROUND_CALLS: usize = 16;

/// A short frame is remembered for so many rounds.
const BRIEF_ROUNDS: u32 = 16;

/// With more programs, looking at all of them takes as long as a good deal of what else a round does.
const PORTS_FEW: usize = 64;

impl Engine {
    /// The line to a backend; it is made if there is none.
    pub(super) fn line_to(&mut self, peer: PeerId) -> Option<usize> {
        if let Some(line) = self.board.line_of(peer) {
            self.board.connect(line, self.now());
            return Some(line);
        }
        let (nic, address) = {
            let peers = self.wires.lock_peers();
            let found = peers.get(peer)?;
            (found.link, found.address)
        };
        let link = self.nics.new_link(nic, self.now())?;
        let line = self.board.add_line(peer, link);
        self.nics.attach(nic, address, line);
        Some(line)
    }

    /// Takes what has come, until it is enough for a round. Whoever said little waits for an answer, and so may a
    /// program that has something to say: they do not wait for the rest.
    pub(super) fn receive(&mut self) -> bool {
        let mut some = false;
        self.brief_rounds = self.brief_rounds.saturating_sub(1);
        for nic in 0..self.nics.len() {
            let mut bytes = 0;
            for _ in 0..ROUND_CALLS {
                let received = self.receive_some(nic);
                some |= received.frames > 0;
                bytes += received.bytes;
                if received.brief {
                    self.brief_rounds = BRIEF_ROUNDS;
                }
                let enough = bytes >= ROUND_BYTES || received.brief || self.has_answers();
                if received.frames == 0 || enough {
                    break;
                }
            }
        }
        some
    }

    /// What one call of a NIC brings.
    fn receive_some(&mut self, nic: usize) -> Received {
        let now = self.now();
        let mut strangers = std::mem::take(&mut self.strangers);
        let received = self
            .nics
            .receive(nic, now, self.started, &mut self.board, &mut strangers);
        for (from, mut frame) in strangers.drain(..) {
            if let Some(addresses) = self.nics.announced(nic, &frame) {
                self.note_announced(nic, from, &addresses);
                continue;
            }
            if let Some(line) = self.line_from(nic, from) {
                let _ = self.board.handle_frame(line, now, None, &mut frame);
            }
        }
        self.strangers = strangers;
        received
    }

    /// Whether a program has something that may be an answer: while short frames come. Bulk alone is served faster in large
    /// portions, and where there are many programs one look a round is enough.
    pub(super) fn has_answers(&self) -> bool {
        self.brief_rounds > 0
            && self.ports.len() <= PORTS_FEW
            && self.ports.values().any(|served| served.port.has_pending())
    }

    /// A backend has said which addresses its programs have.
    fn note_announced(&self, nic: usize, from: Address, addresses: &[IpAddr]) {
        let mut peers = self.wires.lock_peers();
        if let Some(peer) = peers.number(nic, from) {
            peers.announced(peer, addresses);
        }
    }

    /// The line to a backend that speaks first, if it may be one.
    fn line_from(&mut self, nic: usize, from: Address) -> Option<usize> {
        let peer = {
            let mut peers = self.wires.lock_peers();
            if !peers.may_speak(nic, from) {
                return None;
            }
            peers.number(nic, from)?
        };
        self.line_to(peer)
    }
}
