//! Carrying bytes between two mirrors of one host, from ring to ring, without a link.

use super::Mirror;
use crate::ring::{Consumer, Corrupt, Producer};
use crate::sync::Ordering;

/// What [`Mirror::carry_to`] has done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Carried {
    /// So many bytes are at the other end now.
    pub bytes: u64,
    /// There are more of them, and there is room for them.
    pub more: bool,
}

impl Mirror {
    /// Copies bytes of the program's ring that `far`, the mirror at the other end of the same connection, does not
    /// have yet, at most `max`, into the ring of its program, which may read them from now on. The two programs are
    /// on one host; nothing else may be [placed](Mirror::place) at `far`.
    ///
    /// # Errors
    /// The words of one of the two programs make no sense. Its [look](Mirror::look) finds that as well.
    pub fn carry_to(&mut self, far: &mut Self, max: u64) -> Result<Carried, Corrupt> {
        if self.up_over || far.down_over || far.kept_empty {
            return Ok(Carried::default());
        }
        let source = Consumer::of(&self.view);
        source.refresh(&mut self.up)?;
        let at = far.down.tail;
        // While a byte is unread the base stays where it is, and that byte was acquired.
        let base = self.view.rx_words.base.load(Ordering::Relaxed);
        if base > at || at < self.up.head {
            return Err(Corrupt::Base { base, head: at });
        }
        let there = self.up.tail.saturating_sub(at);
        let sink = Producer::of(&far.view);
        let mut room = sink.free(&far.down);
        if there > 0 && (room < there || far.down.used() > 0) {
            room = sink.refresh(&mut far.down)?;
        }
        let bytes = there.min(room).min(max);
        if bytes == 0 {
            return Ok(Carried::default());
        }
        let index = |position: u64| usize::try_from(position - base).unwrap_or(0);
        let len = usize::try_from(bytes).unwrap_or(0);
        if sink
            .write_across(&mut far.down, &self.view.rx_data, index(at), len)
            .is_err()
        {
            return Ok(Carried::default());
        }
        far.placed = far.down.tail;
        far.show();
        Ok(Carried {
            bytes,
            more: there.min(room) > bytes,
        })
    }

    /// Whether [`Mirror::carry_to`] has something to do, as far as was looked.
    pub const fn has_for(&self, far: &Self) -> bool {
        !self.up_over
            && !far.down_over
            && !far.kept_empty
            && self.up.tail > far.down.tail
            && far.down.used() < far.view.tx_data.capacity() as u64
    }
}
