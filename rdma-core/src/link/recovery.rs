//! Acknowledgements and losses.

use super::receive::Done;
use super::sent::{Fate, Item, Record};
use super::time::Time;
use super::{Link, update_ready};
use crate::wire::Ack;

impl Link {
    /// The far end says what has arrived.
    pub(super) fn on_ack(&mut self, now: Time, arrived: Option<Time>, ack: &Ack<'_>) -> Done {
        let Some(session) = &mut self.session else {
            return Done::Yes;
        };
        if ack.largest >= session.number {
            self.stats.violations += 1;
            return Done::Yes;
        }
        self.stats.acks_received += 1;
        let held = u64::from(ack.delay_us) * 1000;
        let mut newest = None;
        for (first, last) in ack.ranges.iter() {
            if !session.given_up.is_empty() {
                self.stats.frames_found += session.find_again(first, last);
            }
            let mut index = session.sent.position(first);
            while let Some(record) = session.sent.record(index) {
                if record.number > last {
                    break;
                }
                if record.fate == Fate::UnderWay {
                    if record.number == ack.largest {
                        let after = now.since(record.at);
                        session.rtt.sample(now, after, held);
                        let way = |arrived: Time| arrived.since(record.at).saturating_sub(held);
                        session
                            .congestion
                            .on_answer(now, after, arrived.map_or(0, way));
                    }
                    newest = newest.max(Some(record.at));
                    let record = *record;
                    session.sent.settle(index);
                    for item in 0..record.items {
                        match session.sent.item(&record, item) {
                            Some(Item::Ack(number)) => session.received.forget_up_to(number),
                            Some(Item::Control(sequence)) => self.control.on_acked(sequence),
                            Some(Item::State(meant, sequence)) => {
                                if let Some(stream) = self.streams.get(meant) {
                                    stream.state_known = stream.state_known.max(sequence);
                                }
                            }
                            _ => {}
                        }
                    }
                    let size = u64::from(record.size);
                    if record.probe {
                        session.congestion.forget(size);
                        session.path.on_probe_acked(record.size as usize, now);
                        session.congestion.set_frame(session.path.size() as u64);
                    } else {
                        session.congestion.on_acked(size, record.at);
                        session.path.on_acked(record.number, record.size as usize);
                    }
                }
                index += 1;
            }
        }
        session.largest_acked = session.largest_acked.max(Some(ack.largest));
        let timeouts = session.timeouts;
        if newest.is_some() {
            session.timeouts = 0;
            session.probes = 0;
        }
        self.find_lost(now, newest, timeouts);
        Done::Yes
    }

    /// Gives up for lost what later frames have overtaken, and settles the congestion window.
    pub(super) fn find_lost(&mut self, now: Time, newest_acked: Option<Time>, timeouts: u32) {
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(largest) = session.largest_acked else {
            return;
        };
        let delay = session.rtt.loss_delay(session.patience);
        session.lost_at = None;
        let (mut oldest, mut newest): (Option<Time>, Option<Time>) = (None, None);
        let mut index = 0;
        loop {
            let Some(session) = &mut self.session else {
                return;
            };
            let record = match session.sent.record(index) {
                Some(record) if record.number < largest => *record,
                _ => break,
            };
            if record.fate == Fate::UnderWay {
                let late_at = record.at.plus(delay);
                if largest - record.number < session.reordering && late_at > now {
                    session.lost_at = Some(late_at);
                    break;
                }
                session.sent.settle(index);
                if !record.probe {
                    session.give_up(record.number, record.size);
                    oldest.get_or_insert(record.at);
                    newest = newest.max(Some(record.at));
                }
                self.on_lost(now, &record);
            }
            index += 1;
        }
        let Some(session) = &mut self.session else {
            return;
        };
        session.sent.forget_settled();
        if let (Some(oldest), Some(newest)) = (oldest, newest)
            && timeouts > 1
            && newest.since(oldest) > 3 * session.rtt.probe_timeout()
        {
            session.congestion.collapse();
            self.stats.collapses += 1;
        }
        session
            .congestion
            .settle(now, &session.rtt, newest_acked, newest);
    }

    fn on_lost(&mut self, now: Time, record: &Record) {
        let Some(session) = &mut self.session else {
            return;
        };
        let size = record.size as usize;
        if record.probe {
            session.congestion.forget(size as u64);
            session.path.on_probe_lost(size, now);
            return;
        }
        self.stats.frames_lost += 1;
        session.congestion.on_lost(size as u64);
        if session.path.on_lost(record.number, size) {
            self.stats.path_shrunk += 1;
            session.congestion.set_frame(session.path.size() as u64);
        }
        if !record.repeated {
            self.requeue(record);
        }
    }

    /// The tail may be lost: what the oldest unanswered frame said is said again.
    pub(super) fn repeat_oldest(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        if let Some(record) = session.sent.take_unrepeated()
            && !record.probe
        {
            self.requeue(&record);
        }
    }

    /// What was in a frame is to be sent again, as far as it still counts.
    fn requeue(&mut self, record: &Record) {
        let Some(session) = &mut self.session else {
            return;
        };
        if let Some(write) = record.write
            && let Some(stream) = self.streams.get(write.slot)
        {
            stream.resend(write.offset, u64::from(write.length));
            update_ready(&mut self.turns, stream);
        }
        for index in 0..record.items {
            match session.sent.item(record, index) {
                None | Some(Item::Ack(_)) => {}
                Some(Item::Control(sequence)) => self.control.on_lost(sequence),
                Some(Item::State(meant, sequence)) => {
                    if let Some(stream) = self.streams.get(meant)
                        && stream.state_sequence == sequence
                        && !stream.state_queued
                    {
                        stream.state_queued = true;
                        self.states.push_back(meant);
                    }
                }
                Some(Item::Consumed(meant, head)) => {
                    if let Some(stream) = self.streams.get(meant)
                        && stream.reported == head
                    {
                        self.positions_urgent = true;
                        if !stream.consumed_queued {
                            stream.consumed_queued = true;
                            self.positions.push_back(meant);
                        }
                    }
                }
            }
        }
    }
}
