//! Connections of guests that the relay serves: with guests of other tenants, with programs of this host, and with
//! programs of other hosts.
//!
//! Each guest's end is in memory of its guest's region, which nobody else maps but the backend.

use std::os::fd::AsFd;
use std::sync::Arc;

use rdma_core::channel::Down;
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use super::connecting::tuple_of;
use crate::broker::{Half, Proof};
use crate::carving::Couple;
use crate::daemon::Daemon;
use crate::ids::{ConnectionId, Process};
use crate::keeper::record::Origin;
use crate::relay::{Command, Opening};
use crate::vm::connections::{Connection, Freed, GuestEnd, Holder, of_relay, relay_id};
use crate::vm::seat::Port;
use crate::vm::server::HOST;
use crate::vm::switch::{Flow, FlowEnd, FlowId, Side};
use crate::vm::{GUEST_UID, VmId};
use crate::wake::Waiters;

impl Daemon {
    /// Makes the memory of the ends that are in guests, and has the relay serve the connection as soon as the other
    /// end is ready. `place`: for a leader behind a link where that takes bytes.
    pub(super) fn connect_relayed(
        &mut self,
        number: FlowId,
        flow: &Flow,
        ring_log2: u32,
        place: FarPlace,
    ) -> Result<(), Reason> {
        self.start_relay().ok_or(Reason::NoMemory)?;
        let leader = self.holder(&flow.leader, number, ring_log2, Some(place))?;
        let follower = match self.holder(&flow.follower, number, ring_log2, None) {
            Ok(follower) => follower,
            Err(reason) => {
                if let Some(Holder::Guest(end)) = leader {
                    let keepers = [None; 2];
                    self.recycle_guest(&Freed { end, keepers });
                }
                return Err(reason);
            }
        };
        // A local follower has its memory only after it has heard PAIR.
        let waits = follower.is_none();
        let ends = [
            leader.ok_or(Reason::NotEstablished)?,
            follower.unwrap_or(Holder::Peer(crate::ids::PeerId(0), None)),
        ];
        let found = Connection {
            flow: number,
            tuple: tuple_of(flow),
            ends,
            ring_log2,
        };
        let connection = self.vms.connections.insert(found);
        // What the relay writes down of it is of no use without.
        if let Some(keeper) = &mut self.keeper {
            self.vms.note(keeper);
        }
        self.vms.local_halves.remove(&number);
        for (_, end) in found.guests() {
            if let Err(reason) = self.prepare_guest_end(connection, &end) {
                self.not_served(connection, &found, false, reason);
                return Err(reason);
            }
        }
        if waits {
            let message = Pairing::Pair {
                id: flow.follower.id,
                offer: number.0,
                ring_log2: u8::try_from(ring_log2).unwrap_or(0),
                place: FarPlace::NOWHERE,
            };
            if let Side::Local(vm) = flow.follower.side {
                self.broker.heard(vm.peer(), message);
            }
            return Ok(());
        }
        if self.serve_flow(connection, flow).is_none() {
            self.not_served(connection, &found, false, Reason::NoMemory);
            return Err(Reason::NoMemory);
        }
        Ok(())
    }

    /// The end of a flow; `None`: a local follower, which will come.
    fn holder(
        &mut self,
        end: &FlowEnd,
        number: FlowId,
        ring_log2: u32,
        leads: Option<FarPlace>,
    ) -> Result<Option<Holder>, Reason> {
        match end.side {
            Side::Vm(vm) => {
                let process = Process(end.process);
                let port = self.guest_port(vm, process).ok_or(Reason::NoMemory)?;
                let tenancy = self.vms.tenancy_mut(vm).ok_or(Reason::NotEstablished)?;
                let (place, _) = tenancy
                    .region
                    .place(Couple::of(process, port), ring_log2)
                    .ok_or(Reason::NoMemory)?;
                Ok(Some(Holder::Guest(GuestEnd {
                    vm,
                    process,
                    registration: end.id,
                    place,
                    end: End::Zero,
                    far: port,
                    granted: false,
                    used: true,
                    relayed: false,
                    kept: None,
                })))
            }
            Side::Peer(peer) => Ok(Some(Holder::Peer(peer, leads))),
            Side::Local(_) => {
                let half = self.vms.local_halves.get(&number).copied();
                match (half, leads) {
                    (Some(half), _) => Ok(Some(Holder::Local(half))),
                    (None, Some(_)) => Err(Reason::NotEstablished),
                    (None, None) => Ok(None),
                }
            }
        }
    }

    fn prepare_guest_end(&self, connection: u64, end: &GuestEnd) -> Result<(), Reason> {
        let arena = self
            .vms
            .tenancy(end.vm)
            .and_then(|tenancy| tenancy.region.arena(end.place.arena))
            .ok_or(Reason::NoMemory)?;
        arena
            .prepare(end.place.offset, end.place.ring_log2, connection)
            .map_err(|_| Reason::NoMemory)
    }

    /// The number by which a guest's program knows the relay; made at its first relayed connection.
    fn guest_port(&mut self, vm: VmId, process: Process) -> Option<Process> {
        let number = self.vms.seat(vm)?.port_number(process)?;
        if self.vms.seat(vm)?.programs.get(&process)?.port.is_some() {
            return Some(number);
        }
        let tenancy = self.vms.tenancy_mut(vm)?;
        let vector = tenancy.group.vector_of_port(process);
        let bell = tenancy.group.bell(HOST, vector)?;
        let bell = bell.as_fd().try_clone_to_owned().ok()?;
        let (at, events) = tenancy.region.events()?;
        let waiters = Arc::new(Waiters::new(number, GUEST_UID, events));
        let seat = self.vms.seat_mut(vm)?;
        let program = seat.programs.get_mut(&process)?;
        program.port = Some(Port {
            waiters: Arc::clone(&waiters),
            at,
        });
        let waited = Arc::clone(&program.waiters);
        self.command(Command::AddPort {
            program: waited,
            port: waiters,
            bell: Arc::new(bell),
        });
        self.introduce_guest(vm, process, number, Some(at));
        self.tell_context(vm, number, 0, (HOST, vector));
        Some(number)
    }

    /// Has the relay serve a connection both of whose ends are ready.
    fn serve_flow(&mut self, number: u64, flow: &Flow) -> Option<()> {
        let found = self.vms.connections.get(number).copied()?;
        match found.ends {
            [Holder::Peer(peer, far), Holder::Guest(end)] => {
                let opening = self.guest_opening(number, 1, &end, flow)?;
                self.command(Command::Open { opening, peer, far });
            }
            [Holder::Guest(end), Holder::Peer(peer, _)] => {
                let opening = self.guest_opening(number, 0, &end, flow)?;
                let far = None;
                self.command(Command::Open { opening, peer, far });
            }
            [one, other] => {
                let one = self.opening_of(number, 0, &one, flow)?;
                let other = self.opening_of(number, 1, &other, flow)?;
                self.command(Command::OpenHere(Box::new([one, other])));
            }
        }
        self.vms.connections.serve(number);
        Some(())
    }

    fn opening_of(
        &mut self,
        number: u64,
        index: usize,
        holder: &Holder,
        flow: &Flow,
    ) -> Option<Opening> {
        match holder {
            Holder::Guest(end) => self.guest_opening(number, index, end, flow),
            Holder::Local(half) => self.opening(half),
            Holder::Peer(..) | Holder::Unknown => None,
        }
    }

    fn guest_opening(
        &self,
        number: u64,
        index: usize,
        end: &GuestEnd,
        flow: &Flow,
    ) -> Option<Opening> {
        let leader = tuple_of(flow);
        let tuple = if index == 0 {
            leader
        } else {
            leader.mirrored()
        };
        let vm = self.vms.vm(end.vm)?;
        let domain = vm.domain;
        let arena = self.vms.tenancy(end.vm)?.region.arena(end.place.arena)?;
        Some(Opening {
            connection: relay_id(number, index),
            arena: Arc::new(arena),
            place: end.place,
            end: end.end,
            process: end.process,
            domain,
            origin: Origin {
                tuple,
                netns: 0,
                uid: GUEST_UID,
                proof: Proof {
                    inode: 0,
                    cookie: 0,
                },
            },
        })
    }

    /// The broker wants an end of this host's relayed, whose far end is in a guest.
    pub(in crate::daemon) fn open_to_guest(&mut self, half: &Half) {
        let connection = half.connection;
        let id = self.broker.far_id(connection).and_then(FlowId::of);
        let flow = id.and_then(|id| Some((id, *self.vms.switch.flow(id)?)));
        let opened = match flow {
            // The guest follows: it will get its memory when it hears of this one.
            Some((id, flow)) if matches!(flow.leader.side, Side::Local(_)) => {
                self.vms.local_halves.insert(id, *half);
                return self.broker.relay_opened(connection, Ok(FarPlace::NOWHERE));
            }
            // The guest leads, and has its memory.
            Some((id, flow)) => self.vms.connections.of_flow(id).and_then(|number| {
                self.vms.connections.follow(number, *half);
                self.serve_flow(number, &flow)
            }),
            // Withdrawn while the memory was made.
            None => None,
        };
        if opened.is_none() {
            self.broker.relay_closed(connection);
            self.broker.relay_opened(connection, Err(Reason::NoMemory));
        }
    }

    /// The relay serves a connection of guests, or does not. False: none of ours.
    pub(in crate::daemon) fn guest_opened(
        &mut self,
        ids: &[ConnectionId],
        result: Result<FarPlace, Reason>,
    ) -> bool {
        let Some((number, _)) = ids.iter().find_map(|id| of_relay(*id)) else {
            return false;
        };
        let Some(found) = self.vms.connections.get(number).copied() else {
            return true;
        };
        let flow = self.vms.switch.flow(found.flow).copied();
        let (place, flow) = match (result, flow) {
            (Ok(place), Some(flow)) => (place, flow),
            (Ok(_), None) => {
                // Undone meanwhile. The relay has yet to hear of that, and says when it lets go of the memory.
                if let [_, Holder::Local(half)] = found.ends {
                    let reason = Reason::NotEstablished;
                    self.broker.relay_opened(half.connection, Err(reason));
                }
                return true;
            }
            (Err(reason), flow) => {
                self.not_served(number, &found, flow.is_some(), reason);
                return true;
            }
        };
        let ring_log2 = u8::try_from(found.ring_log2).unwrap_or(0);
        match found.ends {
            [_, Holder::Guest(_)] => {
                if let Some(Connection {
                    ends: [Holder::Peer(_, own), _],
                    ..
                }) = self.vms.connections.get_mut(number)
                {
                    // From now on: where we take bytes, to be told when the guest is ready.
                    *own = Some(place);
                }
                self.grant(number, 1);
            }
            [_, Holder::Local(half)] => self
                .broker
                .relay_opened(half.connection, Ok(FarPlace::NOWHERE)),
            [_, Holder::Peer(peer, _)] => {
                let pair = Pairing::Pair {
                    id: flow.follower.id,
                    offer: found.flow.0,
                    ring_log2,
                    place,
                };
                self.command(Command::Tell(peer, pair));
            }
            [_, Holder::Unknown] => {}
        }
        true
    }

    /// The relay cannot serve a connection, or nobody wants it any more.
    fn not_served(&mut self, number: u64, found: &Connection, refuse: bool, reason: Reason) {
        for holder in found.ends {
            if let Holder::Local(half) = holder {
                self.broker.relay_closed(half.connection);
                self.broker.relay_opened(half.connection, Err(reason));
            }
        }
        for (index, _) in found.guests() {
            self.guest_relay_left(number, index);
            self.guest_let_go(number, index);
        }
        if refuse {
            let mut deeds = Vec::new();
            self.vms.switch.refuse(found.flow, reason, &mut deeds);
            self.do_deeds(deeds);
        }
    }

    /// The follower is ready: so is the leader.
    pub(super) fn complete_relayed(&mut self, flow: &Flow, number: u64, place: FarPlace) {
        let Some(found) = self.vms.connections.get(number).copied() else {
            return;
        };
        match found.ends[0] {
            Holder::Guest(_) => {
                if matches!(found.ends[1], Holder::Peer(..)) {
                    self.command(Command::Join(relay_id(number, 0), place));
                }
                self.grant(number, 0);
            }
            Holder::Local(_) => {
                if let Side::Local(vm) = flow.leader.side {
                    let paired = Pairing::Paired {
                        offer: flow.leader.id,
                        place: FarPlace::NOWHERE,
                    };
                    self.broker.heard(vm.peer(), paired);
                }
            }
            Holder::Peer(peer, own) => {
                let paired = Pairing::Paired {
                    offer: flow.leader.id,
                    place: own.unwrap_or(FarPlace::NOWHERE),
                };
                self.command(Command::Tell(peer, paired));
            }
            Holder::Unknown => {}
        }
    }

    /// The relay uses the memory of a guest's end no more.
    pub(in crate::daemon) fn guest_relay_left(&mut self, number: u64, index: usize) {
        if let Some(freed) = self.vms.connections.relay_left(number, index) {
            self.recycle_guest(&freed);
        }
    }

    /// A sender in a guest has to send by the kernel again what is left of its ring.
    pub(in crate::daemon) fn guest_granted(&mut self, number: u64, index: usize) {
        self.tell_guest_at(number, index, &Down::Retracted(number));
    }

    /// A program in a guest may have vanished.
    pub(in crate::daemon) fn guest_doubted(&mut self, number: u64, index: usize) {
        self.tell_guest_at(number, index, &Down::Examine(number));
    }

    /// Says something to the guest at one end of a connection.
    fn tell_guest_at(&mut self, number: u64, index: usize, message: &Down) {
        let end = self
            .vms
            .connections
            .get(number)
            .and_then(|found| found.guests().find(|(other, _)| *other == index));
        if let Some((_, end)) = end {
            self.tell_vm(end.vm, message);
        }
    }
}
