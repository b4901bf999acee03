//! The kernel's own connection between two programs: in order, reliable, with ends and resets.

use std::collections::VecDeque;

use rdma_core::link::Time;

/// Bytes that one direction holds, under way or unread.
const LIMIT: usize = 48 * 1024;

/// What a call says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Got {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing now.
    Empty,
    /// End of stream.
    End,
    /// ECONNRESET.
    Reset,
}

/// What is under way.
#[derive(Clone, Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

/// What one end sends to the other.
#[derive(Clone, Debug, Default)]
struct Direction {
    sent: u64,
    way: VecDeque<(Time, Segment)>,
    way_bytes: usize,
    unread: VecDeque<u8>,
    fin_sent: bool,
    fin: bool,
    reset: bool,
    last: Time,
}

/// The connection; ends are 0 and 1, and a direction has the number of its sender.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    directions: [Direction; 2],
    closed: [bool; 2],
}

impl Tcp {
    fn put(&mut self, end: usize, at: Time, segment: Segment) -> Time {
        let direction = &mut self.directions[end];
        direction.last = direction.last.max(at);
        direction.way.push_back((direction.last, segment));
        direction.last
    }

    /// Sends what fits. `None`: the connection is over. The time is when [`Tcp::advance`] has something to do.
    pub fn send(&mut self, end: usize, bytes: &[u8], at: Time) -> Option<(usize, Time)> {
        if self.directions[1 - end].reset || self.directions[end].fin_sent {
            return None;
        }
        let direction = &mut self.directions[end];
        let room = LIMIT.saturating_sub(direction.way_bytes + direction.unread.len());
        let len = bytes.len().min(room);
        if len == 0 {
            return Some((0, at));
        }
        direction.sent += len as u64;
        direction.way_bytes += len;
        let at = self.put(end, at, Segment::Bytes(bytes[..len].to_vec()));
        Some((len, at))
    }

    /// Bytes that `end` has ever sent.
    pub fn sent(&self, end: usize) -> u64 {
        self.directions[end].sent
    }

    /// Whether `end` could send.
    pub fn is_writable(&self, end: usize) -> bool {
        let direction = &self.directions[end];
        direction.way_bytes + direction.unread.len() <= LIMIT / 2 || self.is_reset(end)
    }

    /// Receives at `end`.
    pub fn receive(&mut self, end: usize, most: usize) -> Got {
        let direction = &mut self.directions[1 - end];
        let len = direction.unread.len().min(most);
        if len > 0 {
            Got::Bytes(direction.unread.drain(..len).collect())
        } else if direction.reset {
            Got::Reset
        } else if direction.fin {
            Got::End
        } else {
            Got::Empty
        }
    }

    /// Bytes that `end` could receive.
    pub fn readable(&self, end: usize) -> usize {
        self.directions[1 - end].unread.len()
    }

    /// Whether `end` has heard of the end of the other's stream, or of a reset.
    pub fn is_over(&self, end: usize) -> bool {
        self.directions[1 - end].fin || self.is_reset(end)
    }

    /// Whether `end` has heard of a reset.
    pub fn is_reset(&self, end: usize) -> bool {
        self.directions[1 - end].reset
    }

    /// `end` sends nothing more.
    pub fn shut(&mut self, end: usize, at: Time) -> Time {
        if self.directions[end].fin_sent {
            return at;
        }
        self.directions[end].fin_sent = true;
        self.put(end, at, Segment::Fin)
    }

    /// `end` is closed; `reset`: something lies unread.
    pub fn close(&mut self, end: usize, reset: bool, at: Time) -> Time {
        self.closed[end] = true;
        if reset || self.readable(end) > 0 {
            self.directions[end].fin_sent = true;
            return self.put(end, at, Segment::Reset);
        }
        self.shut(end, at)
    }

    /// Time has passed; `back` is when an answer that is sent now arrives. True: an answer was sent.
    pub fn advance(&mut self, now: Time, back: Time) -> bool {
        let mut answered = false;
        for end in 0..2 {
            while let Some((at, _)) = self.directions[end].way.front()
                && *at <= now
            {
                let Some((_, segment)) = self.directions[end].way.pop_front() else {
                    break;
                };
                let closed = self.closed[1 - end];
                let direction = &mut self.directions[end];
                match segment {
                    Segment::Bytes(bytes) => {
                        direction.way_bytes -= bytes.len();
                        if !closed {
                            direction.unread.extend(bytes);
                        } else if !self.directions[1 - end].reset {
                            answered = true;
                            self.put(1 - end, back, Segment::Reset);
                        }
                    }
                    Segment::Fin => direction.fin = true,
                    Segment::Reset => direction.reset = true,
                }
            }
        }
        answered
    }
}
