//! Two machines of one tenant after a restart of the daemon.

use std::os::fd::OwnedFd;

use rdma_core::channel::{GUEST_PROCESS_MIN, GUEST_PROCESSES, GuestWelcome, HEAP_START};
use rdma_core::event::EVENT_BYTES;
use rdma_core::layout::conn_bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::config::VmConfig;
use crate::vm::Tenancy;
use crate::vm::region::{Heap, Region};
use crate::vm::server::Group;

const BYTES: u64 = 256 << 20;
const A: VmId = VmId(0);
const B: VmId = VmId(1);
const RUN: u64 = 77;

/// Two machines of one tenant after a restart of the daemon, with a program each, and what keeps them.
struct Rig {
    vms: Vms,
    programs: [Process; 2],
    /// Memory of a connection that both had.
    grant: Grant,
    _rest: (Vec<OwnedFd>, tempfile::TempDir),
}

fn config(directory: &std::path::Path, name: &str) -> VmConfig {
    VmConfig {
        name: name.to_owned(),
        socket: directory.join(name),
        socket_mode: 0o600,
        tenant: Some("blue".to_owned()),
        addresses: Vec::new(),
        memory_bytes: BYTES,
        memory_path: None,
        vectors: 4,
        weight: 1,
        rate_limit: None,
        shared_network: false,
    }
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let configs = ["a", "b"].map(|name| config(directory.path(), name));
    let mut vms = Vms::open(&configs, 1).unwrap();
    // What the daemon before has given out.
    let old = &mut vms.tenancies[0].region;
    let heaps = [(); 2].map(|()| old.take_heap(2 * EVENT_BYTES as u64).unwrap());
    let programs = [0, 1].map(|index| Process(GUEST_PROCESS_MIN + index * GUEST_PROCESSES + 3));
    let couple = crate::carving::Couple::of(programs[0], programs[1]);
    let (place, arena) = old.place(couple, 16).unwrap();
    let grant = Grant {
        registration: 5,
        connection: 9,
        at: arena.start(),
        arena_bytes: place.arena_bytes,
        offset: place.offset,
        arena: place.arena.0,
        ring_log2: 16,
        peer: programs[1].0,
        end: 0,
        relayed: 0,
        reserved: [0; 2],
    };
    let (mark, memory) = (old.mark(), old.memory().try_clone().unwrap());
    let mut region = Region::restore(0, memory, BYTES, mark).unwrap();
    let memory = Arc::clone(region.memory());
    let mut group = Group::new(Arc::clone(&memory), 4).unwrap();
    let mut rest = Vec::new();
    let unheard = Some([A, B].into());
    for (index, heap) in heaps.into_iter().enumerate() {
        assert!(region.inherit_heap(heap));
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, its) = pair.unwrap();
        rest.push(its);
        let (lent, lease) = region.lend();
        let member = group.join(ours, &lent).unwrap();
        let mut seat = Seat::new(&region, member, lease).unwrap();
        seat.welcome = Some(welcome(index, heap));
        seat.heaps.push(heap);
        seat.asked = Some(RUN);
        let program = seat.program(&region, programs[index], heap.at).unwrap();
        program.announced = true;
        vms.vms[index].seat = Some(seat);
        vms.give_block(u32::try_from(index).unwrap(), VmId(index));
    }
    vms.tenancies[0] = Tenancy {
        region,
        group,
        unheard,
    };
    Rig {
        vms,
        programs,
        grant,
        _rest: (rest, directory),
    }
}

fn welcome(index: usize, heap: Heap) -> GuestWelcome {
    GuestWelcome {
        nonce: 1,
        heap_at: heap.at,
        heap_bytes: heap.bytes,
        first_process: GUEST_PROCESS_MIN + u32::try_from(index).unwrap() * GUEST_PROCESSES,
        processes: GUEST_PROCESSES,
        machine: 1,
        reserved: 0,
    }
}

impl Rig {
    fn named(&mut self, vm: VmId, grant: &Grant) -> Named {
        let tuple = Tuple {
            own: ([10, 0, 0, 1], 1).into(),
            far: ([10, 0, 0, 2], 2).into(),
        };
        self.vms.named(vm, self.programs[vm.0], tuple, grant)
    }

    /// The same memory as its other end has it.
    fn far(&self) -> Grant {
        Grant {
            peer: self.programs[0].0,
            end: 1,
            ..self.grant
        }
    }

    fn free(&self) -> u64 {
        self.vms.tenancies[0].region.free()
    }
}

#[test]
fn a_direct_connection_is_known_again_and_freed_once() {
    for speaks in [[A, B], [B, A]] {
        let mut rig = rig();
        for vm in speaks {
            let grant = if vm == A { rig.grant } else { rig.far() };
            assert_eq!(rig.named(vm, &grant), Named::Known);
            assert_eq!(rig.named(vm, &grant), Named::Known, "once");
            assert_eq!(rig.vms.connections.count(), (1, 0));
        }
        let number = rig.grant.connection;
        let connection = rig.vms.connections.get(number).unwrap();
        let ends: Vec<_> = connection.guests().map(|(_, end)| end.process).collect();
        assert_eq!(ends, rig.programs);
        for vm in speaks {
            assert!(rig.vms.told(vm).0.is_empty());
        }
        assert_eq!(rig.vms.connections.let_go(number, 0), None);
        let freed = rig.vms.connections.let_go(number, 1).unwrap();
        let before = rig.free();
        rig.vms.tenancies[0].region.release(&freed.end.place, true);
        assert_eq!(rig.free(), before + conn_bytes(1 << 16) as u64);
        rig.vms.tenancies[0].region.release(&freed.end.place, true);
        assert_eq!(rig.free(), before + conn_bytes(1 << 16) as u64, "once");
    }
}

#[test]
fn what_a_far_end_does_not_name_it_has_let_go_of() {
    let mut rig = rig();
    rig.vms.told(B);
    assert_eq!(rig.named(A, &rig.grant.clone()), Named::Known);
    let number = rig.grant.connection;
    assert!(rig.vms.connections.let_go(number, 0).is_some());
    // The other way round it is heard of at the end.
    let mut rig = self::rig();
    assert_eq!(rig.named(A, &rig.grant.clone()), Named::Known);
    assert_eq!(rig.vms.told(B).0, [(number, 1)].into());
}

#[test]
fn who_has_gone_is_named_by_its_far_end() {
    let mut rig = rig();
    let lease = rig.vms.seat(B).unwrap().lease;
    rig.vms.depart(B);
    assert_eq!(rig.named(A, &rig.grant.clone()), Named::Left(B, 1, lease));
    let mut rig = self::rig();
    let seat = rig.vms.seat_mut(B).unwrap();
    let lease = seat.lease;
    seat.welcome.as_mut().unwrap().first_process += 7 * GUEST_PROCESSES;
    let abandoned = Named::Abandoned(B, 1, lease);
    assert_eq!(rig.named(A, &rig.grant.clone()), abandoned);
}

#[test]
fn lies_get_nobody_any_memory() {
    let mut rig = rig();
    let (good, before) = (rig.grant, rig.free());
    let lies = [
        Grant {
            at: HEAP_START,
            ..good
        },
        Grant {
            at: BYTES - good.arena_bytes,
            ..good
        },
        Grant { at: !4095, ..good },
        Grant {
            arena: good.arena + 64,
            ..good
        },
        Grant {
            arena: good.arena + (1 << 20),
            ..good
        },
        Grant { arena: 3, ..good },
        Grant {
            peer: rig.programs[0].0,
            ..good
        },
        Grant { peer: 7, ..good },
    ];
    for lie in lies {
        assert_eq!(rig.named(A, &lie), Named::Known, "{lie:?}");
        assert_eq!(rig.vms.connections.count(), (0, 0), "{lie:?}");
    }
    for lie in lies {
        let lie = Grant { relayed: 1, ..lie };
        assert_eq!(rig.named(A, &lie), Named::Lost, "{lie:?}");
        assert_eq!(rig.vms.connections.count(), (0, 0), "{lie:?}");
    }
    assert_eq!(rig.named(A, &good), Named::Known);
    assert_eq!(rig.vms.connections.count(), (1, 0));
    let again = Grant {
        connection: 10,
        ..good
    };
    rig.named(A, &again);
    assert_eq!(rig.vms.connections.count(), (1, 0), "the same memory");
    assert_eq!(rig.free(), before);
}

#[test]
fn what_nobody_serves_is_freed_when_it_is_let_go_of() {
    let mut rig = rig();
    let port = rig.vms.seat(A).unwrap().port_number(rig.programs[0]);
    let grant = Grant {
        peer: port.unwrap().0,
        relayed: 1,
        ..rig.grant
    };
    assert_eq!(rig.named(A, &grant), Named::Lost);
    assert_eq!(rig.vms.connections.count(), (0, 1));
    assert!(rig.vms.connections.let_go(grant.connection, 0).is_some());
    assert_eq!(rig.vms.connections.count(), (0, 0));
}

#[test]
fn the_rest_is_free_when_all_have_spoken_and_nobody_else_has_it() {
    let mut rig = rig();
    rig.named(A, &rig.grant.clone());
    let before = rig.free();
    let stranger = rig.vms.tenancies[0].region.lend();
    rig.vms.told(A);
    assert!(!rig.vms.inherit_rest(0));
    rig.vms.told(B);
    assert!(rig.vms.inherit_rest(0), "somebody else may have it");
    assert_eq!(rig.free(), before);
    drop(stranger);
    assert!(!rig.vms.inherit_rest(0));
    let held = 4 * EVENT_BYTES + conn_bytes(1 << 16);
    assert_eq!(rig.free(), BYTES - HEAP_START - held as u64);
    // Whoever comes now gets none of what is in use.
    let mut taken = Vec::new();
    while let Some(heap) = rig.vms.tenancies[0].region.take_heap(1 << 20) {
        taken.push(heap.at);
    }
    let grant = rig.grant;
    let range = grant.at + grant.offset..grant.at + grant.offset + conn_bytes(1 << 16) as u64;
    assert!(
        taken
            .iter()
            .all(|at| at + (1 << 20) <= range.start || *at >= range.end)
    );
}
