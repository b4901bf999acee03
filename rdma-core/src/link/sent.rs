//! What is under way: one record for each frame that asks for an acknowledgement.

use std::collections::VecDeque;

use super::time::Time;

/// Most frames under way. At 9000 bytes this is more than half a gigabyte; at the smallest size it still
/// bounds the memory of a link to a few megabytes.
pub(super) const RECORDS_MAX: usize = 1 << 16;

/// What happened to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Not known yet.
    UnderWay,
    /// Acknowledged, or given up for lost.
    Known,
}

/// Bytes of a stream in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SentWrite {
    pub(super) slot: StreamRef,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// A stream as it was when something was sent for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StreamRef {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Something small in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// An acknowledgement up to this number.
    Ack(u64),
    /// The state with this sequence number.
    State(StreamRef, u32),
    /// The position that was reported.
    Consumed(StreamRef, u64),
    /// The control message with this sequence number.
    Control(u32),
}

/// A frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) at: Time,
    pub(super) size: u32,
    pub(super) items: u16,
    pub(super) fate: Fate,
    /// A path MTU probe: its loss is no sign of congestion.
    pub(super) probe: bool,
    /// What was in it has been queued once more by the tail-loss timer.
    pub(super) repeated: bool,
    pub(super) write: Option<SentWrite>,
    first_item: u64,
}

/// The frames, by number.
#[derive(Debug, Default)]
pub(super) struct Sent {
    records: VecDeque<Record>,
    items: VecDeque<Item>,
    /// Running index of the first of `items`.
    items_base: u64,
    /// Items of the frame that is being written.
    open_items: u16,
    under_way: usize,
}

impl Sent {
    /// Whether another frame may be sent.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.records.len() < RECORDS_MAX
    }

    /// Frames whose fate is not known.
    #[inline]
    pub(super) const fn under_way(&self) -> usize {
        self.under_way
    }

    /// Adds to the frame that is being written.
    #[inline]
    pub(super) fn add_item(&mut self, item: Item) {
        self.items.push_back(item);
        self.open_items += 1;
    }

    /// The frame that was being written asks for no acknowledgement: it is not remembered.
    pub(super) fn abandon(&mut self) {
        let keep = self.items.len() - usize::from(self.open_items);
        self.items.truncate(keep);
        self.open_items = 0;
    }

    /// The frame is complete.
    #[inline]
    pub(super) fn push(
        &mut self,
        number: u64,
        at: Time,
        size: u32,
        probe: bool,
        write: Option<SentWrite>,
    ) {
        let items = core::mem::take(&mut self.open_items);
        let first_item = self.items_base + (self.items.len() - usize::from(items)) as u64;
        self.under_way += 1;
        self.records.push_back(Record {
            number,
            at,
            size,
            items,
            fate: Fate::UnderWay,
            probe,
            repeated: false,
            write,
            first_item,
        });
    }

    /// Index of the first record with at least this number.
    #[inline]
    pub(super) fn position(&self, number: u64) -> usize {
        match self.records.front() {
            Some(first) if first.number < number => self
                .records
                .partition_point(|record| record.number < number),
            _ => 0,
        }
    }

    /// A record.
    #[inline]
    pub(super) fn record(&self, index: usize) -> Option<&Record> {
        self.records.get(index)
    }

    /// The fate of a frame is now known.
    #[inline]
    pub(super) fn settle(&mut self, index: usize) {
        if let Some(record) = self.records.get_mut(index)
            && record.fate == Fate::UnderWay
        {
            record.fate = Fate::Known;
            self.under_way -= 1;
        }
    }

    /// An item of a record.
    #[inline]
    pub(super) fn item(&self, record: &Record, index: u16) -> Option<Item> {
        let at = record.first_item - self.items_base + u64::from(index);
        self.items.get(usize::try_from(at).ok()?).copied()
    }

    /// Forgets frames at the front whose fate is known.
    #[inline]
    pub(super) fn forget_settled(&mut self) {
        while let Some(first) = self.records.front() {
            if first.fate == Fate::UnderWay {
                return;
            }
            let count = usize::from(first.items);
            self.records.pop_front();
            if count > 0 {
                self.items.drain(..count);
                self.items_base += count as u64;
            }
        }
    }

    /// The oldest frame under way that has not been repeated; it is marked as repeated.
    pub(super) fn take_unrepeated(&mut self) -> Option<Record> {
        let record = self
            .records
            .iter_mut()
            .find(|record| record.fate == Fate::UnderWay && !record.repeated)?;
        record.repeated = true;
        Some(*record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_with_their_frame() {
        let mut sent = Sent::default();
        for number in [3u64, 4, 8] {
            sent.add_item(Item::Ack(number));
            sent.add_item(Item::Control(u32::try_from(number).unwrap()));
            sent.push(number, Time(number), 100, false, None);
        }
        sent.add_item(Item::Ack(77));
        sent.abandon();
        assert_eq!((sent.under_way(), sent.position(5)), (3, 2));
        sent.settle(1);
        sent.settle(1);
        assert_eq!(sent.under_way(), 2);
        sent.forget_settled();
        assert_eq!(sent.position(3), 0, "the first is still under way");
        sent.settle(0);
        sent.forget_settled();
        let last = *sent.record(0).unwrap();
        assert_eq!(last.number, 8);
        assert_eq!(sent.item(&last, 1), Some(Item::Control(8)));
        assert_eq!(sent.item(&last, 2), None);
        assert_eq!(sent.take_unrepeated().map(|record| record.number), Some(8));
        assert!(sent.take_unrepeated().is_none());
    }
}
