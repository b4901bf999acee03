//! From two ends that belong together to memory that they share, or that the relay serves.

use std::collections::BTreeSet;

use rdma_core::channel::{Down, Grant, GuestContext};
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Place as FarPlace;

use crate::carving::{Couple, Place};
use crate::daemon::Daemon;
use crate::ids::Process;
use crate::pairing::Tuple;
use crate::relay::Command;
use crate::vm::VmId;
use crate::vm::connections::{Connection, GuestEnd, Holder, relay_id};
use crate::vm::switch::{Deed, Flow, FlowId, Side};

/// The connection that a flow is about, as its leader sees it.
pub(super) const fn tuple_of(flow: &Flow) -> Tuple {
    Tuple {
        own: flow.names.own,
        far: flow.names.far,
    }
}

impl Daemon {
    /// Does what the switch wants done.
    pub(super) fn do_deeds(&mut self, deeds: Vec<Deed>) {
        for deed in deeds {
            tracing::debug!(?deed, "guests");
            match deed {
                Deed::Tell(Side::Vm(vm), message) => self.tell_vm(vm, &Down::Pairing(message)),
                Deed::Tell(Side::Peer(peer), message) => {
                    self.command(Command::Tell(peer, message));
                }
                Deed::Tell(Side::Local(vm), message) => self.broker.heard(vm.peer(), message),
                Deed::Connect(flow, ring_log2, place) => {
                    if let Err(reason) = self.connect_flow(flow, ring_log2, place) {
                        if let Some(half) = self.vms.local_halves.remove(&flow) {
                            // The relay will not have it.
                            self.broker.relay_closed(half.connection);
                        }
                        let mut deeds = Vec::new();
                        self.vms.switch.refuse(flow, reason, &mut deeds);
                        self.do_deeds(deeds);
                    }
                }
                Deed::Complete(flow, place) => self.complete_flow(flow, place),
                Deed::Undo(flow) => self.undo_flow(flow),
            }
        }
    }

    fn connect_flow(
        &mut self,
        number: FlowId,
        ring_log2: u8,
        place: FarPlace,
    ) -> Result<(), Reason> {
        let flow = *self.vms.switch.flow(number).ok_or(Reason::NotEstablished)?;
        let ring_log2 = u32::from(ring_log2).min(self.options.limits.ring_log2_max);
        match (flow.leader.side, flow.follower.side) {
            (Side::Vm(one), Side::Vm(other)) if self.share_region(one, other) => {
                self.connect_direct(number, &flow, (one, other), ring_log2)
            }
            _ => self.connect_relayed(number, &flow, ring_log2, place),
        }
    }

    fn share_region(&self, one: VmId, other: VmId) -> bool {
        let tenancy = |vm| self.vms.vm(vm).map(|vm| vm.tenancy);
        tenancy(one).is_some() && tenancy(one) == tenancy(other)
    }

    /// Two guests of one tenant: both map the same rings.
    fn connect_direct(
        &mut self,
        number: FlowId,
        flow: &Flow,
        (one, other): (VmId, VmId),
        ring_log2: u32,
    ) -> Result<(), Reason> {
        let processes = [flow.leader.process, flow.follower.process].map(Process);
        let couple = Couple::of(processes[0], processes[1]);
        let tenancy = self.vms.tenancy_mut(one).ok_or(Reason::NotEstablished)?;
        let (place, arena) = tenancy
            .region
            .place(couple, ring_log2)
            .ok_or(Reason::NoMemory)?;
        let guest_end = |vm, index: usize, registration, end| GuestEnd {
            vm,
            process: processes[index],
            registration,
            place,
            end,
            far: processes[1 - index],
            granted: false,
            used: true,
            relayed: false,
            kept: None,
        };
        let ends = [
            guest_end(one, 0, flow.leader.id, End::Zero),
            guest_end(other, 1, flow.follower.id, End::One),
        ];
        let connection = self.vms.connections.insert(Connection {
            flow: number,
            tuple: tuple_of(flow),
            ends: ends.map(Holder::Guest),
            ring_log2,
        });
        arena
            .prepare(place.offset, place.ring_log2, connection)
            .map_err(|_| Reason::NoMemory)?;
        for (near, far) in [(0, 1), (1, 0)] {
            let at = self
                .vms
                .seat(ends[far].vm)
                .and_then(|seat| seat.programs.get(&processes[far]))
                .map(|program| program.at);
            self.introduce_guest(ends[near].vm, processes[near], processes[far], at);
        }
        self.grant(connection, 1);
        Ok(())
    }

    /// Tells a guest of memory for one of its registrations.
    pub(super) fn grant(&mut self, connection: u64, index: usize) {
        let Some(end) = self.vms.connections.granted(connection, index) else {
            return;
        };
        let arena = self
            .vms
            .tenancy(end.vm)
            .and_then(|tenancy| tenancy.region.arena(end.place.arena));
        let Some(arena) = arena else {
            return;
        };
        let Place {
            offset,
            ring_log2,
            arena_bytes,
            ..
        } = end.place;
        let grant = Grant {
            registration: end.registration,
            connection,
            at: arena.start(),
            arena_bytes,
            offset,
            arena: end.place.arena.0,
            ring_log2,
            peer: end.far.0,
            end: u8::try_from(end.end.index()).unwrap_or(0),
            relayed: end.far_is_relay().into(),
            reserved: [0; 2],
        };
        if let Some(keeper) = &mut self.keeper {
            self.vms.note(keeper);
        }
        self.tell_vm(end.vm, &Down::Grant(grant));
    }

    /// The follower has its memory: the leader gets its own.
    fn complete_flow(&mut self, number: FlowId, place: FarPlace) {
        let Some(connection) = self.vms.connections.of_flow(number) else {
            return;
        };
        let Some(found) = self.vms.connections.get(connection).copied() else {
            return;
        };
        let flow = self.vms.switch.remove(number);
        if found.is_relayed() {
            if let Some(flow) = flow {
                self.complete_relayed(&flow, connection, place);
            }
        } else {
            self.grant(connection, 0);
        }
    }

    /// A connection whose leader was never told of it.
    fn undo_flow(&mut self, number: FlowId) {
        let Some(connection) = self.vms.connections.of_flow(number) else {
            return;
        };
        let Some(found) = self.vms.connections.get(connection).copied() else {
            return;
        };
        for (index, end) in found.guests() {
            if end.relayed {
                self.command(Command::Close(relay_id(connection, index)));
            }
            // A follower that was told lets go by itself.
            if !end.granted {
                self.guest_let_go(connection, index);
            }
        }
    }

    /// Makes a process outside a guest known to one of its programs.
    pub(super) fn introduce_guest(
        &mut self,
        vm: VmId,
        process: Process,
        peer: Process,
        at: Option<u64>,
    ) {
        let known_before = self.vms.seat(vm).is_some_and(|seat| {
            seat.programs
                .values()
                .any(|known| known.knows.contains(&peer))
        });
        if let Some(seat) = self.vms.seat_mut(vm)
            && let Some(program) = seat.programs.get_mut(&process)
        {
            program.knows.insert(peer);
        }
        let Some(at) = at.filter(|_| !known_before) else {
            return;
        };
        self.tell_vm(
            vm,
            &Down::Program {
                process: peer.0,
                at,
            },
        );
        for (context, bell) in self.contexts_of(peer) {
            self.tell_context(vm, peer, context, bell);
        }
    }

    /// The contexts of a guest's program, and the member and vector that wakes each.
    fn contexts_of(&self, process: Process) -> Vec<(u32, (u16, u16))> {
        let seat = self
            .vms
            .vm_of_process(process)
            .and_then(|vm| self.vms.seat(vm));
        let Some((seat, program)) =
            seat.and_then(|seat| Some((seat, seat.programs.get(&process)?)))
        else {
            return Vec::new();
        };
        let all = program.vectors.iter();
        all.map(|(context, vector)| (*context, (seat.member, *vector)))
            .collect()
    }

    /// Tells a guest how a context outside is woken.
    pub(super) fn tell_context(
        &mut self,
        vm: VmId,
        process: Process,
        context: u32,
        (member, vector): (u16, u16),
    ) {
        let body = GuestContext {
            process: process.0,
            context,
            member,
            vector,
            reserved: 0,
        };
        self.tell_vm(vm, &Down::Context(body));
    }

    /// The guests that were told of a process.
    pub(super) fn who_knows(&self, process: Process) -> Vec<VmId> {
        let mut found = BTreeSet::new();
        for (index, vm) in self.vms.vms.iter().enumerate() {
            let mut programs = vm.seat.iter().flat_map(|seat| seat.programs.values());
            if programs.any(|program| program.knows.contains(&process)) {
                found.insert(VmId(index));
            }
        }
        found.into_iter().collect()
    }
}
