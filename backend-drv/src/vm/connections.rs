//! Memory that guests were given for connections, until nobody uses it any more.

use std::collections::HashMap;

use rdma_core::channel::{GUEST_PROCESS_MIN, GUEST_PROCESSES};
use rdma_core::layout::End;
use rdma_core::wire::pairing::Place as FarPlace;

use super::VmId;
use super::lease::Lease;
use super::switch::FlowId;
use crate::broker::Half;
use crate::carving::Place;
use crate::ids::{ConnectionId, PeerId, Process};
use crate::pairing::Tuple;

/// The relay's numbers for the ends of guests have this bit.
const RELAYED: u64 = 1 << 52;

/// An end that a guest's program has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestEnd {
    /// The guest.
    pub vm: VmId,
    /// The program.
    pub process: Process,
    /// Its registration there.
    pub registration: u64,
    /// The memory: for a direct connection both ends' the same.
    pub place: Place,
    /// Which end of the memory it is.
    pub end: End,
    /// The process at the far end: the other program, or the relay as this one knows it.
    pub far: Process,
    /// The guest has been told of the memory.
    pub granted: bool,
    /// The guest uses the memory.
    pub used: bool,
    /// The relay uses the memory.
    pub relayed: bool,
    /// The program may still use the memory, and nobody is left who would say when it does not: what its driver had.
    pub kept: Option<Lease>,
}

/// Memory that nobody of whom the host hears uses any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freed {
    /// The end that was the last.
    pub end: GuestEnd,
    /// Programs that may still use it: what their drivers had, and which ends of the memory they have.
    pub keepers: [Option<(Lease, End)>; 2],
}

/// Who has an end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A guest's program.
    Guest(GuestEnd),
    /// A program of this host, in memory of its own, which the relay serves.
    Local(Half),
    /// A program behind another host's backend, and where that takes bytes, if it has said so.
    Peer(PeerId, Option<FarPlace>),
    /// Somebody of whom this daemon need not know, or does not know yet: a daemon before us has made the connection.
    Unknown,
}

/// A connection with one or two ends in guests.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// How its ends found each other; [`FlowId::NONE`]: with a daemon before us.
    pub flow: FlowId,
    /// As the leader sees it.
    pub tuple: Tuple,
    /// The leader's and the follower's end.
    pub ends: [Holder; 2],
    /// Ring size as a power of two.
    pub ring_log2: u32,
}

impl Connection {
    /// Whether the relay serves it, as opposed to two guests alone.
    pub fn is_relayed(&self) -> bool {
        self.guests().any(|(_, end)| end.far_is_relay())
    }

    /// The ends that are in guests.
    pub fn guests(&self) -> impl Iterator<Item = (usize, GuestEnd)> + '_ {
        let all = self.ends.iter().enumerate();
        all.filter_map(|(index, holder)| match holder {
            Holder::Guest(end) => Some((index, *end)),
            _ => None,
        })
    }

    fn guest_mut(&mut self, index: usize) -> Option<&mut GuestEnd> {
        match self.ends.get_mut(index)? {
            Holder::Guest(end) => Some(end),
            _ => None,
        }
    }

    /// Whether nobody uses any memory of it.
    fn is_over(&self) -> bool {
        self.guests().all(|(_, end)| !end.used && !end.relayed)
    }
}

impl GuestEnd {
    /// Whether the far end of the memory is the relay.
    pub fn far_is_relay(&self) -> bool {
        (self.far.0 - GUEST_PROCESS_MIN) % GUEST_PROCESSES >= GUEST_PROCESSES / 2
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    all: HashMap<u64, Connection>,
    by_flow: HashMap<FlowId, u64>,
    /// By the connection that an end of this host's is.
    by_local: HashMap<ConnectionId, u64>,
    last: u64,
    changes: u64,
}

impl Connections {
    /// Numbers differ from those of any daemon before us: guests still know some of them.
    pub fn number_from(&mut self, epoch: u64) {
        self.last = (epoch & 0xf_ffff) << 24;
    }

    /// A new connection; its number.
    pub fn insert(&mut self, connection: Connection) -> u64 {
        self.last += 1;
        // Of a daemon before us.
        while self.all.contains_key(&self.last) {
            self.last += 1;
        }
        self.changes += 1;
        self.by_flow.insert(connection.flow, self.last);
        for half in locals(&connection) {
            self.by_local.insert(half, self.last);
        }
        self.all.insert(self.last, connection);
        self.last
    }

    /// End `index` of connection `number` has been in use since a daemon before us. `tuple` as this end sees it. False:
    /// that is not possible.
    pub fn restore(&mut self, number: u64, index: usize, tuple: Tuple, end: GuestEnd) -> bool {
        let leader = if index == 0 { tuple } else { tuple.mirrored() };
        let found = self.all.entry(number).or_insert(Connection {
            flow: FlowId::NONE,
            tuple: leader,
            ends: [Holder::Unknown; 2],
            ring_log2: end.place.ring_log2,
        });
        match found.ends.get_mut(index) {
            Some(holder) if found.flow == FlowId::NONE && *holder == Holder::Unknown => {
                *holder = Holder::Guest(end);
                self.changes += 1;
                true
            }
            _ => false,
        }
    }

    /// A connection.
    pub fn get(&self, number: u64) -> Option<&Connection> {
        self.all.get(&number)
    }

    /// The same.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Connection> {
        self.all.get_mut(&number)
    }

    /// The connection that a flow has come to.
    pub fn of_flow(&self, flow: FlowId) -> Option<u64> {
        self.by_flow.get(&flow).copied()
    }

    /// The end of a connection that a guest uses, which it is, and the other one if a guest uses that.
    pub fn end_of(&self, number: u64, vm: VmId) -> Option<(usize, GuestEnd, Option<GuestEnd>)> {
        let connection = self.all.get(&number)?;
        let used = |(_, end): &(usize, GuestEnd)| end.used;
        let mut own = connection.guests().filter(used);
        let (index, end) = own.find(|(_, end)| end.vm == vm)?;
        let mut far = connection.guests().filter(used);
        let far = far.find(|(other, _)| *other != index);
        Some((index, end, far.map(|(_, end)| end)))
    }

    /// Notes that a guest was told of its end. `None`: there is no such end.
    pub fn granted(&mut self, number: u64, index: usize) -> Option<GuestEnd> {
        let end = self.all.get_mut(&number)?.guest_mut(index)?;
        end.granted = true;
        Some(*end)
    }

    /// The relay uses the memory of all ends that are in guests.
    pub fn serve(&mut self, number: u64) {
        if let Some(connection) = self.all.get_mut(&number) {
            for holder in &mut connection.ends {
                if let Holder::Guest(end) = holder {
                    end.relayed = true;
                }
            }
        }
    }

    /// A guest uses its end no more. Its memory, if nobody uses that any more.
    pub fn let_go(&mut self, number: u64, index: usize) -> Option<Freed> {
        self.release(number, index, |end| end.used = false)
    }

    /// The same of a guest whose program nobody looks after any more.
    pub fn abandon(&mut self, number: u64, index: usize, lease: Lease) -> Option<Freed> {
        self.release(number, index, |end| {
            end.used = false;
            end.kept = Some(lease);
        })
    }

    /// The relay uses the memory of an end no more. The memory, if nobody does.
    pub fn relay_left(&mut self, number: u64, index: usize) -> Option<Freed> {
        self.release(number, index, |end| end.relayed = false)
    }

    fn release(
        &mut self,
        number: u64,
        index: usize,
        change: impl FnOnce(&mut GuestEnd),
    ) -> Option<Freed> {
        let connection = self.all.get_mut(&number)?;
        let end = connection.guest_mut(index)?;
        let was_free = !end.used && !end.relayed;
        change(end);
        let end = *end;
        let shared = connection
            .guests()
            .any(|(other, far)| other != index && far.place == end.place && far.used);
        let mut keepers = [None; 2];
        for (other, far) in connection.guests() {
            if let Some(keeper) = keepers.get_mut(other)
                && far.place == end.place
            {
                *keeper = far.kept.map(|lease| (lease, far.end));
            }
        }
        if connection.is_over() {
            self.by_flow.remove(&connection.flow);
            for half in locals(connection) {
                self.by_local.remove(&half);
            }
            self.all.remove(&number);
        }
        self.changes += 1;
        let is_free = !end.used && !end.relayed && !shared;
        (is_free && !was_free).then_some(Freed { end, keepers })
    }

    /// Connections with an end that a guest uses, and which end.
    pub fn of_vm(&self, vm: VmId) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        for (number, connection) in &self.all {
            for (index, end) in connection.guests() {
                if end.vm == vm && end.used {
                    found.push((*number, index));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Connections that `fits` means.
    pub fn matching(&self, fits: impl Fn(&Tuple) -> bool) -> Vec<u64> {
        let all = self.all.iter().filter(|(_, found)| fits(&found.tuple));
        let mut numbers: Vec<u64> = all.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// How often connections have come, or ends of theirs gone.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// How many there are: direct, and relayed.
    pub fn count(&self) -> (usize, usize) {
        let relayed = self.all.values().filter(|found| found.is_relayed());
        let relayed = relayed.count();
        (self.all.len() - relayed, relayed)
    }

    /// The relayed connection that serves an end of this host's.
    pub fn of_local(&self, connection: ConnectionId) -> Option<u64> {
        self.by_local.get(&connection).copied()
    }

    /// A program of this host's is the follower.
    pub fn follow(&mut self, number: u64, half: Half) {
        if let Some(found) = self.all.get_mut(&number) {
            let [_, follower] = &mut found.ends;
            *follower = Holder::Local(half);
            self.by_local.insert(half.connection, number);
        }
    }
}

/// The ends that are this host's.
fn locals(connection: &Connection) -> impl Iterator<Item = ConnectionId> + use<> {
    let local = |holder: Holder| match holder {
        Holder::Local(half) => Some(half.connection),
        Holder::Guest(_) | Holder::Peer(..) | Holder::Unknown => None,
    };
    connection.ends.into_iter().filter_map(local)
}

/// The relay's number for end `index` of connection `number`.
pub const fn relay_id(number: u64, index: usize) -> ConnectionId {
    ConnectionId(RELAYED | number << 1 | index as u64)
}

/// The connection and the end that the relay means; `None`: it is not a guest's.
pub const fn of_relay(id: ConnectionId) -> Option<(u64, usize)> {
    if id.0 & RELAYED == 0 {
        return None;
    }
    let rest = id.0 & !RELAYED;
    Some((rest >> 1, (rest & 1) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ArenaId;

    fn end(vm: usize, offset: u64, relayed: bool) -> GuestEnd {
        let far = GUEST_PROCESS_MIN + if relayed { GUEST_PROCESSES / 2 } else { 1 };
        GuestEnd {
            vm: VmId(vm),
            process: Process(GUEST_PROCESS_MIN + 1),
            registration: 1,
            place: Place {
                arena: ArenaId(1),
                offset,
                ring_log2: 16,
                arena_bytes: 1 << 20,
                fresh: false,
            },
            end: End::Zero,
            far: Process(far),
            granted: true,
            used: true,
            relayed,
            kept: None,
        }
    }

    fn connection(ends: [GuestEnd; 2]) -> (Connections, u64) {
        let mut all = Connections::default();
        let number = all.insert(Connection {
            flow: FlowId(7),
            tuple: Tuple {
                own: "10.0.0.1:1".parse().unwrap(),
                far: "10.0.0.2:2".parse().unwrap(),
            },
            ends: ends.map(Holder::Guest),
            ring_log2: 16,
        });
        (all, number)
    }

    #[test]
    fn shared_memory_is_free_when_both_have_let_go() {
        let (mut all, number) = connection([end(0, 0, false), end(1, 0, false)]);
        assert_eq!(all.count(), (1, 0));
        assert_eq!(all.let_go(number, 0), None);
        assert_eq!(all.let_go(number, 0), None, "once");
        assert_eq!(all.end_of(number, VmId(0)), None);
        assert!(all.let_go(number, 1).is_some());
        assert_eq!(all.count(), (0, 0));
        assert_eq!(all.of_flow(FlowId(7)), None);
    }

    #[test]
    fn what_was_abandoned_is_kept_for_its_guest() {
        let (mut all, number) = connection([end(0, 0, false), end(1, 0, false)]);
        let lease = Lease::default();
        assert_eq!(all.abandon(number, 0, lease), None);
        let freed = all.let_go(number, 1).unwrap();
        assert_eq!(freed.keepers, [Some((lease, End::Zero)), None]);
        let (mut all, number) = connection([end(0, 0, true), end(1, 4096, true)]);
        assert_eq!(all.abandon(number, 0, lease), None);
        let keepers = |freed: Option<Freed>| freed.unwrap().keepers;
        let kept = [Some((lease, End::Zero)), None];
        assert_eq!(keepers(all.relay_left(number, 0)), kept);
        assert_eq!(all.relay_left(number, 1), None);
        assert_eq!(keepers(all.let_go(number, 1)), [None; 2]);
        assert_eq!(all.count(), (0, 0));
    }

    #[test]
    fn relayed_memory_is_free_when_guest_and_relay_have_let_go() {
        let (mut all, number) = connection([end(0, 0, true), end(1, 4096, true)]);
        assert_eq!(all.count(), (0, 1));
        assert_eq!(all.let_go(number, 0), None);
        assert!(all.relay_left(number, 0).is_some());
        assert_eq!(all.relay_left(number, 1), None);
        assert!(all.let_go(number, 1).is_some());
        assert_eq!(all.count(), (0, 0));
    }

    #[test]
    fn ends_of_this_host_are_found_while_the_connection_lives() {
        let (mut all, number) = connection([end(0, 0, true), end(1, 4096, true)]);
        let half = Half {
            connection: ConnectionId(5),
            place: end(0, 0, true).place,
            end: End::One,
            process: Process(3),
            domain: None,
        };
        assert_eq!(all.of_local(ConnectionId(5)), None);
        all.follow(number, half);
        assert_eq!(all.of_local(ConnectionId(5)), Some(number));
        assert_eq!(all.let_go(number, 0), None);
        assert!(all.relay_left(number, 0).is_some());
        assert_eq!(all.of_local(ConnectionId(5)), None);
    }

    #[test]
    fn the_relay_names_ends_apart() {
        for (number, index) in [(1, 0), (1, 1), (77, 1)] {
            assert_eq!(of_relay(relay_id(number, index)), Some((number, index)));
        }
        assert_eq!(of_relay(ConnectionId(3)), None);
    }
}
