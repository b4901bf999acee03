//! What the models are built from: a connection in loom's memory, a doorbell, a sleeping thread.

#![expect(unsafe_code, reason = "memory that lives as long as a model")]

use std::cell::RefCell;
use std::collections::VecDeque;

use loom::sync::{Condvar, Mutex};
use rdma_core::event::{EventContext, WaitFor, WaitRef};
use rdma_core::layout::{EndWaits, EndWords, ProducerWords};
use rdma_core::mem::RingBytes;
use rdma_core::ring::{Consumer, Producer, RxCursor, TxCursor};
use rdma_core::sync::{UnsafeCell, full_barrier};

/// Explores `run` with at most `preemptions` preemptions (LOOM_MAX_PREEMPTIONS overrides).
pub(crate) fn explore(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        OWNED.with_borrow_mut(Vec::clear);
        run();
    });
}

/// Gives `value` to the model that runs: it lives until the next one starts.
pub(crate) fn keep<T: 'static>(value: T) -> &'static T {
    let value = Owned(Box::into_raw(Box::new(value)));
    // SAFETY: freshly allocated; freed by `explore` when the threads of this model are gone.
    let reference = unsafe { &*value.0 };
    OWNED.with_borrow_mut(|owned| owned.push(Box::new(value)));
    reference
}

/// A `Box` that does not mind being aliased.
struct Owned<T>(*mut T);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw` in `keep`.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

trait Anything {}
impl<T> Anything for Owned<T> {}

thread_local! {
    /// loom runs the threads of a model on one thread of the system.
    static OWNED: RefCell<Vec<Box<dyn Anything>>> = const { RefCell::new(Vec::new()) };
}

/// One direction of a connection: end 0 sends, end 1 receives.
#[derive(Clone, Copy)]
pub(crate) struct Direction {
    /// What the sender writes.
    pub(crate) sender: &'static EndWords,
    /// What the receiver writes.
    pub(crate) receiver: &'static EndWords,
    words: &'static ProducerWords,
    data: RingBytes,
}

impl Direction {
    /// A direction whose ring holds `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self::between(
            keep(EndWords::default()),
            keep(EndWords::default()),
            capacity,
        )
    }

    /// A direction between ends that have their words already.
    pub(crate) fn between(
        sender: &'static EndWords,
        receiver: &'static EndWords,
        capacity: usize,
    ) -> Self {
        let bytes: Vec<UnsafeCell<u8>> = (0..capacity).map(|_| UnsafeCell::new(0)).collect();
        Self {
            sender,
            receiver,
            words: keep(ProducerWords::default()),
            data: RingBytes::for_loom(keep(bytes)),
        }
    }

    /// The sender's side of the ring.
    pub(crate) fn producer(&self) -> Producer {
        Producer::new(self.words, &self.receiver.consumer, self.data)
    }

    /// The receiver's side of the ring.
    pub(crate) fn consumer(&self) -> Consumer {
        Consumer::new(self.words, &self.receiver.consumer, self.data)
    }

    /// Writes what fits of `bytes` and publishes it; the barrier and the look at the waiters are left
    /// to the caller.
    pub(crate) fn put(&self, cursor: &mut TxCursor, bytes: &[u8]) -> usize {
        let producer = self.producer();
        let put = producer.write_slice(cursor, bytes).unwrap();
        producer.publish(cursor, 0, 0);
        put
    }

    /// Reads at most `most` bytes into `out` and gives their space back; the barrier and the look at
    /// the waiters are left to the caller.
    pub(crate) fn take(&self, cursor: &mut RxCursor, most: usize, out: &mut Vec<u8>) -> usize {
        let consumer = self.consumer();
        let mut buffer = [0; 8];
        let got = consumer.read_slice(cursor, &mut buffer[..most]).unwrap();
        consumer.publish(cursor);
        out.extend(&buffer[..got]);
        got
    }

    /// The sender's own look at the next byte of its ring; false at the tail.
    pub(crate) fn look(&self, cursor: &mut RxCursor, out: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 1];
        let got = self.consumer().read_slice(cursor, &mut buffer).unwrap();
        out.extend(&buffer[..got]);
        got != 0
    }
}

/// What a sleeping thread watches: the kernel socket and the doorbell.
pub(crate) struct Kernel {
    inner: Mutex<KernelInner>,
    changed: Condvar,
}

#[derive(Default)]
struct KernelInner {
    queue: VecDeque<u8>,
    sent: u64,
    rung: bool,
}

impl Kernel {
    /// An empty socket and a silent doorbell.
    pub(crate) fn new() -> &'static Self {
        keep(Self {
            inner: Mutex::new(KernelInner::default()),
            changed: Condvar::new(),
        })
    }

    /// send(2).
    pub(crate) fn send(&self, byte: u8) {
        let mut inner = self.inner.lock().unwrap();
        inner.queue.push_back(byte);
        inner.sent += 1;
        self.changed.notify_all();
    }

    /// The number of bytes ever sent, as TCP_INFO and SIOCOUTQ tell it.
    pub(crate) fn sent(&self) -> u64 {
        self.inner.lock().unwrap().sent
    }

    /// recv(2) of one byte with MSG_DONTWAIT.
    pub(crate) fn try_recv(&self) -> Option<u8> {
        self.inner.lock().unwrap().queue.pop_front()
    }

    /// recv(2) of one byte; looks at nothing but the socket.
    pub(crate) fn recv(&self) -> u8 {
        let mut inner = self.inner.lock().unwrap();
        loop {
            if let Some(byte) = inner.queue.pop_front() {
                return byte;
            }
            inner = self.changed.wait(inner).unwrap();
        }
    }

    /// write(2) to the eventfd.
    pub(crate) fn ring(&self) {
        self.inner.lock().unwrap().rung = true;
        self.changed.notify_all();
    }

    /// poll(2) on socket and eventfd, then read(2) of the eventfd.
    pub(crate) fn wait(&self) {
        let mut inner = self.inner.lock().unwrap();
        while !inner.rung && inner.queue.is_empty() {
            inner = self.changed.wait(inner).unwrap();
        }
        inner.rung = false;
    }

    /// read(2) of the eventfd.
    pub(crate) fn silence(&self) {
        self.inner.lock().unwrap().rung = false;
    }
}

/// A waiting context and what its thread sleeps on.
#[derive(Clone, Copy)]
pub(crate) struct Sleeper {
    /// The context.
    pub(crate) context: &'static EventContext,
    /// Socket and doorbell.
    pub(crate) kernel: &'static Kernel,
}

impl Sleeper {
    /// A context whose thread is awake.
    pub(crate) fn new() -> Self {
        Self {
            context: keep(EventContext::standalone()),
            kernel: Kernel::new(),
        }
    }

    /// A blocking wait: sleeps until something happens, unless `ready`.
    pub(crate) fn sleep_unless(&self, ready: impl FnOnce() -> bool) {
        self.context.prepare_sleep();
        if !ready() {
            self.kernel.wait();
        }
        if self.context.finish_sleep() {
            self.kernel.silence();
        }
    }

    /// A blocking wait of a thread that enters its reference for the length of the wait.
    pub(crate) fn wait_in(&self, waits: &EndWaits, what: WaitFor, ready: impl FnOnce() -> bool) {
        assert!(waits.enter(what, THREAD));
        self.sleep_unless(ready);
        assert!(waits.leave(what, THREAD));
    }

    /// Rings the doorbell if the thread sleeps.
    pub(crate) fn rouse(&self) {
        if self.context.take_sleeper() {
            self.kernel.ring();
        }
    }

    /// What the far end does after a barrier: one load, and if somebody waits, the rest.
    pub(crate) fn rouse_waiters(&self, waits: &EndWaits, what: WaitFor) {
        if waits.any(what) {
            waits.each(what, |who| {
                if let Some(bit) = who.bit {
                    self.context.post(bit);
                }
                self.rouse();
            });
        }
    }

    /// What the far end does after `publish`.
    pub(crate) fn notify(&self, waits: &EndWaits, what: WaitFor) {
        full_barrier();
        self.rouse_waiters(waits, what);
    }
}

/// The reference of a thread in a blocking call.
pub(crate) const THREAD: WaitRef = WaitRef {
    process: 1,
    context: 0,
    bit: None,
};
