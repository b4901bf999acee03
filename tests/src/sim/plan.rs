//! What happens in the simulation of one seed.

use backend_drv::relay::Share;
use rdma_core::layout::RING_LOG2_MIN;
use rdma_core::link::{MILLISECOND, Psk, SECOND, Time};

use super::host::LinkHabits;
use super::path::Path;
use super::program::Habits;
use super::random::Random;

/// Something that is done to programs, backends or the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// The two programs of a connection register it.
    Pair(usize),
    /// A program wants its connection back in the kernel.
    Leave(usize, usize),
    /// A program closes at once.
    Close(usize, usize),
    /// A program is killed.
    Kill(usize, usize),
    /// A backend is told to take a connection off the ring.
    Withdraw(usize, usize),
    /// A backend is told to put nothing into a ring that is empty, whose memory is given back within so many nanoseconds.
    KeepEmpty(usize, usize, u64),
    /// A backend is told to take everything off the rings.
    Drain(usize),
    /// A backend is killed, and started again.
    Restart(usize),
    /// The same, in the middle of what it does next.
    RestartInside(usize),
    /// Nothing gets from one host to another, and back, for so many nanoseconds.
    Cut(usize, usize, u64),
    /// Paths between two hosts carry frames up to this size only.
    Narrow(usize, usize, usize),
    /// Faults stop.
    Calm,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Joint {
    /// The hosts of its two ends.
    pub hosts: [usize; 2],
    /// The programs.
    pub habits: [Habits; 2],
    /// Nanoseconds that the kernel's segments take.
    pub delay: u64,
    /// When the programs begin.
    pub start: Time,
    /// The domains of the two ends.
    pub domains: [u32; 2],
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of hosts.
    pub hosts: usize,
    /// Paths, by sender and receiver.
    pub paths: Vec<Vec<Path>>,
    /// All links.
    pub links: LinkHabits,
    /// All connections.
    pub joints: Vec<Joint>,
    /// What is done when.
    pub acts: Vec<(Time, Act)>,
    /// When faults have stopped for good.
    pub calm_at: Time,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// What domains are entitled to.
    pub shares: Vec<Share>,
    /// Backends that are restarted go on with what the one before had.
    pub keepers: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(random: &mut Random) -> Self {
        let hosts = usize::try_from(2 + random.below(8).saturating_sub(5)).unwrap_or(2);
        let bad = random.per_mille(700);
        let path = |random: &mut Random| {
            if bad {
                Path::bad(random)
            } else {
                Path::clean(random.up_to(MILLISECOND))
            }
        };
        let mut paths = vec![Vec::new(); hosts];
        for row in &mut paths {
            for _ in 0..hosts {
                row.push(path(random));
            }
        }
        let sealed = random.one_in(16);
        let key = sealed
            .then(|| Psk::new(b"a key that only the simulation knows"))
            .flatten();
        let links = LinkHabits {
            idle_timeout: 8 * SECOND,
            hello_tries: if random.one_in(2) { 0 } else { 4 },
            key,
            max_frame: 1200 + usize::try_from(random.below(7800)).unwrap_or(0),
        };
        let long = random.one_in(4);
        let most = if long { 20 * SECOND } else { 2 * SECOND };
        let calm_at = Time(50 * MILLISECOND + random.below(most));
        let size = match (sealed, random.one_in(16)) {
            (true, _) => 20_000,
            (false, false) => 200_000,
            (false, true) => 1_000_000,
        };
        let count = 1 + usize::try_from(random.up_to(5)).unwrap_or(0);
        let mut joints = Vec::new();
        let mut acts = vec![(calm_at, Act::Calm)];
        for number in 0..count {
            let joint = joint(random, hosts, size, calm_at);
            // The programs are connected first.
            let paired = joint.start.plus(random.up_to(20 * MILLISECOND));
            acts.push((paired, Act::Pair(number)));
            for _ in 0..random.below(4) {
                let left = calm_at.0.saturating_sub(paired.0);
                let at = paired.plus(if random.one_in(2) {
                    random.up_to(left)
                } else {
                    random.below(left)
                });
                let side = usize::from(random.one_in(2));
                let act = match random.below(8) {
                    0..3 => Act::Leave(number, side),
                    3..5 => Act::Withdraw(number, side),
                    5 | 6 => Act::Close(number, side),
                    _ => Act::Kill(number, side),
                };
                acts.push((at, act));
            }
            joints.push(joint);
        }
        for _ in 0..random.below(4) {
            let at = Time(random.below(calm_at.0));
            let one = usize::try_from(random.below(hosts as u64)).unwrap_or(0);
            let other =
                (one + 1 + usize::try_from(random.below(hosts as u64 - 1)).unwrap_or(0)) % hosts;
            let act = match random.below(8) {
                0 => Act::Drain(one),
                1 | 2 => Act::Restart(one),
                3..6 => Act::Cut(one, other, random.below(most / 2)),
                _ => Act::Narrow(
                    one,
                    other,
                    1200 + usize::try_from(random.below(4000)).unwrap_or(0),
                ),
            };
            acts.push((at, act));
        }
        let mut plan = Self {
            hosts,
            paths,
            links,
            joints,
            acts,
            calm_at,
            ring_log2: RING_LOG2_MIN,
            shares: vec![Share {
                weight: 1,
                rate: None,
            }],
            keepers: false,
        };
        // What was thought of later leaves the rest of a seed as it was.
        plan.add(&mut Random::new(random.clone().next()), size);
        plan
    }

    /// Keepers and more restarts, domains, and connections within one host.
    fn add(&mut self, random: &mut Random, size: u64) {
        let most = self.calm_at.0;
        self.keepers = random.one_in(2);
        if self.keepers {
            for _ in 0..random.below(4) {
                let host = usize::try_from(random.below(self.hosts as u64)).unwrap_or(0);
                let act = if random.one_in(2) {
                    Act::RestartInside(host)
                } else {
                    Act::Restart(host)
                };
                self.acts.push((Time(random.below(most)), act));
            }
        }
        if random.one_in(3) {
            self.shares = (0..1 + random.below(3))
                .map(|_| Share {
                    weight: u32::try_from(1 + random.up_to(1000)).unwrap_or(1),
                    rate: random.one_in(2).then(|| 500_000 + random.up_to(20_000_000)),
                })
                .collect();
        }
        if random.one_in(2) {
            for _ in 0..1 + random.below(3) {
                let number = self.joints.len();
                let mut joint = joint(random, self.hosts, size, self.calm_at);
                joint.hosts[1] = joint.hosts[0];
                let paired = joint.start.plus(random.up_to(20 * MILLISECOND));
                self.acts.push((paired, Act::Pair(number)));
                for _ in 0..random.below(3) {
                    let left = most.saturating_sub(paired.0);
                    let at = paired.plus(random.up_to(left));
                    let side = usize::from(random.one_in(2));
                    let act = match random.below(6) {
                        0..3 => Act::Leave(number, side),
                        3 => Act::Withdraw(number, side),
                        4 => Act::Close(number, side),
                        _ => Act::Kill(number, side),
                    };
                    self.acts.push((at, act));
                }
                self.joints.push(joint);
            }
        }
        let domains = self.shares.len() as u64;
        for joint in &mut self.joints {
            for domain in &mut joint.domains {
                *domain = u32::try_from(random.below(domains)).unwrap_or(0);
            }
        }
        for number in 0..self.joints.len() {
            for _ in 0..random.below(8) {
                let side = usize::from(random.one_in(2));
                let time = random.up_to(20 * MILLISECOND);
                let act = Act::KeepEmpty(number, side, time);
                self.acts.push((Time(random.below(most)), act));
            }
        }
    }
}

fn joint(random: &mut Random, hosts: usize, size: u64, calm_at: Time) -> Joint {
    let one = usize::try_from(random.below(hosts as u64)).unwrap_or(0);
    let other = (one + 1 + usize::try_from(random.below(hosts as u64 - 1)).unwrap_or(0)) % hosts;
    let start = Time(random.up_to(calm_at.0 / 2));
    let habits = |random: &mut Random| {
        let total = if random.one_in(4) {
            random.up_to(size)
        } else {
            random.below(size)
        };
        let chunk = (100 + random.up_to(60_000)).max(size / 50);
        // What there is to be sent and received takes as long as faults last, or any shorter time.
        let calls = size / chunk * 2 + 1;
        let time = if random.one_in(2) {
            random.up_to(calm_at.0)
        } else {
            random.below(calm_at.0)
        };
        Habits {
            total,
            chunk,
            pause: (time / calls * 4).min(time / 4),
            shuts: !random.one_in(8),
        }
    };
    Joint {
        hosts: [one, other],
        habits: [habits(random), habits(random)],
        delay: 1000 + random.up_to(3 * MILLISECOND),
        start,
        domains: [0; 2],
    }
}
