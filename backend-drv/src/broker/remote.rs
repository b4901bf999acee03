//! Finding the far end of a registration on another host; see [`rdma_core::wire::pairing`].
//!
//! Of two backends, that of the end with the smaller address leads: it offers, compares and decides. What the
//! far backend says is as far as that backend's own addresses go, which the shell checks before it calls
//! [`Broker::heard`].

mod hearing;
mod relaying;

use std::collections::HashMap;

use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Names, Pairing, Place as FarPlace};

use super::uplinked::{UPLINK, Uplinked};
use super::{Action, Broker, Registration, State};
use crate::ids::{ConnectionId, PeerId, RegistrationId};
use crate::pairing::{Stream, Tuple, same_stream};

/// Offers of one far backend that wait for a program here.
const OFFERS_MAX: usize = 16_384;
/// Times that two ends are compared before they are called different.
const COMPARISONS: u8 = 2;

/// How far the search for a far end on another host has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Remote {
    /// The far backend.
    pub(super) peer: PeerId,
    pub(super) stage: Stage,
    comparisons: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Leader: the socket is being looked at, for an offer.
    Offering,
    /// Leader: offered, with this sample.
    Offered(Stream),
    /// Leader: the socket is being looked at once more.
    Comparing { before: Stream, far: Candidate },
    /// Follower: no offer has come.
    Waiting,
    /// Follower: the socket is being looked at, to answer this offer.
    Answering(Offer),
    /// Follower: answered.
    Answered(Offer),
    /// Memory is made, or there.
    Settled,
}

/// What a leader offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub(super) id: u64,
    ring_log2: u8,
}

/// What a follower answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    id: u64,
    ring_log2: u8,
    sample: Stream,
}

/// That a connection is relayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Relay {
    pub(super) far: FarHalf,
    /// The relay has been asked to serve it, and has not let go.
    pub(super) open: bool,
}

/// The far half of a relayed connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FarHalf {
    /// On another host.
    Abroad(Abroad),
    /// Here, as a connection of its own.
    Here(ConnectionId),
}

/// The far half of a connection whose far end is on another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Abroad {
    peer: PeerId,
    /// The registration here, which may be gone before the far backend has answered.
    own_id: RegistrationId,
    /// The far backend's registration.
    far_id: u64,
    /// Where it takes bytes, once it has said so.
    far: Option<FarPlace>,
    leads: bool,
}

impl Relay {
    /// The far half, if it is on another host.
    const fn abroad(&self) -> Option<&Abroad> {
        match &self.far {
            FarHalf::Abroad(abroad) => Some(abroad),
            FarHalf::Here(_) => None,
        }
    }

    /// The registration here, if the far half is on another host.
    pub(super) fn own(&self) -> Option<RegistrationId> {
        Some(self.abroad()?.own_id)
    }
}

/// Offers that nobody here has answered.
#[derive(Debug, Default)]
pub(super) struct Offers {
    by_tuple: HashMap<(PeerId, Tuple), Offer>,
    by_id: HashMap<(PeerId, u64), Tuple>,
    counts: HashMap<PeerId, usize>,
}

impl Offers {
    fn enter(&mut self, peer: PeerId, tuple: Tuple, offer: Offer) -> bool {
        self.withdraw(peer, offer.id);
        if let Some(old) = self.by_tuple.remove(&(peer, tuple)) {
            self.by_id.remove(&(peer, old.id));
            self.count(peer, false);
        }
        if self
            .counts
            .get(&peer)
            .is_some_and(|count| *count >= OFFERS_MAX)
        {
            return false;
        }
        self.count(peer, true);
        self.by_tuple.insert((peer, tuple), offer);
        self.by_id.insert((peer, offer.id), tuple);
        true
    }

    fn take(&mut self, peer: PeerId, tuple: Tuple) -> Option<Offer> {
        let offer = self.by_tuple.remove(&(peer, tuple))?;
        self.by_id.remove(&(peer, offer.id));
        self.count(peer, false);
        Some(offer)
    }

    fn withdraw(&mut self, peer: PeerId, id: u64) {
        if let Some(tuple) = self.by_id.get(&(peer, id)).copied() {
            self.take(peer, tuple);
        }
    }

    fn count(&mut self, peer: PeerId, up: bool) {
        let count = self.counts.entry(peer).or_default();
        *count = if up {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
    }

    fn forget(&mut self, peer: PeerId) {
        self.by_tuple.retain(|(of, _), _| *of != peer);
        self.by_id.retain(|(of, _), _| *of != peer);
        self.counts.remove(&peer);
    }
}

/// Whether the end with these addresses leads.
fn leads(tuple: &Tuple) -> bool {
    tuple.own < tuple.far
}

impl Broker {
    /// No far end in sight on this host: the shell is asked whether there is a backend for the far address.
    pub(super) fn look_abroad(&mut self, id: RegistrationId) {
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        // A domain's programs speak with its own addresses only; the host's with the host's.
        if registration.owned || Some(registration.netns) == self.own_netns {
            self.actions.push_back(Action::Reach {
                id,
                far: registration.tuple.far.ip(),
            });
        }
    }

    /// The answer to [`Action::Reach`]: there is a backend. (Of none, nobody says anything.)
    pub fn reachable(&mut self, id: RegistrationId, peer: PeerId) {
        let Some(registration) = self.registrations.get_mut(&id) else {
            return;
        };
        if registration.state != State::Waiting {
            return;
        }
        let tuple = registration.tuple;
        let stage = if leads(&tuple) {
            Stage::Offering
        } else {
            match self.offers.take(peer, tuple) {
                Some(offer) => Stage::Answering(offer),
                None => Stage::Waiting,
            }
        };
        registration.remote = Some(Remote {
            peer,
            stage,
            comparisons: 0,
        });
        if stage != Stage::Waiting {
            self.actions.push_back(Action::Sample(id));
        }
    }

    pub(super) fn stage(&mut self, id: RegistrationId) -> Option<(&mut Registration, Remote)> {
        let registration = self.registrations.get_mut(&id)?;
        let remote = registration.remote?;
        Some((registration, remote))
    }

    pub(super) fn set_stage(&mut self, id: RegistrationId, stage: Stage) {
        if let Some((registration, remote)) = self.stage(id) {
            registration.remote = Some(Remote { stage, ..remote });
        }
    }

    pub(super) fn tell(&mut self, peer: PeerId, message: Pairing) {
        self.actions.push_back(Action::Tell { peer, message });
    }

    pub(super) fn ring_log2_of(&self, id: RegistrationId) -> u8 {
        let facts = self
            .registrations
            .get(&id)
            .and_then(|registration| self.programs.get(&registration.process))
            .map(|program| program.facts.ring_log2);
        u8::try_from(facts.unwrap_or(0)).unwrap_or(0)
    }

    /// The answer to [`Action::Sample`]: what the kernel says of the socket, if it is still established.
    pub fn sampled(&mut self, id: RegistrationId, stream: Option<Stream>) {
        let ring_log2 = self.ring_log2_of(id);
        let Some((registration, remote)) = self.stage(id) else {
            return;
        };
        let tuple = registration.tuple;
        let Some(stream) = stream else {
            // Whoever waits at the far backend is told when the registration is removed.
            return self.refuse(id, Reason::NotEstablished);
        };
        match remote.stage {
            Stage::Offering => {
                self.set_stage(id, Stage::Offered(stream));
                let names = Names {
                    own: tuple.own,
                    far: tuple.far,
                };
                let offer = Pairing::Offer {
                    id: id.0,
                    names,
                    ring_log2,
                    sample: stream,
                };
                self.tell(remote.peer, offer);
            }
            Stage::Answering(offer) => {
                self.set_stage(id, Stage::Answered(offer));
                let answer = Pairing::Candidate {
                    offer: offer.id,
                    id: id.0,
                    ring_log2,
                    sample: stream,
                };
                self.tell(remote.peer, answer);
            }
            Stage::Comparing { before, far } => {
                if same_stream(&before, &far.sample, &stream) {
                    let log2 = u32::from(ring_log2.min(far.ring_log2));
                    if remote.peer == UPLINK {
                        return self.ask_for_memory(id, far.id, log2);
                    }
                    self.set_stage(id, Stage::Settled);
                    self.relay(id, remote.peer, far.id, None, log2);
                } else if remote.comparisons + 1 < COMPARISONS {
                    if let Some((registration, remote)) = self.stage(id) {
                        registration.remote = Some(Remote {
                            stage: Stage::Offering,
                            comparisons: remote.comparisons + 1,
                            ..remote
                        });
                    }
                    self.actions.push_back(Action::Sample(id));
                } else {
                    self.refuse_both(id, remote.peer, far.id, Reason::Mismatch);
                }
            }
            Stage::Offered(_) | Stage::Waiting | Stage::Answered(_) | Stage::Settled => {}
        }
    }

    fn refuse_both(&mut self, id: RegistrationId, peer: PeerId, far: u64, reason: Reason) {
        let refusal = Pairing::Refuse {
            id: far,
            reason: reason.code(),
        };
        self.tell(peer, refusal);
        self.set_stage(id, Stage::Settled);
        self.refuse(id, reason);
    }

    /// A registration is being removed: whoever waits for it at a far backend is told.
    pub(super) fn leave_abroad(&mut self, registration: &Registration, id: RegistrationId) {
        let Some(remote) = registration.remote else {
            return;
        };
        let reason = Reason::NotEstablished.code();
        match remote.stage {
            // A follower that has answered waits for the next offer: the same connection may be offered anew.
            Stage::Offered(_) | Stage::Comparing { .. } => {
                self.tell(remote.peer, Pairing::Withdraw { offer: id.0 });
            }
            Stage::Offering if remote.comparisons > 0 => {
                self.tell(remote.peer, Pairing::Withdraw { offer: id.0 });
            }
            Stage::Answering(offer) | Stage::Answered(offer) => {
                self.tell(
                    remote.peer,
                    Pairing::Refuse {
                        id: offer.id,
                        reason,
                    },
                );
            }
            Stage::Offering | Stage::Waiting | Stage::Settled => {}
        }
    }

    /// A backend has started anew and knows nothing: what waits is offered once more.
    pub fn peer_renewed(&mut self, peer: PeerId) {
        self.offers.forget(peer);
        let mut again = Vec::new();
        for (id, registration) in &mut self.registrations {
            if registration.state == State::Waiting
                && let Some(remote) = &mut registration.remote
                && remote.peer == peer
            {
                remote.comparisons = 0;
                remote.stage = if leads(&registration.tuple) {
                    again.push(*id);
                    Stage::Offering
                } else {
                    Stage::Waiting
                };
            }
        }
        for id in again {
            self.actions.push_back(Action::Sample(id));
        }
    }

    /// A backend does not answer: what waits for it stays on TCP.
    pub fn peer_silent(&mut self, peer: PeerId) {
        self.offers.forget(peer);
        let waits = |registration: &Registration| {
            let remote = registration.remote.filter(|remote| remote.peer == peer);
            registration.state == State::Waiting && remote.is_some()
        };
        let found = self.registrations.iter().filter(|(_, found)| waits(found));
        let found: Vec<_> = found.map(|(id, _)| *id).collect();
        for id in found {
            self.set_stage(id, Stage::Settled);
            self.refuse(id, Reason::Unreachable);
        }
    }

    /// The far backend's number for the far end of a relayed connection.
    pub fn far_id(&self, connection: ConnectionId) -> Option<u64> {
        let relay = self.connections.get(&connection)?.relay?;
        Some(relay.abroad()?.far_id)
    }

    /// Whether a backend relays the connection.
    pub fn is_relayed(&self, connection: ConnectionId) -> bool {
        self.connections
            .get(&connection)
            .is_some_and(|entry| entry.relay.is_some() || entry.uplinked == Some(Uplinked::Relayed))
    }
}
