//! From the ring back to the kernel at an exact byte, whoever wants it.

use loom::thread;
use rdma_core::event::WaitFor;
use rdma_core::ring::RxCursor;
use rdma_core::slot::TxState;

use crate::rig::{Direction, Sleeper, explore};
use crate::switch::SendingEnd;

/// The sender leaves: gives the stream back, or, if nobody has seen its switch, takes that back.
fn leave_sending(end: &SendingEnd) {
    let guard = end.lock.lock().unwrap();
    if end.slot.state() == TxState::Ring {
        let state = &end.direction.sender.state;
        let tail = end.slot.cursor().tail;
        if state.give_back(tail) || !state.cancel() && state.give_back(tail) {
            end.slot.set_state(TxState::Returned);
        } else {
            assert!(end.follow_the_receiver());
        }
    }
    drop(guard);
    let waits = &end.direction.receiver.waits;
    end.receiver.rouse_waiters(waits, WaitFor::Data);
}

/// Where the receiver reads.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Kernel,
    Ring,
    KernelAgain,
}

struct ReceivingEnd {
    direction: Direction,
    receiver: Sleeper,
    from: From,
    switch_at: Option<u64>,
    from_kernel: u64,
    cursor: RxCursor,
    got: Vec<u8>,
}

impl ReceivingEnd {
    fn new(direction: Direction, receiver: Sleeper) -> Self {
        Self {
            direction,
            receiver,
            from: From::Kernel,
            switch_at: None,
            from_kernel: 0,
            cursor: RxCursor::default(),
            got: Vec::new(),
        }
    }

    fn receive(&mut self, want: usize) {
        let far = &self.direction.sender.state;
        while self.got.len() < want {
            if self.from == From::Kernel {
                self.switch_at = self.switch_at.or_else(|| far.accept());
                if self.switch_at == Some(self.from_kernel) {
                    self.from = From::Ring;
                }
            }
            if self.from == From::Ring {
                let returned = far.returned_at();
                if self.direction.take(&mut self.cursor, 1, &mut self.got) != 0 {
                    continue;
                }
                if returned == Some(self.cursor.head) {
                    self.from = From::KernelAgain;
                }
            }
            if self.from != From::Ring
                && let Some(byte) = self.receiver.kernel.try_recv()
            {
                self.from_kernel += 1;
                self.got.push(byte);
                continue;
            }
            let (from, cursor, known) = (self.from, self.cursor, self.switch_at.is_some());
            let consumer = self.direction.consumer();
            self.receiver
                .wait_in(&self.direction.receiver.waits, WaitFor::Data, || {
                    let mut cursor = cursor;
                    match from {
                        From::Kernel => !known && far.is_switched(),
                        From::Ring => {
                            far.returned_at() == Some(cursor.head)
                                || consumer.refresh(&mut cursor).unwrap() != 0
                        }
                        From::KernelAgain => false,
                    }
                });
        }
    }

    /// Leaves the ring where it stands. False: the sender has gone back before, at a later byte.
    fn leave_ring(&mut self) -> bool {
        let (own, far) = (&self.direction.receiver.state, &self.direction.sender.state);
        match own.retract(far, self.cursor.head) {
            Ok(()) => self.from = From::KernelAgain,
            Err(at) if at == self.cursor.head => self.from = From::KernelAgain,
            Err(_) => return false,
        }
        true
    }
}

#[test]
fn a_sender_goes_back_at_an_exact_byte() {
    explore(2, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        let sender = thread::spawn(move || {
            end.send(1);
            leave_sending(&end);
            end.send(2);
        });
        let mut receiving = ReceivingEnd::new(direction, receiver);
        direction.receiver.state.arm();
        receiving.receive(2);
        assert_eq!(receiving.got, [1, 2]);
        sender.join().unwrap();
    });
}

#[test]
fn a_receiver_leaves_at_an_exact_byte() {
    explore(2, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        direction.receiver.state.arm();
        let sender = thread::spawn(move || {
            end.send(1);
            end.send(2);
            // What every later call of the program looks at.
            loop {
                let guard = end.lock.lock().unwrap();
                if end.slot.state() != TxState::Ring || end.follow_the_receiver() {
                    break;
                }
                drop(guard);
                thread::yield_now();
            }
        });
        let mut receiving = ReceivingEnd::new(direction, receiver);
        receiving.receive(1);
        assert!(receiving.leave_ring());
        receiving.receive(2);
        assert_eq!(receiving.got, [1, 2]);
        sender.join().unwrap();
    });
}

/// Both want to leave at the same time: either the sender goes back first, and the receiver knows that
/// bytes behind its place will not come again, or the receiver leaves first, and the sender sends them.
#[test]
fn only_one_of_two_who_leave_prevails() {
    explore(3, || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let end = SendingEnd::new(direction, receiver);
        direction.receiver.state.arm();
        end.send(1);
        assert_eq!(direction.sender.state.accept(), Some(0));
        let sender = thread::spawn(move || {
            leave_sending(&end);
            end.send(2);
        });
        let mut receiving = ReceivingEnd::new(direction, receiver);
        receiving.from = From::Ring;
        if receiving.leave_ring() {
            receiving.receive(2);
            assert_eq!(receiving.got, [1, 2]);
        } else {
            receiving.receive(2);
            assert_eq!(
                receiving.got,
                [1, 2],
                "the ring up to the return, then the kernel"
            );
        }
        sender.join().unwrap();
    });
}
