//! Reading messages about pairing, which may be any bytes.

use zerocopy::FromBytes;

use super::raw::{
    CANDIDATE, GONE, OFFER, PAIR, PAIRED, REFUSE, RESUME, RawCandidate, RawOffer, RawPair,
    RawResume, RawShort, WITHDRAW, address,
};
use super::{BadPairing, Names, Pairing, Place};
use crate::layout::{RING_LOG2_MAX, RING_LOG2_MIN};

impl Pairing {
    /// Reads a message; total: any bytes give a message or an error.
    ///
    /// # Errors
    /// [`BadPairing`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPairing> {
        let kind = *bytes
            .first()
            .ok_or(BadPairing::Length { kind: 0, len: 0 })?;
        let wrong = BadPairing::Length {
            kind,
            len: bytes.len(),
        };
        match kind {
            OFFER => {
                let raw = RawOffer::read_from_bytes(bytes).map_err(|_| wrong)?;
                let names = Names {
                    own: address(raw.family, raw.own, raw.own_port)?,
                    far: address(raw.family, raw.far, raw.far_port)?,
                };
                Ok(Self::Offer {
                    id: raw.id.into(),
                    names,
                    ring_log2: ring_log2(raw.ring_log2)?,
                    sample: raw.sample.into(),
                })
            }
            CANDIDATE => {
                let raw = RawCandidate::read_from_bytes(bytes).map_err(|_| wrong)?;
                Ok(Self::Candidate {
                    offer: raw.offer.into(),
                    id: raw.id.into(),
                    ring_log2: ring_log2(raw.ring_log2)?,
                    sample: raw.sample.into(),
                })
            }
            PAIR => {
                let raw = RawPair::read_from_bytes(bytes).map_err(|_| wrong)?;
                Ok(Self::Pair {
                    id: raw.id.into(),
                    offer: raw.offer.into(),
                    ring_log2: ring_log2(raw.ring_log2)?,
                    place: Place {
                        endpoint: raw.endpoint.into(),
                        rkey: raw.rkey.into(),
                    },
                })
            }
            RESUME => {
                let raw = RawResume::read_from_bytes(bytes).map_err(|_| wrong)?;
                let (received, consumed) = (raw.received.into(), raw.consumed.into());
                if consumed > received {
                    return Err(BadPairing::Field("position"));
                }
                Ok(Self::Resume {
                    own: Place {
                        endpoint: raw.endpoint.into(),
                        rkey: raw.rkey.into(),
                    },
                    far: raw.far.into(),
                    received,
                    consumed,
                })
            }
            PAIRED | REFUSE | WITHDRAW | GONE => {
                let raw = RawShort::read_from_bytes(bytes).map_err(|_| wrong)?;
                let id = raw.id.into();
                let (first, second) = (raw.first.into(), raw.second.into());
                Ok(match kind {
                    PAIRED => Self::Paired {
                        offer: id,
                        place: Place {
                            endpoint: first,
                            rkey: second,
                        },
                    },
                    REFUSE => Self::Refuse { id, reason: first },
                    GONE => Self::Gone {
                        endpoint: first,
                        reason: second,
                    },
                    _ => Self::Withdraw { offer: id },
                })
            }
            other => Err(BadPairing::Kind(other)),
        }
    }
}

fn ring_log2(value: u8) -> Result<u8, BadPairing> {
    if (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&value.into()) {
        Ok(value)
    } else {
        Err(BadPairing::Field("ring size"))
    }
}
