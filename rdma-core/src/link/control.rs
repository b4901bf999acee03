//! The control channel: messages that all arrive, once and in order.

use std::collections::VecDeque;

use crate::wire::CONTROL_BYTES_MAX;

/// Messages that may be under way, and that a receiver keeps if they come out of order.
pub(super) const WINDOW: u32 = 256;

/// Messages that may wait, those under way included.
const QUEUE_MAX: usize = 4096;

/// Messages that the caller may leave untaken.
const UNTAKEN_MAX: usize = 4096;

/// The message does not fit: too long, or too many wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the control channel is full, or the message longer than {CONTROL_BYTES_MAX} bytes")]
pub struct Full;

/// What became of a message that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accepted {
    /// It is kept, or was known.
    Yes,
    /// There is no room for it: it must come again.
    No,
}

#[derive(Debug)]
struct Message {
    bytes: Box<[u8]>,
    acked: bool,
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// From `base` on; the front is not acknowledged.
    queue: VecDeque<Message>,
    base: u32,
    /// The next that was never sent.
    next: u32,
    /// To be sent again.
    again: VecDeque<u32>,
    /// What is wanted next, and what has come beyond it.
    expected: u32,
    early: VecDeque<Option<Box<[u8]>>>,
    /// In order, to be taken by the caller.
    ready: VecDeque<Box<[u8]>>,
}

impl Channel {
    /// Forgets everything: a session ended.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Full> {
        if message.len() > CONTROL_BYTES_MAX || self.queue.len() >= QUEUE_MAX {
            return Err(Full);
        }
        self.queue.push_back(Message {
            bytes: message.into(),
            acked: false,
        });
        Ok(())
    }

    /// Whether [`Self::peek`] would give something.
    #[inline]
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty() || self.next_fits()
    }

    fn next_fits(&self) -> bool {
        let ahead = self.next.wrapping_sub(self.base);
        ahead < WINDOW && (ahead as usize) < self.queue.len()
    }

    /// The message that should be sent next.
    pub(super) fn peek(&mut self) -> Option<(u32, &[u8])> {
        while let Some(&sequence) = self.again.front() {
            if self.waiting(sequence).is_some() {
                break;
            }
            self.again.pop_front();
        }
        let sequence = match self.again.front() {
            Some(&sequence) => sequence,
            None if self.next_fits() => self.next,
            None => return None,
        };
        let at = sequence.wrapping_sub(self.base) as usize;
        Some((sequence, &self.queue.get(at)?.bytes))
    }

    /// What [`Self::peek`] gave was sent.
    pub(super) fn on_sent(&mut self) {
        if self.again.pop_front().is_none() {
            self.next = self.next.wrapping_add(1);
        }
    }

    pub(super) fn on_acked(&mut self, sequence: u32) {
        if let Some(at) = self.waiting(sequence)
            && let Some(message) = self.queue.get_mut(at)
        {
            message.acked = true;
            while self.queue.front().is_some_and(|message| message.acked) {
                self.queue.pop_front();
                self.base = self.base.wrapping_add(1);
            }
        }
    }

    pub(super) fn on_lost(&mut self, sequence: u32) {
        if self.waiting(sequence).is_some() && !self.again.contains(&sequence) {
            self.again.push_back(sequence);
        }
    }

    /// Index of a message that was sent and is not acknowledged.
    fn waiting(&self, sequence: u32) -> Option<usize> {
        let ahead = sequence.wrapping_sub(self.base);
        if ahead >= self.next.wrapping_sub(self.base) {
            return None;
        }
        let at = ahead as usize;
        self.queue.get(at).filter(|message| !message.acked)?;
        Some(at)
    }

    /// A message arrived.
    pub(super) fn receive(&mut self, sequence: u32, message: &[u8]) -> Accepted {
        let ahead = sequence.wrapping_sub(self.expected);
        if ahead > u32::MAX / 2 {
            return Accepted::Yes;
        }
        if ahead >= WINDOW || self.ready.len() >= UNTAKEN_MAX {
            return Accepted::No;
        }
        let at = ahead as usize;
        while self.early.len() <= at {
            self.early.push_back(None);
        }
        self.early[at].get_or_insert_with(|| message.into());
        while let Some(Some(_)) = self.early.front() {
            self.ready.extend(self.early.pop_front().flatten());
            self.expected = self.expected.wrapping_add(1);
        }
        Accepted::Yes
    }

    /// The next message in order.
    pub(super) fn take(&mut self) -> Option<Box<[u8]>> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Frames are lost, doubled and reordered; every message arrives once and in order.
        #[test]
        fn everything_arrives_in_order(count in 1u32..700, fates in vec((0u8..8, 0usize..16), 64)) {
            let (mut a, mut b) = (Channel::default(), Channel::default());
            for number in 0..count {
                a.send(&number.to_be_bytes()).unwrap();
            }
            let mut under_way: Vec<(u32, Vec<u8>)> = Vec::new();
            let mut taken = Vec::new();
            for (fate, at) in fates.iter().cycle().take(200_000) {
                if let Some((sequence, message)) = a.peek() {
                    let message = message.to_vec();
                    under_way.push((sequence, message));
                    a.on_sent();
                } else if under_way.is_empty() {
                    break;
                }
                let (sequence, message) = under_way.swap_remove(at % under_way.len());
                match fate {
                    0 => a.on_lost(sequence),
                    1 => {
                        prop_assert_eq!(b.receive(sequence, &message), Accepted::Yes);
                        a.on_lost(sequence);
                    }
                    _ => {
                        prop_assert_eq!(b.receive(sequence, &message), Accepted::Yes);
                        a.on_acked(sequence);
                    }
                }
                taken.extend(core::iter::from_fn(|| b.take()));
            }
            prop_assert_eq!(taken.len(), count as usize);
            for (number, message) in (0u32..).zip(&taken) {
                prop_assert_eq!(&message[..], &number.to_be_bytes()[..]);
            }
            prop_assert!(!a.has_more());
        }
    }

    #[test]
    fn is_bounded() {
        let mut channel = Channel::default();
        assert_eq!(channel.send(&[0; CONTROL_BYTES_MAX + 1]), Err(Full));
        for _ in 0..QUEUE_MAX {
            channel.send(b"m").unwrap();
        }
        assert_eq!(channel.send(b"m"), Err(Full));
        for _ in 0..WINDOW {
            assert!(channel.peek().is_some());
            channel.on_sent();
        }
        assert!(!channel.has_more() && channel.peek().is_none());
        channel.on_acked(1);
        assert!(!channel.has_more(), "the first is still under way");
        channel.on_acked(0);
        assert_eq!(channel.peek().map(|(sequence, _)| sequence), Some(256));
        assert_eq!(channel.receive(WINDOW, b"x"), Accepted::No);
        assert_eq!(channel.receive(WINDOW - 1, b"x"), Accepted::Yes);
        assert_eq!(channel.receive(u32::MAX, b"x"), Accepted::Yes, "an old one");
        assert_eq!(channel.take(), None);
    }
}
