//! One end of a connection: what a program under the library does, call by call, on the memory that it shares with
//! its backend and on the kernel's connection. Each step is as long as a lock is held there; between two steps
//! everybody else may have a turn.

mod leaving;
mod receiving;
mod sending;

use backend_drv::memory::Held;
use backend_drv::nic::Slice;
use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::handshake::Route;
use rdma_core::layout::{ConnView, EndState};
use rdma_core::link::{MILLISECOND, SECOND, Time};
use rdma_core::reason::Reason;
use rdma_core::ring::{Consumer, Producer, RxCursor, TxCursor};
use rdma_core::slot::{RxState, TxState};
use rdma_core::sync::full_barrier;

use crate::sim::random::{Random, stream};
use crate::sim::tcp::{Got, Tcp};

/// How long the backend's word is waited for, as in the library.
const PATIENCE: u64 = 2 * SECOND;
/// How long a sender that closes or leaves waits until the kernel has what was left in the ring.
const FLUSH: u64 = 2 * SECOND;
/// Between two looks at whether the backend has answered.
const NAP: u64 = MILLISECOND / 5;

/// How one direction came to its end for this program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything was sent, or read to the end of the stream.
    End,
    /// ECONNRESET or EPIPE of the kernel.
    Reset,
    /// The connection is broken.
    Broken(Reason),
    /// The program has closed.
    Closed,
}

/// The activities of a program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Thread {
    /// Sends.
    Writer = 0,
    /// Receives.
    Reader = 1,
    /// Leaves the ring.
    Mover = 2,
    /// Closes.
    Closer = 3,
}

impl Thread {
    /// All.
    pub const ALL: [Self; 4] = [Self::Writer, Self::Reader, Self::Mover, Self::Closer];
}

/// What a thread does after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another step.
    Again,
    /// Waits.
    Sleep {
        /// For a wake-up of this kind.
        what: Option<WaitFor>,
        /// For the kernel's socket.
        watch: Watch,
        /// No longer than this.
        until: Option<Time>,
    },
    /// Nothing more.
    Done,
}

/// Which events of the kernel's socket end a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// None.
    Nothing,
    /// Errors.
    Errors,
    /// Bytes, end of stream, errors.
    Readable,
    /// Room, errors.
    Writable,
}

/// Where a thread stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doze {
    /// A step will come.
    Awake,
    /// It has said that it waits, and looks once more.
    Drowsy {
        /// Somebody has woken it meanwhile.
        rung: bool,
        /// What it said.
        next: Next,
    },
    /// It waits.
    Asleep(Next),
    /// It has nothing to do.
    Idle,
}

/// What a step can touch beside its own end.
#[derive(Debug)]
pub struct Around<'a> {
    /// The time.
    pub now: Time,
    /// When what is given to the kernel now arrives.
    pub arrival: Time,
    /// The kernel's connection.
    pub tcp: &'a mut Tcp,
    /// Random numbers.
    pub random: &'a mut Random,
    /// Wakes the backend.
    pub kicks: Vec<WaitFor>,
    /// Wakes all threads of this end.
    pub rouse: bool,
    /// When the kernel has something to carry.
    pub kernel_at: Option<Time>,
    /// What must never happen.
    pub wrong: Option<String>,
    /// The socket is closed now.
    pub closed: bool,
    /// Why errors may follow.
    pub excuse: Option<&'static str>,
    /// What happened, for who looks at a failure.
    pub notes: Option<Vec<String>>,
}

impl Around<'_> {
    fn wrong(&mut self, what: impl Into<String>) {
        if self.wrong.is_none() {
            self.wrong = Some(what.into());
        }
    }

    fn kick_all(&mut self) {
        self.kicks.extend([WaitFor::Data, WaitFor::Space]);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(what());
        }
    }
}

/// The habits of a program.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Bytes that it sends in all.
    pub total: u64,
    /// Largest send and receive.
    pub chunk: u64,
    /// Longest pause between two calls, in nanoseconds.
    pub pause: u64,
    /// It shuts its sending side down after the last byte; else it only closes.
    pub shuts: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct End {
    side: usize,
    salts: [u64; 2],
    /// How it behaves.
    pub habits: Habits,
    view: Option<Held<ConnView>>,
    process: u32,
    tx_state: TxState,
    tx: TxCursor,
    resend: u64,
    /// Bytes that the program has sent.
    pub written: u64,
    rx_state: RxState,
    rx: RxCursor,
    kernel_left: u64,
    kernel_read: u64,
    /// Bytes that the program has received.
    pub read: u64,
    final_tail: Option<u64>,
    pending_reset: bool,
    over_since: Option<Time>,
    vetoed: bool,
    /// The sending side is shut down.
    pub shut: bool,
    stage: u8,
    deadline: Option<Time>,
    leaving: bool,
    /// The program has closed its socket.
    pub closed: bool,
    /// How sending ended.
    pub sent: Option<Outcome>,
    /// How receiving ended.
    pub received: Option<Outcome>,
    /// The program was killed.
    pub killed: bool,
    /// What each thread does.
    pub dozes: [Doze; 4],
    mover_stage: u8,
    mover_deadline: Time,
    /// It has left its ring by itself,
    pub has_left: bool,
    /// and was told that the far program sends what lies behind.
    pub is_told: bool,
}

impl End {
    /// A program that knows the kernel's connection only.
    pub const fn new(side: usize, process: u32, salts: [u64; 2], habits: Habits) -> Self {
        Self {
            side,
            salts,
            habits,
            view: None,
            process,
            tx_state: TxState::Kernel,
            tx: TxCursor {
                tail: 0,
                head: 0,
                base: 0,
            },
            resend: 0,
            written: 0,
            rx_state: RxState::Kernel,
            rx: RxCursor { head: 0, tail: 0 },
            kernel_left: 0,
            kernel_read: 0,
            read: 0,
            final_tail: None,
            pending_reset: false,
            over_since: None,
            vetoed: false,
            shut: false,
            stage: 0,
            deadline: None,
            leaving: false,
            closed: false,
            sent: None,
            received: None,
            killed: false,
            dozes: [Doze::Awake, Doze::Awake, Doze::Idle, Doze::Idle],
            mover_stage: 0,
            mover_deadline: Time(0),
            has_left: false,
            is_told: false,
        }
    }

    /// How the backend knows a thread.
    pub fn reference(&self, thread: Thread) -> WaitRef {
        WaitRef {
            process: self.process,
            context: thread as u16,
            bit: None,
        }
    }

    /// The memory.
    pub fn view(&self) -> Option<ConnView> {
        self.view.as_ref().map(|held| *held.get())
    }

    /// Whether it knows of the memory.
    pub const fn is_attached(&self) -> bool {
        self.view.is_some()
    }

    /// The connection has got memory. False: the program does not want it any more.
    pub fn attach(&mut self, view: Held<ConnView>, around: &mut Around<'_>) -> bool {
        if self.closed || self.view.is_some() {
            return false;
        }
        self.view = Some(view);
        if let (true, Some(view)) = (self.shut, self.view()) {
            // Who waits for the far backend's word has to hear of it.
            view.mine.state.end(0);
            around.kick_all();
        }
        true
    }

    /// No more changes between kernel and ring.
    pub fn begin_leaving(&mut self, now: Time) -> bool {
        if self.vetoed || self.closed || self.leaving {
            return false;
        }
        self.vetoed = true;
        self.leaving = true;
        self.mover_stage = 0;
        self.mover_deadline = now.plus(FLUSH);
        true
    }

    /// Whether both directions have gone back to the kernel.
    pub fn is_back(&self) -> bool {
        self.tx_state == TxState::Returned && self.rx_state == RxState::Returned
    }

    /// Whether a call has failed, after which programs close.
    pub fn has_failed(&self) -> bool {
        let failed = |outcome| !matches!(outcome, None | Some(Outcome::End));
        failed(self.sent) || failed(self.received)
    }

    /// Whether it was killed while the kernel had yet to take what its reader left in the ring.
    pub fn died_resending(&self) -> bool {
        self.killed && self.tx_state == TxState::Returning
    }

    /// Bytes that came by ring.
    pub const fn came_by_ring(&self) -> u64 {
        self.rx.head
    }

    /// One line for who looks at a hang.
    pub fn describe(&self) -> String {
        let route = self.view().map(|view| {
            let (own, far) = (&view.mine.state, &view.theirs.state);
            format!(
                "own {:?} armed {} ended {:?}; backend {:?} armed {} ended {:?} granted {} left {} broken {:?}",
                own.route(),
                own.is_armed(),
                own.ended_at(),
                far.route(),
                far.is_armed(),
                far.ended_at(),
                far.is_granted(),
                far.is_reader_gone(),
                far.broken()
            )
        });
        format!(
            "tx {:?} {:?} written {}/{} sent {:?}; rx {:?} {:?} read {} left {} received {:?}; closed {} dozes {:?}; {}",
            self.tx_state,
            self.tx,
            self.written,
            self.habits.total,
            self.sent,
            self.rx_state,
            self.rx,
            self.read,
            self.kernel_left,
            self.received,
            self.closed,
            self.dozes,
            route.unwrap_or_default()
        )
    }

    /// One step of a thread.
    pub fn step(&mut self, thread: Thread, around: &mut Around<'_>) -> Next {
        if self.closed {
            return Next::Done;
        }
        match thread {
            Thread::Writer => self.write(around),
            Thread::Reader => self.receive(around),
            Thread::Mover => self.leave_ring(around),
            Thread::Closer => self.close(around),
        }
    }

    // ---- What both directions look at ----

    fn broken(view: &ConnView) -> Option<Reason> {
        view.theirs.state.broken().or(view.mine.state.broken())
    }

    fn awaits_grant(&self, view: &ConnView) -> bool {
        self.tx_state == TxState::Ring
            && view.mine.state.route() == Route::Retracted
            && !(view.theirs.state.is_granted() && view.theirs.state.is_reader_gone())
    }

    /// It has left its ring by itself, and nobody has said whether what lies behind is sent again.
    fn is_unconfirmed(&self, view: &ConnView) -> bool {
        self.has_left
            && !view.theirs.state.is_confirmed()
            && view.theirs.state.ended_at() != Some(self.rx.head)
    }

    fn has_to_wait(&self, view: &ConnView) -> bool {
        let far = &view.theirs.state;
        self.awaits_grant(view) && !far.is_closed() && far.broken().is_none()
    }

    fn is_wanted(&self, view: &ConnView) -> bool {
        self.tx_state == TxState::Ring
            && view.theirs.state.is_reader_gone()
            && view.mine.state.retracted_at(&view.theirs.state).is_some()
            && !self.awaits_grant(view)
    }

    fn break_with(&self, view: &ConnView, reason: Reason, around: &mut Around<'_>) {
        if view.mine.state.broken().is_none() {
            view.mine.state.break_with(reason);
            around.kick_all();
            around.rouse = true;
            around.note(|| format!("breaks: {reason:?}"));
        }
    }

    /// Whether a sleeper has to look again.
    pub fn is_ready(&self, thread: Thread, next: Next, tcp: &Tcp, now: Time) -> bool {
        let Next::Sleep { watch, until, .. } = next else {
            return true;
        };
        if self.closed || until.is_some_and(|at| at <= now) || self.kernel_reports(watch, tcp) {
            return true;
        }
        let Some(view) = self.view() else {
            return false;
        };
        match thread {
            Thread::Writer if self.tx_state == TxState::Ring => {
                let mut cursor = self.tx;
                let ring = Producer::of(&view);
                let left = self.habits.total - self.written;
                let enough = left.min(ring.capacity() / 4);
                let free = ring.refresh(&mut cursor);
                free.map_or(true, |free| free >= enough && left > 0)
                    || view.theirs.state.is_reader_gone()
                    || Self::broken(&view).is_some()
                    || self.pending_reset
            }
            Thread::Reader => {
                self.is_wanted(&view)
                    || match self.rx_state {
                        RxState::Armed => {
                            let far = &view.theirs.state;
                            let word = far.ended_at().is_some() || Self::broken(&view).is_some();
                            far.is_switched() || self.over_since.is_some() && word
                        }
                        RxState::Ring => {
                            let far = &view.theirs.state;
                            Consumer::of(&view).moved(&self.rx)
                                || far.ended_at() == Some(self.rx.head)
                                || far.returned_at() == Some(self.rx.head)
                                || self.final_tail.is_some()
                                || Self::broken(&view).is_some()
                        }
                        RxState::Returned => {
                            let is_told = !self.is_unconfirmed(&view);
                            let is_over = self.has_left && tcp.is_over(self.side);
                            is_over && (is_told || Self::broken(&view).is_some())
                        }
                        _ => false,
                    }
            }
            _ => false,
        }
    }

    /// Whether the kernel ends a wait.
    pub fn kernel_reports(&self, watch: Watch, tcp: &Tcp) -> bool {
        match watch {
            Watch::Nothing => false,
            Watch::Errors => tcp.is_reset(self.side),
            Watch::Readable => tcp.readable(self.side) > 0 || tcp.is_over(self.side),
            Watch::Writable => tcp.is_writable(self.side),
        }
    }
}

/// A length as memory has it.
pub fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
