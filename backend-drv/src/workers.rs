//! Work that a client could make last for ever.
//!
//! Reading TCP's counts waits for whoever is inside a send call on that socket, punching a hole waits
//! for whoever writes to that memory, and a doorbell may be full: each can be held up by a page that
//! a file system in user space never delivers. So such work is done by other threads, and no user has
//! more than a few of them at a time; what is stuck is stuck for its own user.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma_core::layout::End;

use crate::broker::Proof;
use crate::carving::Place;
use crate::daemon::Task;
use crate::doorbell;
use crate::ids::{ConnectionId, RegistrationId};
use crate::pairing::{Comparison, Sample, Stream, Tuple, same_stream};
use crate::rescue::{Rescue, Rescued};
use crate::shared::ConnectionArena;
use crate::sock_diag::{Namespace, SockDiag};
use crate::trim::{Trim, Trimmed};
use crate::withdrawal::{Withdrawal, Withdrawn};

/// Jobs of one user that are worked on at a time.
const LANE: usize = 8;
/// The same for jobs that may wait for a while, beside the others.
const SLOW_LANE: usize = 2;
/// Jobs of one user that wait, where jobs may be left out.
const OPTIONAL_MAX: usize = 1024;
/// Threads; they are made when they are needed.
const THREADS_MAX: usize = 64;
/// Comparisons before two ends are called different.
const COMPARISONS: usize = 2;

/// One end to be compared.
#[derive(Clone, Debug)]
pub struct Side {
    /// The registration.
    pub id: RegistrationId,
    /// Where to ask.
    pub namespace: Namespace,
    /// For what.
    pub tuple: Tuple,
    /// Which socket it has to be.
    pub proof: Proof,
}

/// Something to do.
#[derive(Debug)]
pub enum Job {
    /// See whether two registrations are the ends of one stream.
    Compare {
        /// One end.
        left: Side,
        /// The other.
        right: Side,
    },
    /// See what the kernel says of one end.
    Sample(Side),
    /// Take all pages of a connection.
    Allocate {
        /// The connection.
        connection: ConnectionId,
        /// Its memory.
        arena: Arc<ConnectionArena>,
        /// Where.
        place: Place,
    },
    /// Zero the memory of a connection.
    Clear {
        /// Its memory.
        arena: Arc<ConnectionArena>,
        /// Where.
        place: Place,
    },
    /// Let go of an arena: unmapping gigabytes takes time.
    Discard(Arc<ConnectionArena>),
    /// Ring a doorbell.
    Ring(Arc<OwnedFd>),
    /// Take a connection off the ring.
    Withdraw(Task, Withdrawal),
    /// Send for an idle sender what its far end left in the ring.
    Rescue(RegistrationId, ConnectionId, Rescue),
    /// Give back the memory of a ring that is empty.
    Trim(ConnectionId, Trim),
    /// Be held up.
    #[cfg(test)]
    Stick(Receiver<()>),
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// See [`Job::Compare`].
    Compared(RegistrationId, RegistrationId, Comparison),
    /// See [`Job::Sample`]; `None`: it is not established any more.
    Sampled(RegistrationId, Option<Stream>),
    /// See [`Job::Allocate`].
    Allocated(ConnectionId, io::Result<()>),
    /// See [`Job::Clear`].
    Cleared(Place, io::Result<()>),
    /// See [`Job::Withdraw`].
    Withdrawn(Task, Withdrawn),
    /// See [`Job::Rescue`].
    Rescued(RegistrationId, ConnectionId, Rescued),
    /// See [`Job::Trim`].
    Trimmed {
        /// The connection.
        connection: ConnectionId,
        /// Whose ring.
        end: End,
        /// The relay fills it, and waits.
        by_relay: bool,
        /// What came of it.
        result: Trimmed,
    },
    /// Nothing worth telling.
    Done,
}

/// The threads.
#[derive(Debug)]
pub struct Workers {
    lanes: HashMap<LaneId, Lane>,
    jobs: Sender<(LaneId, Job)>,
    queue: Arc<Mutex<Receiver<(LaneId, Job)>>>,
    results: Sender<(LaneId, Outcome)>,
    finished: Receiver<(LaneId, Outcome)>,
    bell: Arc<EventFd>,
    threads: usize,
    running: usize,
}

/// A user, and whether the jobs are slow ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct LaneId {
    uid: u32,
    slow: bool,
}

/// One user's jobs.
#[derive(Debug, Default)]
struct Lane {
    running: usize,
    waiting: VecDeque<Job>,
}

impl Workers {
    /// No threads yet.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let (jobs, queue) = channel();
        let (results, finished) = channel();
        Ok(Self {
            lanes: HashMap::new(),
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            results,
            finished,
            bell: Arc::new(EventFd::from_flags(flags)?),
            threads: 0,
            running: 0,
        })
    }

    /// Has `job` done on behalf of `uid`.
    pub fn submit(&mut self, uid: u32, job: Job) {
        self.enqueue(LaneId { uid, slow: false }, LANE, job);
    }

    /// As [`Workers::submit`], but left out if `uid` keeps its threads from getting anywhere: false.
    pub fn submit_optional(&mut self, uid: u32, job: Job) -> bool {
        let lane = LaneId { uid, slow: false };
        let room = self.waiting(lane) < OPTIONAL_MAX;
        if room {
            self.enqueue(lane, LANE, job);
        }
        room
    }

    /// As [`Workers::submit`], for a job that may wait for a while and must not keep others waiting. False:
    /// too many wait already.
    #[must_use]
    pub fn submit_slow(&mut self, uid: u32, job: Job) -> bool {
        let lane = LaneId { uid, slow: true };
        let room = self.waiting(lane) < OPTIONAL_MAX;
        if room {
            self.enqueue(lane, SLOW_LANE, job);
        }
        room
    }

    fn waiting(&self, lane: LaneId) -> usize {
        self.lanes.get(&lane).map_or(0, |lane| lane.waiting.len())
    }

    fn enqueue(&mut self, id: LaneId, width: usize, job: Job) {
        let lane = self.lanes.entry(id).or_default();
        if lane.running < width {
            lane.running += 1;
            self.start(id, job);
        } else {
            lane.waiting.push_back(job);
        }
    }

    /// Readable when [`Workers::next_result`] has something.
    pub fn bell(&self) -> impl AsFd + '_ {
        self.bell.as_ref()
    }

    /// Silences the bell; call before taking results.
    pub fn silence(&self) {
        let _ = self.bell.read();
    }

    /// A job that is done. Its user's next one is started.
    pub fn next_result(&mut self) -> Option<Outcome> {
        let (id, outcome) = self.finished.try_recv().ok()?;
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(&id) {
            if let Some(job) = lane.waiting.pop_front() {
                self.start(id, job);
            } else {
                lane.running = lane.running.saturating_sub(1);
                if lane.running == 0 {
                    self.lanes.remove(&id);
                }
            }
        }
        Some(outcome)
    }

    fn start(&mut self, id: LaneId, job: Job) {
        self.running += 1;
        if self.running > self.threads && self.threads < THREADS_MAX {
            self.add_thread();
        }
        // Cannot fail: we hold the other end ourselves.
        let _ = self.jobs.send((id, job));
    }

    fn add_thread(&mut self) {
        let queue = Arc::clone(&self.queue);
        let results = self.results.clone();
        let bell = Arc::clone(&self.bell);
        let spawned = thread::Builder::new()
            .name("viaduct-work".to_owned())
            .spawn(move || work(&queue, &results, &bell));
        match spawned {
            Ok(_) => self.threads += 1,
            Err(error) => tracing::warn!(%error, threads = self.threads, "no thread to be had"),
        }
    }
}

fn work(
    queue: &Mutex<Receiver<(LaneId, Job)>>,
    results: &Sender<(LaneId, Outcome)>,
    bell: &EventFd,
) {
    let mut diag = SockDiag::new();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((id, job)) = next else {
            return;
        };
        let outcome = perform(&mut diag, job);
        if results.send((id, outcome)).is_err() {
            return;
        }
        let _ = bell.write(1);
    }
}

fn perform(diag: &mut SockDiag, job: Job) -> Outcome {
    match job {
        Job::Compare { left, right } => {
            let result = compare(diag, &left, &right);
            Outcome::Compared(left.id, right.id, result)
        }
        Job::Sample(side) => {
            let stream = sample(diag, &side).and_then(|sample| sample.stream);
            Outcome::Sampled(side.id, stream)
        }
        Job::Allocate {
            connection,
            arena,
            place,
        } => Outcome::Allocated(connection, arena.allocate(place.offset, place.ring_log2)),
        Job::Clear { arena, place } => {
            Outcome::Cleared(place, arena.clear(place.offset, place.ring_log2))
        }
        Job::Discard(arena) => {
            drop(arena);
            Outcome::Done
        }
        Job::Ring(bell) => {
            doorbell::ring(bell);
            Outcome::Done
        }
        Job::Withdraw(task, withdrawal) => Outcome::Withdrawn(task, withdrawal.perform()),
        Job::Rescue(id, at, rescue) => Outcome::Rescued(id, at, rescue.perform()),
        Job::Trim(connection, trim) => Outcome::Trimmed {
            connection,
            end: trim.end,
            by_relay: trim.sender.is_none(),
            result: trim.perform(),
        },
        #[cfg(test)]
        Job::Stick(end) => {
            let _ = end.recv();
            Outcome::Done
        }
    }
}

fn compare(diag: &mut SockDiag, left: &Side, right: &Side) -> Comparison {
    for _ in 0..COMPARISONS {
        let before = sample(diag, right);
        let middle = sample(diag, left);
        let after = sample(diag, right);
        let streams = (
            before.and_then(|sample| sample.stream),
            middle.and_then(|sample| sample.stream),
            after.and_then(|sample| sample.stream),
        );
        match streams {
            (Some(before), Some(middle), Some(after)) => {
                if same_stream(&before, &middle, &after) {
                    return Comparison::Match;
                }
                tracing::debug!(?before, ?middle, ?after, "mismatch");
            }
            (before, middle, after) => {
                return Comparison::Gone {
                    left: middle.is_none(),
                    right: before.is_none() || after.is_none(),
                };
            }
        }
    }
    Comparison::Mismatch
}

/// One end as it is now; `None` if it is not the established connection of its socket any more.
fn sample(diag: &mut SockDiag, side: &Side) -> Option<Sample> {
    diag.sample(&side.namespace, &side.tuple, Some(side.proof.cookie))
        .ok()?
        .filter(|found| found.inode == side.proof.inode && found.state == Sample::ESTABLISHED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// Waits for one result.
    fn result(workers: &mut Workers) -> Outcome {
        loop {
            if let Some(outcome) = workers.next_result() {
                return outcome;
            }
            let mut fds = [PollFd::new(workers.bell.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(30_000u16)), Ok(1));
            workers.silence();
        }
    }

    #[test]
    fn a_user_who_is_stuck_holds_up_nobody_else() {
        let mut workers = Workers::new().unwrap();
        let mut ends = Vec::new();
        for _ in 0..100 {
            let (end, stuck) = channel();
            workers.submit(1, Job::Stick(stuck));
            ends.push(end);
        }
        assert_eq!(workers.threads, LANE);
        let memory = || Arc::new(ConnectionArena::create(4096).unwrap());
        for uid in 2..100 {
            workers.submit(uid, Job::Discard(memory()));
            assert!(matches!(result(&mut workers), Outcome::Done));
        }
        assert_eq!(workers.lanes.len(), 1);
        drop(ends);
        for _ in 0..100 {
            result(&mut workers);
        }
        assert!(workers.lanes.is_empty());
        assert_eq!(workers.running, 0);
    }

    #[test]
    fn what_may_be_left_out_is_left_out_when_too_much_waits() {
        let mut workers = Workers::new().unwrap();
        let mut ends = Vec::new();
        for _ in 0..LANE {
            let (end, stuck) = channel();
            workers.submit(1, Job::Stick(stuck));
            ends.push(end);
        }
        let bell = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        for _ in 0..OPTIONAL_MAX + 10 {
            workers.submit_optional(1, Job::Ring(Arc::clone(&bell)));
        }
        drop(ends);
        for _ in 0..LANE + OPTIONAL_MAX {
            result(&mut workers);
        }
        assert!(workers.lanes.is_empty());
    }
}
