//! What far backends say.

use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Names, Pairing, Place as FarPlace};

use super::{Candidate, FarHalf, Offer, Stage, leads};
use crate::broker::{Action, Broker, Registration, State};
use crate::ids::{PeerId, RegistrationId};
use crate::pairing::Tuple;

impl Broker {
    /// A far backend says something. The shell has checked that an offered end may be that backend's.
    pub fn heard(&mut self, peer: PeerId, message: Pairing) {
        match message {
            Pairing::Offer {
                id,
                names,
                ring_log2,
                ..
            } => self.heard_offer(peer, names, Offer { id, ring_log2 }),
            Pairing::Candidate {
                offer,
                id,
                ring_log2,
                sample,
            } => {
                let far = Candidate {
                    id,
                    ring_log2,
                    sample,
                };
                self.heard_candidate(peer, RegistrationId(offer), far);
            }
            Pairing::Pair {
                id,
                offer,
                ring_log2,
                place,
            } => {
                let own = RegistrationId(id);
                if let Some((_, remote)) = self.stage(own)
                    && remote.peer == peer
                    && let Stage::Answered(known) = remote.stage
                    && known.id == offer
                    && ring_log2 <= known.ring_log2.min(self.ring_log2_of(own))
                {
                    self.set_stage(own, Stage::Settled);
                    self.relay(own, peer, offer, Some(place), u32::from(ring_log2));
                } else {
                    let reason = Reason::NotEstablished.code();
                    self.tell(peer, Pairing::Refuse { id: offer, reason });
                }
            }
            Pairing::Paired { offer, place } => {
                self.heard_paired(peer, RegistrationId(offer), place);
            }
            Pairing::Refuse { id, reason } => self.heard_refusal(peer, RegistrationId(id), reason),
            // Between the relays.
            Pairing::Resume { .. } | Pairing::Gone { .. } => {}
            Pairing::Withdraw { offer } => {
                self.offers.withdraw(peer, offer);
                let known = |registration: &Registration| {
                    registration.remote.is_some_and(|remote| {
                        remote.peer == peer
                            && matches!(remote.stage,
                                Stage::Answering(known) | Stage::Answered(known) if known.id == offer)
                    })
                };
                let answered = self.registrations.iter().find(|(_, r)| known(r));
                if let Some(id) = answered.map(|(id, _)| *id) {
                    self.set_stage(id, Stage::Waiting);
                }
            }
        }
    }

    fn heard_offer(&mut self, peer: PeerId, names: Names, offer: Offer) {
        let tuple = Tuple {
            own: names.far,
            far: names.own,
        };
        if leads(&tuple) {
            // Two leaders: the other one is mistaken.
            return;
        }
        let waiting = self.registrations.iter().find(|(_, registration)| {
            registration.tuple == tuple
                && registration.state == State::Waiting
                && registration
                    .remote
                    .is_some_and(|remote| remote.peer == peer)
        });
        match waiting.map(|(id, _)| *id) {
            Some(id) => {
                self.set_stage(id, Stage::Answering(offer));
                self.actions.push_back(Action::Sample(id));
            }
            None => {
                if !self.offers.enter(peer, tuple, offer) {
                    let reason = Reason::Quota.code();
                    self.tell(
                        peer,
                        Pairing::Refuse {
                            id: offer.id,
                            reason,
                        },
                    );
                }
            }
        }
    }

    fn heard_candidate(&mut self, peer: PeerId, id: RegistrationId, far: Candidate) {
        let known = self.stage(id).and_then(|(_, remote)| match remote.stage {
            Stage::Offered(before) if remote.peer == peer => Some(before),
            _ => None,
        });
        match known {
            Some(before) => {
                self.set_stage(id, Stage::Comparing { before, far });
                self.actions.push_back(Action::Sample(id));
            }
            // Withdrawn meanwhile, and the follower hears of that: a refusal would take it away from the next offer.
            None if !self.registrations.contains_key(&id) => {}
            None => {
                let reason = Reason::NotEstablished.code();
                self.tell(peer, Pairing::Refuse { id: far.id, reason });
            }
        }
    }

    fn heard_paired(&mut self, peer: PeerId, id: RegistrationId, place: FarPlace) {
        let Some(connection) = self.relayed_of(id, peer) else {
            return;
        };
        if let Some(entry) = self.connections.get_mut(&connection)
            && let Some(relay) = &mut entry.relay
            && let FarHalf::Abroad(abroad) = &mut relay.far
            && abroad.leads
            && abroad.far.is_none()
        {
            abroad.far = Some(place);
            self.actions
                .push_back(Action::JoinRelay { connection, place });
            self.announce_relayed(connection);
        }
    }

    fn heard_refusal(&mut self, peer: PeerId, id: RegistrationId, reason: u32) {
        let reason = Reason::from_code(reason).unwrap_or(Reason::FarEnd);
        if let Some(connection) = self.relayed_of(id, peer) {
            let entry = self.connections.get(&connection);
            let relay = entry.and_then(|entry| entry.relay);
            let untold = relay.is_some_and(|relay| {
                let abroad = relay.abroad();
                abroad.is_some_and(|abroad| abroad.leads && abroad.far.is_none())
            });
            if untold {
                self.give_up_relayed(connection, reason);
            }
            return;
        }
        let concerned = self.stage(id).is_some_and(|(registration, remote)| {
            remote.peer == peer && registration.state == State::Waiting
        });
        if concerned {
            self.set_stage(id, Stage::Settled);
            self.refuse(id, reason);
        }
    }
}
