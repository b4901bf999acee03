//! What the far end is told when a program ends, becomes another, or goes away quietly.

use backend_drv::memory::Mapping;
use rdma_core::control::Message;
use rdma_core::event::{CONTEXT_STRIDE, EVENT_BYTES, EventContext, WaitFor, WaitRef};
use rdma_core::layout::{EndState, EndWaits, end_offset};
use rdma_core::reason::Reason;

use crate::client::{
    Connection, Couple, Daemon, Program, eventfd, is_readable, registration, retry,
};
use crate::helper::{Helper, Start};

/// A program of ours paired with one in another process, and our view of the connection.
struct Survivor {
    program: Program,
    helper: Helper,
    memory: Connection,
    end: usize,
}

fn survivor(daemon: &Daemon) -> Survivor {
    let mut helper = Helper::start(&daemon.socket, &Start::default()).unwrap();
    let mut program = daemon.program();
    program.register(0, &helper.server, &registration(&helper.server, 2));
    let (paired, arena) = program.expect_pair();
    assert_eq!(helper.outcome(), None);
    let memory = Connection::of(&paired, &arena.unwrap());
    Survivor {
        program,
        helper,
        memory,
        end: paired.end.into(),
    }
}

impl Survivor {
    fn far_state(&self) -> &EndState {
        self.memory.get(end_offset(1 - self.end)).unwrap()
    }

    fn own_waits(&self) -> &EndWaits {
        self.memory.get(end_offset(self.end) + 128).unwrap()
    }
}

#[test]
fn a_killed_program_is_gone_and_its_far_end_is_woken() {
    let daemon = Daemon::start();
    let mut survivor = survivor(&daemon);
    let bell = eventfd();
    survivor.program.add_context(3, &bell);
    survivor.program.sync();
    let events = Mapping::of_sealed(&survivor.program.events, EVENT_BYTES).unwrap();
    let context: &EventContext = events.get(3 * CONTEXT_STRIDE).unwrap();
    let who = WaitRef {
        process: survivor.program.welcome.process,
        context: 3,
        bit: Some(77),
    };
    assert!(survivor.own_waits().enter(WaitFor::Data, who));
    context.prepare_sleep();
    assert!(!survivor.far_state().is_reader_gone());
    survivor.helper.kill();
    retry(|| is_readable(&bell).then_some(()));
    assert!(survivor.far_state().is_reader_gone());
    assert_eq!(survivor.far_state().broken(), None);
    assert!(context.finish_sleep(), "the sleeper was taken");
    let mut pending = Vec::new();
    context.take_pending(|bit| pending.push(bit));
    assert_eq!(pending, [77]);
    assert!(matches!(survivor.program.receive().0, Message::PeerGone(_)));
}

#[test]
fn a_wait_reference_to_nobody_does_no_harm() {
    let daemon = Daemon::start();
    let mut survivor = survivor(&daemon);
    for process in [0, 999_999, WaitRef::PROCESS_MAX] {
        let who = WaitRef {
            process,
            context: u16::MAX,
            bit: Some(u16::MAX),
        };
        survivor.own_waits().enter(WaitFor::Space, who);
    }
    survivor.helper.kill();
    retry(|| survivor.far_state().is_reader_gone().then_some(()));
    survivor.program.sync();
}

#[test]
fn a_program_that_becomes_another_breaks_its_connection() {
    let daemon = Daemon::start();
    let mut survivor = survivor(&daemon);
    survivor.helper.exec();
    let broken = retry(|| survivor.far_state().broken());
    assert_eq!(broken, Reason::Exec);
    assert!(!survivor.far_state().is_reader_gone());
}

#[test]
fn a_control_socket_that_closes_while_the_connection_lives_breaks_it() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    let state = couple.map();
    drop(couple.one);
    let gone: &EndState = state.get(end_offset(0)).unwrap();
    assert_eq!(retry(|| gone.broken()), Reason::Exec);
}

#[test]
fn a_far_end_that_had_let_go_is_left_alone() {
    let daemon = Daemon::start();
    let mut survivor = survivor(&daemon);
    survivor.program.unregister(0);
    survivor.program.sync();
    survivor.helper.kill();
    assert!(matches!(survivor.program.receive().0, Message::PeerGone(_)));
    // The memory goes as well: nobody is left who could use it.
    retry(|| {
        let status = daemon.report(rdma_core::control::Query::STATUS, 0);
        (status["daemon"]["arenas"] == 0).then_some(())
    });
}

#[test]
fn what_a_program_held_is_free_when_it_has_gone() {
    let mut daemon = Daemon::start();
    let idle = retry(|| Some(daemon.descriptors()));
    for _ in 0..20 {
        let mut couple = Couple::new(&daemon);
        couple.one.add_context(1, eventfd());
        couple.one.sync();
        couple.again(1);
    }
    // A few threads and their sockets stay.
    retry(|| (daemon.descriptors() <= idle + 16).then_some(()));
    assert!(daemon.is_running());
}
