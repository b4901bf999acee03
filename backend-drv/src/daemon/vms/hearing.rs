//! What drivers in guests say.

use std::net::IpAddr;
use std::os::fd::AsFd;

use rdma_core::channel::{Down, GUEST_PROCESSES, GuestHello, GuestWelcome, MESSAGE_BYTES, Up};
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Names, Pairing};

use crate::daemon::Daemon;
use crate::doorbell;
use crate::ids::{PeerId, Process};
use crate::pairing::Tuple;
use crate::relay::Command;
use crate::vm::connections::relay_id;
use crate::vm::region::Heap;
use crate::vm::seat::Seat;
use crate::vm::switch::{FlowId, Side};
use crate::vm::{Ambiguous, VmId};

/// Messages taken from one guest before others get their turn.
const TURN: usize = 256;
/// Drivers of a device, one after the other, whose event memory is not another's.
const HEAPS_KEPT: usize = 2;

impl Daemon {
    /// Takes what a guest has said.
    pub(super) fn hear_vm(&mut self, vm: VmId) {
        for _ in 0..TURN {
            let mut bytes = [0; MESSAGE_BYTES];
            let Some(seat) = self.vms.seat_mut(vm) else {
                return;
            };
            let was_good = seat.fault.is_none();
            let Some(length) = seat.next(&mut bytes) else {
                if let Some(fault) = seat.fault
                    && was_good
                {
                    seat.offences += 1;
                    tracing::warn!(vm = vm.0, %fault, "a guest is not listened to until it starts anew");
                }
                // Room may have come for what waits.
                self.flush_vm(vm);
                return;
            };
            match Up::parse(bytes.get(..length).unwrap_or_default()) {
                Ok(message) => {
                    tracing::trace!(vm = vm.0, ?message, "from a guest");
                    self.hear_guest(vm, message);
                }
                Err(error) => {
                    if let Some(seat) = self.vms.seat_mut(vm) {
                        seat.offences += 1;
                    }
                    if self.may_log() {
                        tracing::warn!(vm = vm.0, %error, "from a guest");
                    }
                }
            }
            self.perform();
        }
        // More may be there: the bell is rung once more, behind those of others.
        if let Some(tenancy) = self.vms.tenancy(vm)
            && let Some(bell) = tenancy.group.bell(crate::vm::server::HOST, 0)
        {
            doorbell::ring(bell.as_fd());
        }
    }

    fn hear_guest(&mut self, vm: VmId, message: Up) {
        if let Up::Hello(hello) = message {
            return self.guest_begins(vm, &hello);
        }
        let welcomed = self.vms.seat(vm).is_some_and(|seat| seat.welcome.is_some());
        let good = welcomed && self.hear_program(vm, message).is_some();
        if !good && let Some(seat) = self.vms.seat_mut(vm) {
            // It may also just be late. Counted, and nothing more.
            seat.offences += 1;
        }
    }

    /// A driver has started.
    fn guest_begins(&mut self, vm: VmId, hello: &GuestHello) {
        let before = self.vms.seat(vm).and_then(|seat| seat.welcome);
        if let Some(welcome) = before {
            if welcome.nonce == hello.nonce {
                return self.tell_vm(vm, &Down::Welcome(welcome));
            }
            // Its programs may still be there, but their interrupts went with the driver before.
            self.abandon_ends(vm);
            self.guest_ended(vm);
        }
        let Some(first_process) = self.vms.take_block(vm) else {
            return self.tell_vm(vm, &Down::Refused(Reason::Quota.code()));
        };
        let Some(tenancy) = self.vms.tenancy(vm) else {
            return;
        };
        let bytes = Seat::heap_bytes(&tenancy.region, self.vms.ghosts.count(vm));
        let heap = self.take_heap(vm, bytes);
        let Some((vms, heap)) = Some(&mut self.vms).zip(heap) else {
            return self.tell_vm(vm, &Down::Refused(Reason::NoMemory.code()));
        };
        let welcome = GuestWelcome {
            nonce: hello.nonce,
            heap_at: heap.at,
            heap_bytes: heap.bytes,
            first_process,
            processes: GUEST_PROCESSES,
            machine: vm.machine(),
            reserved: 0,
        };
        let Some(found) = vms.vms.get_mut(vm.0) else {
            return;
        };
        if let (Some(seat), Some(tenancy)) = (&mut found.seat, vms.tenancies.get(found.tenancy)) {
            seat.begin(&tenancy.region);
            seat.welcome = Some(welcome);
            seat.heaps.push(heap);
        }
        tracing::info!(vm = %found.config.name, first_process, "guest");
        if let Some(keeper) = &mut self.keeper {
            self.vms.note(keeper);
        }
        self.tell_vm(vm, &Down::Welcome(welcome));
    }

    /// Memory for the events of a driver that has just started: new memory, or that of the device's driver before the
    /// last one. It is never given back while the machine has its device: a program that has slept through two drivers
    /// writes to its old words when it wakes. There that is a wake-up too many for a program of the same machine; in
    /// somebody's ring it would be bytes. Such a program loses its own wake-ups, as it does with the interrupts of its
    /// driver. A driver that takes its device along when it is killed leaves programs that wake each other still, so
    /// what those have is a ghost's until they are gone, and no other driver gets it.
    fn take_heap(&mut self, vm: VmId, bytes: u64) -> Option<Heap> {
        let found = self.vms.vms.get_mut(vm.0)?;
        let region = &mut self.vms.tenancies.get_mut(found.tenancy)?.region;
        let heaps = &mut found.seat.as_mut()?.heaps;
        if heaps.len() < HEAPS_KEPT
            && let Some(heap) = region.take_heap(bytes)
        {
            return Some(heap);
        }
        if heaps.is_empty() {
            return None;
        }
        let oldest = heaps.remove(0);
        region.clear(oldest.at, oldest.bytes).then_some(oldest)
    }

    /// `None`: the message makes no sense for this guest.
    fn hear_program(&mut self, vm: VmId, message: Up) -> Option<()> {
        match message {
            Up::Hello(_) => None,
            Up::Program { process, at } => self.guest_program(vm, Process(process), at),
            Up::ProgramGone(process) => {
                self.vms.seat(vm)?.programs.get(&Process(process))?;
                self.guest_program_left(vm, Process(process), None);
                Some(())
            }
            Up::Context(body) => {
                self.guest_context(vm, Process(body.process), body.context, body.vector)
            }
            Up::Pairing { process, message } => {
                self.guest_pairs(vm, process, message);
                Some(())
            }
            Up::Holds {
                process,
                names,
                grant,
            } => {
                let Names { own, far } = names;
                self.guest_holds(vm, Process(process), Tuple { own, far }, &grant)
            }
            Up::Told(run) => self.guest_told(vm, run),
            Up::Ended(number) => {
                let (index, ..) = self.vms.connections.end_of(number, vm)?;
                self.guest_let_go(number, index);
                Some(())
            }
            Up::Departed { connection, held } => {
                let (index, ..) = self.vms.connections.end_of(connection, vm)?;
                if self.vms.connections.get(connection)?.is_relayed() {
                    self.command(Command::Depart(relay_id(connection, index), held));
                }
                Some(())
            }
            Up::Withdraw {
                connection: number,
                may_return,
            } => {
                let (index, _, far) = self.vms.connections.end_of(number, vm)?;
                if self.vms.connections.get(number)?.is_relayed() {
                    self.command(Command::Withdraw(relay_id(number, index)));
                } else if let Some(far) = far {
                    let connection = number;
                    self.tell_vm(
                        far.vm,
                        &Down::Withdraw {
                            connection,
                            may_return,
                        },
                    );
                }
                Some(())
            }
            Up::Retracted(number) => {
                let (_, _, far) = self.vms.connections.end_of(number, vm)?;
                if let Some(far) = far
                    && !self.vms.connections.get(number)?.is_relayed()
                {
                    self.tell_vm(far.vm, &Down::Retracted(number));
                }
                Some(())
            }
            Up::Kick { process, context } => {
                let target = self.vms.vm_of_process(Process(process))?;
                let same = self.vms.vm(target)?.tenancy == self.vms.vm(vm)?.tenancy;
                same.then_some(())?;
                self.tell_vm(target, &Down::Kick { process, context });
                Some(())
            }
        }
    }

    fn guest_program(&mut self, vm: VmId, process: Process, at: u64) -> Option<()> {
        for left in self.vms.seat(vm)?.displaced(process, at) {
            self.guest_program_left(vm, left, None);
        }
        let found = self.vms.vms.get_mut(vm.0)?;
        let region = &self.vms.tenancies.get(found.tenancy)?.region;
        let seat = found.seat.as_mut()?;
        let program = seat.program(region, process, at)?;
        if std::mem::replace(&mut program.announced, true) {
            // It may have told the daemon before us, and again.
            return seat.asked.map(|_| ());
        }
        if seat.asked.is_some() {
            self.port_again(vm, process);
        }
        Some(())
    }

    fn guest_context(
        &mut self,
        vm: VmId,
        process: Process,
        context: u32,
        vector: u16,
    ) -> Option<()> {
        let found = self.vms.vms.get_mut(vm.0)?;
        let group = &self.vms.tenancies.get(found.tenancy)?.group;
        let seat = found.seat.as_mut()?;
        let member = seat.member;
        // The daemon before us may have taken it upon itself to ring, and not have done it.
        let is_owed = seat.asked.is_some();
        let program = seat.programs.get_mut(&process)?;
        let bell = group.bell(member, vector)?;
        program.vectors.insert(context, vector);
        // Its own copy, so that a port of the relay can be told from others in epoll.
        if let Ok(own) = bell.as_fd().try_clone_to_owned()
            && program.waiters.add_doorbell(context, own) | is_owed
        {
            doorbell::ring(bell.as_fd());
        }
        // Whoever knows the program already.
        let knowing = self.who_knows(process);
        for other in knowing {
            self.tell_context(other, process, context, (member, vector));
        }
        Some(())
    }

    /// What a guest says of the two ends of a connection.
    fn guest_pairs(&mut self, vm: VmId, process: u32, message: Pairing) {
        if self.vms.seat(vm).is_some_and(|seat| seat.asked.is_some()) {
            // To the daemon before us, in part, and of programs that are yet to be told of. All of it is said again.
            return;
        }
        let mut deeds = Vec::new();
        match message {
            Pairing::Offer { id, names, .. } => {
                let known = self
                    .vms
                    .seat(vm)
                    .is_some_and(|seat| seat.programs.contains_key(&Process(process)));
                let owns = self.vms.vm(vm).is_some_and(|vm| vm.owns(names.own.ip()));
                let to = if known && owns {
                    self.side_of(vm, names.far.ip())
                } else {
                    Err(Reason::Untrusted)
                };
                match to {
                    Ok(to) => {
                        let from = Side::Vm(vm);
                        self.vms
                            .switch
                            .offer(from, to, process, message, &mut deeds);
                    }
                    Err(reason) => {
                        let reason = reason.code();
                        let refusal = Pairing::Refuse { id, reason };
                        self.tell_vm(vm, &Down::Pairing(refusal));
                    }
                }
            }
            Pairing::Candidate { .. } => {
                let known = self
                    .vms
                    .seat(vm)
                    .is_some_and(|seat| seat.programs.contains_key(&Process(process)));
                if known {
                    let side = Side::Vm(vm);
                    self.vms.switch.hear(side, process, message, &mut deeds);
                }
            }
            other => self
                .vms
                .switch
                .hear(Side::Vm(vm), process, other, &mut deeds),
        }
        self.do_deeds(deeds);
    }

    /// Who has the end with this address, of a connection of a guest's program.
    fn side_of(&mut self, asking: VmId, addr: IpAddr) -> Result<Side, Reason> {
        match self.vms.owner(addr, Some(asking)) {
            Ok(Some(vm)) => return Ok(Side::Vm(vm)),
            Ok(None) => {}
            Err(Ambiguous) => return Err(Reason::Ambiguous),
        }
        if self.is_own_address(addr) {
            return Ok(Side::Local(asking));
        }
        match self.backend_for(addr) {
            Some(peer) => Ok(Side::Peer(peer)),
            None => Err(Reason::Unreachable),
        }
    }

    /// Whether programs of this host may have an address: one of its interfaces, or of a domain.
    fn is_own_address(&self, addr: IpAddr) -> bool {
        let of_domain = |domain: &crate::broker::Domain| domain.owns(addr);
        if self.options.domains.iter().any(of_domain) {
            return true;
        }
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
            return false;
        };
        interfaces
            .filter_map(|interface| interface.address)
            .any(|own| {
                let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
                let v6 = own.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip()));
                v4.or(v6) == Some(addr)
            })
    }

    /// A program of this host has said something to a guest, for which the broker takes a far backend.
    pub(in crate::daemon) fn local_pairs(&mut self, vm: VmId, message: Pairing) {
        let mut deeds = Vec::new();
        let from = Side::Local(vm);
        match message {
            Pairing::Offer { .. } => {
                self.vms
                    .switch
                    .offer(from, Side::Vm(vm), 0, message, &mut deeds);
            }
            other => self.vms.switch.hear(from, 0, other, &mut deeds),
        }
        self.do_deeds(deeds);
    }

    /// Another host's backend has said something. False: it concerns programs of this host.
    pub(in crate::daemon) fn peer_pairs(&mut self, peer: PeerId, message: Pairing) -> bool {
        let mut deeds = Vec::new();
        let from = Side::Peer(peer);
        match message {
            Pairing::Offer { id, names, .. } => match self.vms.owner(names.far.ip(), None) {
                Ok(None) => return false,
                Ok(Some(vm)) => {
                    self.vms
                        .switch
                        .offer(from, Side::Vm(vm), 0, message, &mut deeds);
                }
                Err(Ambiguous) => {
                    let reason = Reason::Ambiguous.code();
                    self.command(Command::Tell(peer, Pairing::Refuse { id, reason }));
                    return true;
                }
            },
            Pairing::Candidate { offer: id, .. }
            | Pairing::Pair { id, .. }
            | Pairing::Paired { offer: id, .. }
            | Pairing::Refuse { id, .. } => {
                if FlowId::of(id).is_none() {
                    return false;
                }
                self.vms.switch.hear(from, 0, message, &mut deeds);
            }
            Pairing::Withdraw { offer } => {
                if !self.vms.switch.has_offer(from, offer) {
                    return false;
                }
                self.vms.switch.hear(from, 0, message, &mut deeds);
            }
            Pairing::Resume { .. } | Pairing::Gone { .. } => return false,
        }
        self.do_deeds(deeds);
        true
    }

    /// The guest at a far address, for a program of this host.
    pub(in crate::daemon) fn guest_for(&self, addr: IpAddr) -> Option<PeerId> {
        match self.vms.owner(addr, None) {
            Ok(Some(vm)) => Some(vm.peer()),
            _ => None,
        }
    }
}
