//! Off the ring from outside, while both ends go on: none lost, none repeated, none out of order, and
//! nobody sleeps for ever.

use loom::sync::{Arc, Mutex};
use loom::thread;
use rdma_core::event::WaitFor;
use rdma_core::ring::RxCursor;
use rdma_core::slot::{RxSlot, RxState, TxState};
use rdma_core::sync::{Ordering, full_barrier};
use rdma_core::withdraw::{Receiving, Sending, stop_receiving, stop_sending};

use crate::rig::{Direction, Sleeper, explore, keep};
use crate::switch::SendingEnd;

/// The receiving end: what its thread and the daemon share.
#[derive(Clone)]
struct ReceivingEnd {
    direction: Direction,
    slot: &'static RxSlot,
    /// Stands for the slot's lock.
    lock: Arc<Mutex<()>>,
    receiver: Sleeper,
}

impl ReceivingEnd {
    fn armed(direction: Direction, receiver: Sleeper) -> Self {
        let slot: &RxSlot = keep(RxSlot::default());
        slot.set_state(RxState::Armed);
        direction.receiver.state.arm();
        Self {
            direction,
            slot,
            lock: Arc::new(Mutex::new(())),
            receiver,
        }
    }

    /// One look under the lock; false: nothing there.
    fn look(&self, from_kernel: &mut u64, got: &mut Vec<u8>) -> bool {
        let _guard = self.lock.lock().unwrap();
        let far = &self.direction.sender.state;
        loop {
            match self.slot.state() {
                RxState::Armed => {
                    let Some(at) = far.accept() else {
                        return self.take_from_kernel(from_kernel, got);
                    };
                    self.slot
                        .kernel_left
                        .store(at - *from_kernel, Ordering::Relaxed);
                    self.slot.set_state(RxState::Draining);
                }
                RxState::Draining => {
                    let left = self.slot.kernel_left.load(Ordering::Relaxed);
                    if left == 0 {
                        self.slot.set_state(RxState::Ring);
                        continue;
                    }
                    self.slot.kernel_left.store(left - 1, Ordering::Relaxed);
                    assert!(self.take_from_kernel(from_kernel, got), "it was counted");
                    return true;
                }
                RxState::Ring => {
                    let returned = far.returned_at();
                    let mut cursor = self.slot.cursor();
                    let taken = self.direction.take(&mut cursor, 1, got);
                    self.slot.set_cursor(&cursor);
                    if taken == 0 && returned == Some(cursor.head) {
                        self.slot.set_state(RxState::Returned);
                        continue;
                    }
                    return taken != 0;
                }
                _ => return self.take_from_kernel(from_kernel, got),
            }
        }
    }

    fn take_from_kernel(&self, from_kernel: &mut u64, got: &mut Vec<u8>) -> bool {
        let byte = self.receiver.kernel.try_recv();
        *from_kernel += u64::from(byte.is_some());
        got.extend(byte);
        byte.is_some()
    }

    /// A blocked receive looks again.
    fn has_news(&self, state: RxState) -> bool {
        let far = &self.direction.sender.state;
        let now = self.slot.state();
        now != state
            || match now {
                RxState::Armed => far.is_switched(),
                RxState::Ring => {
                    let mut cursor: RxCursor = self.slot.cursor();
                    self.direction.consumer().refresh(&mut cursor).unwrap() != 0
                        || far.returned_at() == Some(cursor.head)
                }
                _ => false,
            }
    }

    fn receive(&self, want: usize) -> Vec<u8> {
        let (mut got, mut from_kernel) = (Vec::new(), 0);
        while got.len() < want {
            if self.look(&mut from_kernel, &mut got) {
                continue;
            }
            let state = self.slot.state();
            self.receiver
                .wait_in(&self.direction.receiver.waits, WaitFor::Data, || {
                    self.has_news(state)
                });
        }
        got
    }
}

/// The daemon: takes the direction off the ring, wakes both ends, and sends for an idle sender what must be
/// sent once more.
fn withdraw(sending: &SendingEnd, receiving: &ReceivingEnd, waiting: &Sleeper) {
    let (own, far) = (
        &sending.direction.sender.state,
        &sending.direction.receiver.state,
    );
    loop {
        let sent = {
            let _guard = sending.lock.lock().unwrap();
            stop_sending(sending.slot, own)
        };
        let read = {
            let _guard = receiving.lock.lock().unwrap();
            stop_receiving(receiving.slot, far, own)
        };
        if sent != Sending::Unaccepted && read != Receiving::Engaged {
            break;
        }
    }
    full_barrier();
    let (here, there) = (sending.direction.sender, sending.direction.receiver);
    waiting.rouse_waiters(&here.waits, WaitFor::Space);
    receiving
        .receiver
        .rouse_waiters(&there.waits, WaitFor::Data);
    let _guard = sending.lock.lock().unwrap();
    if stop_sending(sending.slot, own) == Sending::Behind {
        assert!(sending.follow_the_receiver());
    }
}

/// The sender switches, sends and may be anywhere when the daemon comes.
#[test]
fn a_stream_is_taken_back_wherever_it_is() {
    explore(2, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let sending = SendingEnd::new(direction, receiver);
        let receiving = ReceivingEnd::armed(direction, receiver);
        let sender = {
            let end = sending.clone();
            thread::spawn(move || {
                end.send(1);
                end.send(2);
            })
        };
        let daemon = {
            let receiving = receiving.clone();
            thread::spawn(move || withdraw(&sending, &receiving, &Sleeper::new()))
        };
        assert_eq!(receiving.receive(2), [1, 2]);
        for thread in [sender, daemon] {
            thread.join().unwrap();
        }
    });
}

/// The sender is idle, and its last byte may still be in the ring.
#[test]
fn an_idle_sender_is_not_needed() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let sending = SendingEnd::new(direction, receiver);
        let receiving = ReceivingEnd::armed(direction, receiver);
        sending.send(1);
        let daemon = {
            let receiving = receiving.clone();
            thread::spawn(move || withdraw(&sending, &receiving, &Sleeper::new()))
        };
        assert_eq!(receiving.receive(1), [1]);
        daemon.join().unwrap();
    });
}

/// The ring is full, and nobody reads: the sender waits for space until its direction is taken off the ring.
#[test]
fn a_sender_that_waits_for_space_is_woken() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(2), Sleeper::new());
        let sending = SendingEnd::new(direction, receiver);
        let receiving = ReceivingEnd::armed(direction, receiver);
        sending.send(1);
        sending.send(2);
        assert_eq!(direction.sender.state.accept(), Some(0));
        receiving.slot.set_state(RxState::Ring);
        let waiting = Sleeper::new();
        let daemon = {
            let (sending, receiving) = (sending.clone(), receiving.clone());
            thread::spawn(move || withdraw(&sending, &receiving, &waiting))
        };
        while sending.slot.state() == TxState::Ring {
            waiting.wait_in(&direction.sender.waits, WaitFor::Space, || {
                sending.slot.state() != TxState::Ring
            });
        }
        receiver.kernel.send(3);
        daemon.join().unwrap();
        assert_eq!(receiving.receive(3), [1, 2, 3]);
    });
}
