//! Writing messages about pairing.

use zerocopy::{Immutable, IntoBytes};

use super::raw::{
    CANDIDATE, GONE, OFFER, PAIR, PAIRED, REFUSE, RESUME, RawCandidate, RawOffer, RawPair,
    RawResume, RawShort, WITHDRAW, family, octets,
};
use super::{PAIRING_MAX, Pairing};

impl Pairing {
    /// Writes the message; how many bytes of `out` it takes.
    pub fn emit(&self, out: &mut [u8; PAIRING_MAX]) -> usize {
        let short = |kind, id: u64, first: u32, second: u32| RawShort {
            kind,
            reserved: [0; 3],
            first: first.into(),
            second: second.into(),
            id: id.into(),
        };
        match *self {
            Self::Offer {
                id,
                names,
                ring_log2,
                sample,
            } => put(
                out,
                &RawOffer {
                    kind: OFFER,
                    ring_log2,
                    family: family(&names),
                    reserved: 0,
                    own_port: names.own.port().into(),
                    far_port: names.far.port().into(),
                    id: id.into(),
                    own: octets(names.own.ip()),
                    far: octets(names.far.ip()),
                    sample: sample.into(),
                },
            ),
            Self::Candidate {
                offer,
                id,
                ring_log2,
                sample,
            } => put(
                out,
                &RawCandidate {
                    kind: CANDIDATE,
                    ring_log2,
                    reserved: [0; 2],
                    offer: offer.into(),
                    id: id.into(),
                    sample: sample.into(),
                },
            ),
            Self::Pair {
                id,
                offer,
                ring_log2,
                place,
            } => put(
                out,
                &RawPair {
                    kind: PAIR,
                    ring_log2,
                    reserved: [0; 2],
                    endpoint: place.endpoint.into(),
                    rkey: place.rkey.into(),
                    id: id.into(),
                    offer: offer.into(),
                },
            ),
            Self::Paired { offer, place } => {
                put(out, &short(PAIRED, offer, place.endpoint, place.rkey))
            }
            Self::Refuse { id, reason } => put(out, &short(REFUSE, id, reason, 0)),
            Self::Withdraw { offer } => put(out, &short(WITHDRAW, offer, 0, 0)),
            Self::Resume {
                own,
                far,
                received,
                consumed,
            } => put(
                out,
                &RawResume {
                    kind: RESUME,
                    reserved: [0; 3],
                    endpoint: own.endpoint.into(),
                    rkey: own.rkey.into(),
                    far: far.into(),
                    received: received.into(),
                    consumed: consumed.into(),
                },
            ),
            Self::Gone { endpoint, reason } => put(out, &short(GONE, 0, endpoint, reason)),
        }
    }
}

fn put(out: &mut [u8; PAIRING_MAX], raw: &(impl IntoBytes + Immutable)) -> usize {
    let bytes = raw.as_bytes();
    let (head, _) = out.split_at_mut(bytes.len());
    head.copy_from_slice(bytes);
    bytes.len()
}
