//! What a link sends.

use super::company::MUCH;
use super::frame::{Frame, Head, Payload};
use super::schedule::Schedule;
use super::sent::{Item, SentWrite, StreamRef};
use super::time::Time;
use super::turns::{Next, Turn};
use super::{DownReason, Endpoint, Link};
use crate::wire::{
    ACK_RANGES_MAX, CONTROL_BYTES_MAX, Consumed, FRAME_MIN, HEADER_BYTES, Header, Kind, Operation,
    StateUpdate, WRITE_BYTES, Write, emit_ack, flag,
};

/// Ranges in an acknowledgement that must leave room for a control message.
const ACK_RANGES_FEW: usize = 8;

/// A frame that has room for less of a stream than this carries none of it, unless that is all.
const PAYLOAD_MIN: usize = 256;

impl Link {
    /// The next frame to send: fills `head`, and says what payload follows it. Successive frames of one
    /// large stream are equal in size. `None`: nothing can or need be sent now.
    #[inline]
    pub fn poll_transmit(
        &mut self,
        now: Time,
        schedule: &mut Schedule,
        head: &mut Head,
    ) -> Option<Frame> {
        self.now = self.now.max(now);
        let now = self.now;
        head.bytes.clear();
        if self.handshake.has_more() || self.reset.is_some() || self.closing.is_some() {
            if let Some(frame) = self.next_of_session(now, head) {
                return Some(frame);
            }
            head.bytes.clear();
        }
        let session = self.session.as_ref()?;
        if session.path.wanted().is_some() && session.sent.has_room() {
            return self.next_probe(now, head);
        }
        self.next_data(now, schedule, head)
    }

    /// HELLO, RESET and CLOSE.
    fn next_of_session(&mut self, now: Time, head: &mut Head) -> Option<Frame> {
        if let Some(hello) = self.next_hello() {
            head.bytes.extend_from_slice(&hello);
            return Some(self.bare(head));
        }
        if let Some(session) = self.reset.take() {
            let header = Header {
                kind: Kind::Reset,
                flags: 0,
                session,
                number: 0,
            };
            head.bytes.extend_from_slice(&header.emit());
            return Some(self.bare(head));
        }
        let (reason, copies) = self.closing?;
        if copies == 0 {
            self.go_down(now, DownReason::ShutDown);
            return None;
        }
        self.closing = Some((reason, copies - 1));
        head.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        Operation::Close(reason).emit(&mut head.bytes);
        self.finish(now, head, Sending::default())
    }

    /// A frame that belongs to no session.
    fn bare(&mut self, head: &Head) -> Frame {
        let size = head.bytes.len();
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += size as u64;
        Frame {
            head_len: size,
            payload: None,
            sealed: false,
            size,
        }
    }

    /// Asks whether a larger frame arrives.
    fn next_probe(&mut self, now: Time, head: &mut Head) -> Option<Frame> {
        let session = self.session.as_mut()?;
        let size = session.path.wanted()?;
        session.path.on_probe_sent();
        head.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        Operation::Probe.emit(&mut head.bytes);
        head.bytes.resize(size - session.tag(), 0);
        let sending = Sending {
            asks: true,
            probe: true,
            ..Sending::default()
        };
        self.finish(now, head, sending)
    }

    #[inline]
    fn next_data(&mut self, now: Time, schedule: &mut Schedule, head: &mut Head) -> Option<Frame> {
        if self.session.as_ref()?.probes > 0 {
            self.repeat_oldest();
        }
        // Control messages go alone: a frame with something for a stream that the far end has yet to open, which
        // one of them may be about, has to come again, and they are few that can be under way.
        let turn = if self.control.has_more() {
            None
        } else {
            self.next_turn(now, schedule)
        };
        let session = self.session.as_mut()?;
        if session.probes > 0
            && turn.is_none()
            && !self.control.has_more()
            && self.states.is_empty()
        {
            session.ping = true;
        }
        let asks = session.sent.has_room()
            && (turn.is_some()
                || session.ping
                || self.positions_urgent
                || self.control.has_more()
                || !self.states.is_empty());
        if !asks && !session.ack.now {
            return None;
        }
        let size = if session.timeouts > 1 && session.probes > 0 {
            session.path.floor()
        } else {
            session.path.size()
        };
        let limit = size - session.tag();
        head.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        let acks = session.ack.frames > 0;
        if acks {
            self.put_ack(now, head);
        }
        let before = head.bytes.len();
        if asks {
            let reserved = if turn.is_some() {
                WRITE_BYTES + PAYLOAD_MIN
            } else {
                0
            };
            self.put_small(head, limit.saturating_sub(reserved));
        }
        let mut sending = Sending {
            asks: head.bytes.len() > before,
            ..Sending::default()
        };
        if let Some(turn) = turn {
            self.put_write(now, turn, limit, schedule, head, &mut sending);
        }
        if !acks && !sending.asks {
            return None;
        }
        self.finish(now, head, sending)
    }

    /// Whose bytes are sent now, if anybody's.
    #[inline]
    fn next_turn(&mut self, now: Time, schedule: &mut Schedule) -> Option<Turn> {
        self.throttled_until = None;
        if !self.turns.any() {
            return None;
        }
        let session = self.session.as_mut()?;
        if !session.sent.has_room() || !(session.congestion.has_room() || session.probes > 0) {
            session.congestion.on_limited(self.turns.ready());
            return None;
        }
        match self.turns.next(schedule, now) {
            Next::Stream(turn) => Some(turn),
            Next::Throttled(until) => {
                self.throttled_until = Some(until);
                None
            }
            Next::Nobody => None,
        }
    }

    fn put_ack(&mut self, now: Time, head: &mut Head) {
        let few = self.control.has_more();
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(largest) = session.received.largest() else {
            return;
        };
        let held = now.since(session.ack.largest_at) / 1000;
        let most = if few { ACK_RANGES_FEW } else { ACK_RANGES_MAX };
        emit_ack(
            u32::try_from(held).unwrap_or(u32::MAX),
            session.received.ranges().take(most),
            &mut head.bytes,
        );
        session.sent.add_item(Item::Ack(largest));
        session.ack.frames = 0;
        session.ack.now = false;
        session.ack.at = None;
        self.stats.acks_sent += 1;
    }

    /// Everything but bytes of streams, as far as it fits.
    #[inline]
    fn put_small(&mut self, head: &mut Head, limit: usize) {
        if let Some(session) = &mut self.session
            && core::mem::take(&mut session.ping)
        {
            Operation::Ping.emit(&mut head.bytes);
        }
        if self.control.has_more() {
            return self.put_control(head, limit);
        }
        if !self.states.is_empty() {
            self.put_states(head, limit);
        }
        if !self.positions.is_empty() {
            self.put_positions(head, limit);
        }
    }

    fn put_control(&mut self, head: &mut Head, limit: usize) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some((sequence, message)) = self.control.peek() {
            let size = Operation::CONTROL_HEAD_BYTES + message.len();
            debug_assert!(message.len() <= CONTROL_BYTES_MAX);
            if head.bytes.len() + size > limit {
                return;
            }
            Operation::Control(crate::wire::Control { sequence, message }).emit(&mut head.bytes);
            session.sent.add_item(Item::Control(sequence));
            self.control.on_sent();
        }
    }

    fn put_states(&mut self, head: &mut Head, limit: usize) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some(&meant) = self.states.front() {
            if head.bytes.len() + Operation::STATE_BYTES > limit {
                return;
            }
            self.states.pop_front();
            let Some(stream) = self.streams.get(meant) else {
                continue;
            };
            stream.state_queued = false;
            Operation::State(StateUpdate {
                endpoint: stream.far.endpoint,
                rkey: stream.far.rkey,
                sequence: stream.state_sequence,
                state: stream.state,
            })
            .emit(&mut head.bytes);
            session
                .sent
                .add_item(Item::State(meant, stream.state_sequence));
        }
    }

    fn put_positions(&mut self, head: &mut Head, limit: usize) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some(&meant) = self.positions.front() {
            if head.bytes.len() + Operation::CONSUMED_BYTES > limit {
                return;
            }
            self.positions.pop_front();
            let Some(stream) = self.streams.get(meant) else {
                continue;
            };
            stream.consumed_queued = false;
            stream.reported = stream.head;
            Operation::Consumed(Consumed {
                endpoint: stream.far.endpoint,
                rkey: stream.far.rkey,
                head: stream.head,
            })
            .emit(&mut head.bytes);
            session.sent.add_item(Item::Consumed(meant, stream.head));
        }
        self.positions_urgent = false;
        self.positions_at = None;
    }

    /// Bytes of the stream whose turn it is.
    #[inline]
    fn put_write(
        &mut self,
        now: Time,
        turn: Turn,
        limit: usize,
        schedule: &mut Schedule,
        head: &mut Head,
        sending: &mut Sending,
    ) {
        let (Some(session), Some(stream)) = (&mut self.session, self.streams.at(turn.slot)) else {
            return;
        };
        let room = limit.saturating_sub(head.bytes.len() + WRITE_BYTES);
        let Some((offset, available)) = stream.sendable() else {
            debug_assert!(false, "a stream that is ready has something to send");
            return;
        };
        let length = usize::try_from(available).unwrap_or(usize::MAX).min(room);
        if length == 0 {
            return;
        }
        Write {
            endpoint: stream.far.endpoint,
            rkey: stream.far.rkey,
            offset,
            payload: &[],
        }
        .emit_head(length, &mut head.bytes);
        let size = head.bytes.len() + length + session.tag();
        let again = stream.advance(offset, length as u64);
        if again {
            self.stats.bytes_again += length as u64;
        }
        self.stats.stream_bytes_sent += length as u64;
        let is_first = stream.run == 0;
        stream.run += length as u64;
        let ready = stream.sendable().is_some();
        if let Some(credit) = self.turns.charge(turn, size, ready, schedule) {
            stream.ready = false;
            stream.credit = credit;
        }
        let company = session.congestion.company_mut();
        company.on_sent(turn.domain, now);
        if ready && stream.run >= MUCH {
            company.on_more(turn.slot, now);
        } else if is_first && !again && stream.has_sent_all() {
            company.on_all(turn.slot, length, now);
        }
        sending.asks = true;
        sending.write = Some(SentWrite {
            slot: StreamRef {
                slot: turn.slot,
                generation: stream.generation,
            },
            offset,
            length: u32::try_from(length).unwrap_or(0),
        });
        sending.payload = Some(Payload {
            endpoint: Endpoint(stream.endpoint),
            offset,
            len: length,
        });
    }

    /// Numbers the frame and remembers it.
    #[inline]
    fn finish(&mut self, now: Time, head: &mut Head, sending: Sending) -> Option<Frame> {
        let session = self.session.as_mut()?;
        let tag = session.tag();
        let payload = sending.payload.map_or(0, |payload| payload.len);
        if payload == 0 && head.bytes.len() + tag < FRAME_MIN {
            head.bytes.resize(FRAME_MIN - tag, 0);
        }
        let head_len = head.bytes.len();
        let size = head_len + payload + tag;
        let number = session.number;
        session.number += 1;
        let mut flags = 0;
        if let Some(keys) = &mut session.keys {
            if keys.is_worn(number) {
                keys.rotate(number, session.largest_acked);
            }
            flags |= keys.flags();
        }
        if sending.asks {
            let bytes = size as u64;
            session.since_wish += bytes;
            let window = session.congestion.window();
            if sending.probe
                || session.probes > 0
                || session.since_wish >= window / 4
                || (session.congestion.in_flight() + bytes >= window && !session.wish_is_open())
            {
                session.since_wish = 0;
                session.wished = Some(number);
                flags |= flag::ACK_NOW;
            }
            session.probes = session.probes.saturating_sub(1);
            session.congestion.on_sent(bytes);
            let record_size = u32::try_from(size).unwrap_or(u32::MAX);
            session
                .sent
                .push(number, now, record_size, sending.probe, sending.write);
            session.asked_at = now;
            session.waiting_since.get_or_insert(now);
        } else {
            session.sent.abandon();
        }
        let header = Header {
            kind: Kind::Data,
            flags,
            session: session.far.session,
            number,
        };
        if let Some(place) = head.bytes.first_chunk_mut::<HEADER_BYTES>() {
            *place = header.emit();
        }
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += size as u64;
        Some(Frame {
            head_len,
            payload: sending.payload,
            sealed: tag > 0,
            size,
        })
    }
}

/// What [`Link::finish`] must know of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Sending {
    asks: bool,
    probe: bool,
    write: Option<SentWrite>,
    payload: Option<Payload>,
}
