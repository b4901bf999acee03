//! From the kernel to the ring at an exact byte: none lost, none repeated, none out of order.

use loom::sync::{Arc, Mutex};
use loom::thread;
use rdma_core::event::WaitFor;
use rdma_core::ring::RxCursor;
use rdma_core::slot::{RxSlot, RxState, TxSlot, TxState};

use crate::rig::{Direction, Sleeper, explore, keep};

/// The sending end: what its threads share.
#[derive(Clone)]
pub(crate) struct SendingEnd {
    pub(crate) direction: Direction,
    pub(crate) slot: &'static TxSlot,
    /// Stands for the slot's lock, which has models of its own.
    pub(crate) lock: Arc<Mutex<()>>,
    pub(crate) receiver: Sleeper,
}

impl SendingEnd {
    pub(crate) fn new(direction: Direction, receiver: Sleeper) -> Self {
        Self {
            direction,
            slot: keep(TxSlot::default()),
            lock: Arc::new(Mutex::new(())),
            receiver,
        }
    }

    /// A hooked send of one byte.
    pub(crate) fn send(&self, byte: u8) {
        if self.direction.receiver.state.is_armed() {
            self.try_switch();
        }
        loop {
            match self.slot.state() {
                state @ (TxState::Kernel | TxState::Returned) => {
                    self.slot.inside.enter();
                    let still = self.slot.state() == state;
                    if still {
                        self.receiver.kernel.send(byte);
                    }
                    self.slot.inside.leave();
                    if still {
                        return;
                    }
                }
                // Whoever switches holds the lock.
                TxState::Switching => drop(self.lock.lock().unwrap()),
                TxState::Ring => {
                    if self.send_by_ring(byte) {
                        return;
                    }
                }
                TxState::Returning | TxState::Done => unreachable!(),
            }
        }
    }

    /// False: the far end has left the ring, and what it left went to the kernel.
    fn send_by_ring(&self, byte: u8) -> bool {
        let guard = self.lock.lock().unwrap();
        if self.slot.state() != TxState::Ring || self.follow_the_receiver() {
            return false;
        }
        let mut cursor = self.slot.cursor();
        assert_eq!(self.direction.put(&mut cursor, &[byte]), 1);
        self.slot.set_cursor(&cursor);
        drop(guard);
        self.receiver
            .notify(&self.direction.receiver.waits, WaitFor::Data);
        true
    }

    /// Under the lock: sends what the far end left in the ring, if it has left it.
    pub(crate) fn follow_the_receiver(&self) -> bool {
        let (own, far) = (&self.direction.sender.state, &self.direction.receiver.state);
        let Some(at) = own.retracted_at(far) else {
            return false;
        };
        let mut cursor = RxCursor { head: at, tail: at };
        let mut left = Vec::new();
        while self.direction.look(&mut cursor, &mut left) {}
        for byte in left {
            self.receiver.kernel.send(byte);
        }
        self.slot.set_state(TxState::Returned);
        true
    }

    fn try_switch(&self) {
        let _guard = self.lock.lock().unwrap();
        if self.slot.state() != TxState::Kernel {
            return;
        }
        self.slot.set_state(TxState::Switching);
        if self.slot.inside.nobody() {
            let at = self.receiver.kernel.sent();
            if !self.direction.sender.state.switch(at) {
                self.slot.set_state(TxState::Returned);
                return;
            }
            self.slot.set_state(TxState::Ring);
            // No barrier here: `switch` has it.
            self.receiver
                .rouse_waiters(&self.direction.receiver.waits, WaitFor::Data);
        } else {
            self.slot.set_state(TxState::Kernel);
        }
    }
}

/// The receiving end's only thread: reads `want` bytes from the kernel and the ring.
fn receive(direction: Direction, receiver: Sleeper, want: usize) -> Vec<u8> {
    let (consumer, far) = (direction.consumer(), &direction.sender.state);
    let mut cursor = RxCursor::default();
    let (mut got, mut from_kernel) = (Vec::new(), 0);
    let mut at = None;
    while got.len() < want {
        at = at.or_else(|| far.accept());
        let progress = if at == Some(from_kernel) {
            direction.take(&mut cursor, 4, &mut got) != 0
        } else if let Some(byte) = receiver.kernel.try_recv() {
            from_kernel += 1;
            got.push(byte);
            true
        } else {
            false
        };
        if !progress {
            receiver.wait_in(&direction.receiver.waits, WaitFor::Data, || {
                at.is_none() && far.is_switched() || consumer.refresh(&mut cursor).unwrap() != 0
            });
        }
    }
    assert_eq!(
        at.or_else(|| far.accept()).unwrap_or(from_kernel),
        from_kernel
    );
    assert_eq!(receiver.kernel.try_recv(), None, "beyond the switch");
    got
}

#[test]
fn a_stream_is_switched_at_an_exact_byte() {
    explore(2, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        let sender = thread::spawn(move || {
            end.send(1);
            end.send(2);
        });
        direction.receiver.state.arm();
        assert_eq!(receive(direction, receiver, 2), [1, 2]);
        sender.join().unwrap();
    });
}

/// One thread switches while another is somewhere between its look at the state and the kernel.
#[test]
fn a_switch_counts_every_writer_inside_the_kernel() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        let writers = [&[1u8, 2][..], &[11]].map(|bytes| {
            let end = end.clone();
            thread::spawn(move || bytes.iter().for_each(|byte| end.send(*byte)))
        });
        // Not before: whoever looks after this tries to switch, and is no danger.
        direction.receiver.state.arm();
        for writer in writers {
            writer.join().unwrap();
        }
        // Where the stream is cut is the point here; that a waiting receiver is woken is shown above.
        let got = receive(direction, receiver, 3);
        let ours = |tens| got.iter().copied().filter(move |byte| byte / 10 == tens);
        assert!(ours(0).eq([1, 2]), "{got:?}");
        assert!(ours(1).eq([11]), "{got:?}");
    });
}

/// A receiver that sleeps until the switch itself is woken by it, before any byte follows.
#[test]
fn a_switch_alone_wakes_the_receiver() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        let sender = thread::spawn(move || end.try_switch());
        while !direction.sender.state.is_switched() {
            receiver.wait_in(&direction.receiver.waits, WaitFor::Data, || {
                direction.sender.state.is_switched()
            });
        }
        assert_eq!(direction.sender.state.accept(), Some(0));
        sender.join().unwrap();
    });
}

/// A thread of the receiving end that entered the kernel before the end armed would never look at the
/// ring: either it is seen and the end does not arm, or it sees the new state and does not enter.
#[test]
fn an_end_does_not_arm_while_a_reader_is_inside_the_kernel() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        let slot: &RxSlot = keep(RxSlot::default());
        let reader = thread::spawn(move || {
            slot.inside.enter();
            if slot.state() == RxState::Kernel {
                let byte = receiver.kernel.recv();
                slot.inside.leave();
                assert_eq!(byte, 1);
            } else {
                slot.inside.leave();
                assert_eq!(receive(direction, receiver, 1), [1]);
            }
        });
        let sender = thread::spawn(move || end.send(1));
        slot.set_state(RxState::Armed);
        if slot.inside.nobody() {
            direction.receiver.state.arm();
        } else {
            slot.set_state(RxState::Kernel);
        }
        for thread in [reader, sender] {
            thread.join().unwrap();
        }
    });
}
