//! A guest's driver that parts from its host: because the device is gone, or because it leaves itself.

use rdma_core::channel::Up;
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::slot::{RxState, TxState};

use crate::broker::{self, Ends, Occupant, UPLINK, Uplinked};
use crate::daemon::Daemon;
use crate::ids::ConnectionId;
use crate::uplink::Uplink;

impl Daemon {
    /// Something may be up with the device. Without it there is nothing new outside. We stay for the sake of
    /// connections with other guests, as long as there are any; then whoever looks after us starts us again.
    pub(in crate::daemon) fn look_at_device(&mut self) {
        let Some(uplink) = &mut self.uplink else {
            return;
        };
        if uplink.is_present() || !uplink.lose() {
            return;
        }
        tracing::warn!("the host is gone: connections through it are broken, others go on");
        if let Some(news) = uplink.news() {
            let _ = self.epoll.delete(news);
        }
        self.broker.peer_silent(UPLINK);
        self.break_relayed();
    }

    /// Whether the device is gone.
    pub fn has_lost_device(&self) -> bool {
        self.uplink.as_ref().is_some_and(Uplink::is_lost)
    }

    /// Whether the device is gone, and nobody needs us any more.
    pub(in crate::daemon) fn is_forsaken(&self) -> bool {
        self.uplink.as_ref().is_some_and(Uplink::is_lost)
            && self.broker.uplinked_connections().next().is_none()
    }

    /// The host relays nothing any more.
    fn break_relayed(&mut self) {
        let all: Vec<ConnectionId> = self.broker.uplinked_connections().collect();
        for connection in all {
            self.break_one(connection);
        }
    }

    /// The host does not relay this any more.
    pub(in crate::daemon) fn break_one(&mut self, connection: ConnectionId) {
        let is_relayed = self.broker.uplinked(connection) == Some(Uplinked::Relayed);
        let Some(ends) = self.broker.ends(connection).filter(|_| is_relayed) else {
            return;
        };
        for (end, occupant) in [End::Zero, End::One].into_iter().zip(ends.occupants) {
            let arena = self.arenas.get(&ends.place.arena);
            if occupant.is_none()
                && let Some(words) =
                    arena.and_then(|arena| arena.memory.end(ends.place.offset, end))
            {
                words.state.break_with(Reason::LinkReset);
            }
        }
        self.rouse(connection, [true; 2]);
    }

    /// Whether no program of this guest has anything on a ring whose far end is outside.
    pub(in crate::daemon) fn is_drained_outside(&self) -> bool {
        let is_off = |occupant: &Occupant| {
            let Some(slot) = self.seat(occupant).and_then(|seat| {
                let program = &seat.program;
                let slot = program.slots.slot(seat.slot)?;
                let states = (slot.tx.state(), slot.rx.state());
                seat.look().map(|_| states)
            }) else {
                return true;
            };
            let (tx, rx) = slot;
            matches!(tx, TxState::Kernel | TxState::Done | TxState::Returned)
                && matches!(rx, RxState::Kernel | RxState::Done | RxState::Returned)
        };
        self.outside().all(|(_, ends)| {
            let mut here = ends.occupants.iter().flatten();
            here.all(is_off)
        })
    }

    /// Whether programs still have memory of the device mapped for a connection.
    pub(in crate::daemon) fn is_held_outside(&self) -> bool {
        self.outside()
            .any(|(_, ends)| ends.occupants.iter().any(Option::is_some))
    }

    /// Connections of this guest with far ends outside.
    fn outside(&self) -> impl Iterator<Item = (ConnectionId, Ends)> + '_ {
        let all = self.broker.uplinked_connections();
        all.filter_map(|connection| Some((connection, self.broker.ends(connection)?)))
    }

    /// Everything is off the rings, and we leave: what the far ends do is no concern of ours.
    pub(in crate::daemon) fn leave_host(&mut self) {
        let direct = |(connection, _): &(ConnectionId, Ends)| {
            self.broker.uplinked(*connection) == Some(Uplinked::Direct)
        };
        let left: Vec<u64> = self
            .outside()
            .filter(direct)
            .filter_map(|(connection, _)| broker::host_connection(connection))
            .collect();
        for connection in left {
            self.tell_host(&Up::Ended(connection));
        }
    }
}
