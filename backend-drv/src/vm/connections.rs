//! Memory that guests were given for connections, until nobody uses it any more.

use std::collections::HashMap;

use rdma_core::layout::End;

use super::VmId;
use super::switch::FlowId;
use crate::carving::Place;
use crate::ids::{ConnectionId, Process};

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
}

/// A connection with one or two ends in guests.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// How its ends found each other.
    pub flow: FlowId,
    /// Ends that have not let go: the leader's, the follower's.
    pub ends: [Option<GuestEnd>; 2],
    /// The backend relays it.
    pub relayed: bool,
    /// For a relayed connection: ends whose memory the relay has not let go of.
    pub held: [bool; 2],
}

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    all: HashMap<u64, Connection>,
    by_flow: HashMap<FlowId, u64>,
    last: u64,
}

impl Connections {
    /// A new connection; its number.
    pub fn insert(&mut self, connection: Connection) -> u64 {
        self.last += 1;
        self.by_flow.insert(connection.flow, self.last);
        self.all.insert(self.last, connection);
        self.last
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

    /// The end of a connection that a guest has, which 0 or 1 it is, and the other one.
    pub fn end_of(&self, number: u64, vm: VmId) -> Option<(usize, GuestEnd, Option<GuestEnd>)> {
        let ends = self.all.get(&number)?.ends;
        (0..2).find_map(|index| {
            let own = ends.get(index).copied().flatten()?;
            let far = ends.get(1 - index).copied().flatten();
            (own.vm == vm).then_some((index, own, far))
        })
    }

    /// A guest lets go of its end. Its memory, if nobody uses that any more.
    pub fn let_go(&mut self, number: u64, index: usize) -> Option<GuestEnd> {
        let connection = self.all.get_mut(&number)?;
        let end = connection.ends.get_mut(index)?.take()?;
        let shared = !connection.relayed && connection.ends.iter().any(Option::is_some);
        let is_held = connection.held.get(index).copied().unwrap_or(false);
        if shared || is_held {
            if is_held {
                // Put back for the relay to let go of.
                *connection.ends.get_mut(index)? = Some(end);
            }
            return None;
        }
        self.forget_if_over(number);
        Some(end)
    }

    fn forget_if_over(&mut self, number: u64) {
        if let Some(connection) = self.all.get(&number)
            && connection.ends == [None, None]
        {
            self.by_flow.remove(&connection.flow);
            self.all.remove(&number);
        }
    }

    /// Connections with an end in a guest, and which end.
    pub fn of_vm(&self, vm: VmId) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        for (number, connection) in &self.all {
            for (index, end) in connection.ends.iter().enumerate() {
                if end.is_some_and(|end| end.vm == vm) {
                    found.push((*number, index));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// How many there are: direct, and relayed.
    pub fn count(&self) -> (usize, usize) {
        let relayed = self.all.values().filter(|found| found.relayed).count();
        (self.all.len() - relayed, relayed)
    }
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
