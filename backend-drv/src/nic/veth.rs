//! For tests: two interfaces that are each other's network, each in a network namespace of its own. The namespaces
//! belong to threads, so nothing is left when a test ends, however it ends.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

/// The two ends; also threads in their namespaces.
pub(super) struct Veth {
    ends: [End; 2],
    /// The second end's thread, which is how its namespace is named.
    thread: i32,
}

/// A thread in a namespace.
struct End {
    work: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

/// What the interfaces are called in their namespaces.
pub(super) const NAMES: [&str; 2] = ["one", "two"];
/// Their addresses.
pub(super) const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

impl Veth {
    /// A pair with this MTU. Says why and returns `None` where it cannot be had.
    pub(super) fn new(mtu: usize) -> Option<Self> {
        let (Some((first, _)), Some((second, thread))) = (End::new(), End::new()) else {
            println!("skipped: no network namespaces");
            return None;
        };
        let veth = Self {
            ends: [first, second],
            thread,
        };
        if !veth.make(mtu) {
            println!("skipped: no veth pairs, or no ip command");
            return None;
        }
        Some(veth)
    }

    /// Makes the interfaces; false if that cannot be.
    pub(super) fn make(&self, mtu: usize) -> bool {
        let thread = self.thread;
        let made = format!("link add one type veth peer name two netns {thread}");
        if !self.ip(0, &made) {
            return false;
        }
        for (end, (name, address)) in NAMES.into_iter().zip(ADDRESSES).enumerate() {
            assert!(self.ip(end, &format!("link set {name} mtu {mtu} up")));
            assert!(self.ip(end, &format!("address add {address}/24 dev {name}")));
        }
        true
    }

    /// Runs `ip` in the namespace of an end.
    pub(super) fn ip(&self, end: usize, args: &str) -> bool {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        self.run(end, move || {
            let mut command = Command::new("ip");
            let status = command.args(args).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        })
    }

    /// Opens something at either end, in its namespace.
    pub(super) fn open<N: Send + 'static>(
        &self,
        open: impl Fn(usize) -> N + Send + Sync + Clone + 'static,
    ) -> (N, N) {
        let other = open.clone();
        (self.run(0, move || open(0)), self.run(1, move || other(1)))
    }

    fn run<T: Send + 'static>(&self, end: usize, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || answer.send(job()).unwrap());
        self.ends[end].work.send(job).unwrap();
        result.recv().expect("the job has panicked")
    }
}

impl End {
    /// A thread in a new namespace, and its number.
    fn new() -> Option<(Self, i32)> {
        let (work, jobs) = mpsc::channel::<Job>();
        let (ready, number) = mpsc::channel();
        thread::spawn(move || {
            let there = unshare(CloneFlags::CLONE_NEWNET);
            let number = there.ok().map(|()| gettid().as_raw());
            ready.send(number).unwrap();
            for job in jobs {
                job();
            }
        });
        let number = number.recv().ok().flatten()?;
        Some((Self { work }, number))
    }
}
