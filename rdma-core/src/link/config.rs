//! What a link and its streams are told: nothing in here changes by itself.

use super::congestion::Limits;
use super::seal::Psk;
use super::time::SECOND;

/// What a link is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Random bytes, new for every link: session numbers and nonces come from them.
    pub seed: [u8; 32],
    /// This host's identity, the same over restarts.
    pub backend: [u8; 16],
    /// Differs between two runs of the daemon.
    pub epoch: u64,
    /// What this side can do; the event [`super::Event::Up`] tells what both can.
    pub capabilities: u32,
    /// Longest frame that the driver can send and receive, at least 1200.
    pub max_frame: usize,
    /// A size that every path carries.
    pub min_frame: usize,
    /// Bytes of frames that the driver can hold before the engine takes them.
    pub window: u32,
    /// Nanoseconds without any answer after which the link is down.
    pub idle_timeout: u64,
    /// The link sends no faster while the queue that it causes costs more than this, in nanoseconds.
    pub queue_delay: u64,
    /// HELLOs without an answer after which the link rests; 0: it never does.
    pub hello_tries: u32,
    /// With a key, every frame is authenticated and encrypted.
    pub key: Option<Psk>,
}

impl Config {
    /// A link without a key, with defaults for what need not be known.
    pub const fn new(seed: [u8; 32], backend: [u8; 16], epoch: u64) -> Self {
        Self {
            seed,
            backend,
            epoch,
            capabilities: 0,
            max_frame: 1472,
            min_frame: 1200,
            window: 4 << 20,
            idle_timeout: 30 * SECOND,
            queue_delay: Limits::QUEUE_DELAY,
            hello_tries: 0,
            key: None,
        }
    }
}

/// This side's number of a stream, chosen by the engine; not used again while the far end may still
/// send for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Endpoint(pub u32);

/// The far end of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FarEnd {
    /// Its number there.
    pub endpoint: u32,
    /// The key of its memory.
    pub rkey: u32,
    /// Bytes of its ring, and of this side's.
    pub capacity: u64,
}

/// Where a stream stands when it is opened: all the same, for a new one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Positions {
    /// The far end has everything that this side sent up to here.
    pub sent: u64,
    /// The far program has read up to here.
    pub far_consumed: u64,
    /// This side has everything up to here.
    pub received: u64,
    /// The local program has read up to here.
    pub consumed: u64,
}
