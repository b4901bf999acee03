//! How frames of a link come to other hosts: one trait, its drivers, and middleware that wraps any of them.
//!
//! A frame is opaque here: a head that the link has written, and payload that lies in a connection's ring. A NIC
//! may lose, repeat, reorder and damage frames, as networks do; it never fragments them, never blocks, and never
//! looks into payload. What the network does to a frame (nobody there, no route, too big) is loss, counted, and not an
//! error: errors mean that the NIC itself is of no use any more.
//!
//! * [`udp`]: UDP over IPv4 or IPv6, in batches that the kernel segments and coalesces.
//! * [`ethernet`]: frames with an EtherType of our own on one interface, through rings shared with the kernel.
//! * [`loopback`]: two ends in memory, for tests.
//! * [`tracer`], [`pcap`], [`faults`]: middleware. They implement the trait over another NIC.
//! * [`frame`]: what is handed in; [`mtu`]: how long frames may be; [`sys`]: system calls; all unsafe code is there.
//!
//! [`open`] is the only place that lists the drivers.

pub mod ethernet;
pub mod faults;
pub mod frame;
pub mod loopback;
pub mod mtu;
pub mod pcap;
pub mod stamp;
pub mod sys;
#[cfg(test)]
mod tests;
pub mod tracer;
pub mod udp;
#[cfg(test)]
mod veth;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

pub use frame::{Outgoing, Slice};

use ethernet::Ethernet;
use faults::{FaultSettings, Faults};
use pcap::Pcap;
use tracer::Tracer;
use udp::Udp;

/// A call of [`Nic::receive`] takes nothing more after so many bytes: whoever wants to look at something else first can do
/// so in between.
const RECEIVE_BYTES: u64 = 32 << 10;

/// Something that carries frames.
pub trait Nic: Send + fmt::Debug {
    /// Where others reach this NIC, as far as it knows itself.
    fn address(&self) -> Address;

    /// To whom a frame is sent that everybody on the network should get, if there is such a thing.
    fn broadcast(&self) -> Option<Address> {
        None
    }

    /// Bytes of the longest frame that fits now. It changes with the interface.
    fn max_frame(&self) -> usize;

    /// Bytes of frames that may arrive while nobody receives before some are lost.
    fn window(&self) -> usize;

    /// Sends as many frames of the batch as possible, in order; returns how many were taken. Never blocks.
    ///
    /// A taken frame is on its way or lost. If fewer than all were taken, [`Nic::wants_write`] says true.
    ///
    /// # Errors
    /// The NIC is of no use any more.
    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize>;

    /// Receives a bounded number of frames and calls `sink` for each; returns how many. Never blocks.
    ///
    /// After 0 there is nothing more: wait for [`Nic::readiness`] or [`Nic::wake_at`].
    ///
    /// # Errors
    /// The NIC is of no use any more.
    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize>;

    /// Readable while there may be frames; writable when [`Nic::send`] would take frames again. Level-triggered.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// The last [`Nic::send`] did not take all: wait until [`Nic::readiness`] is writable.
    fn wants_write(&self) -> bool;

    /// When to call [`Nic::receive`] even though nothing is readable.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Counters since the start.
    fn stats(&self) -> NicStats;
}

/// Takes one received frame, whose bytes it may change.
pub type Sink<'a> = dyn FnMut(Arrival, &mut [u8]) + 'a;

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it.
    pub from: Address,
    /// When this machine had it, which may be a while before somebody looked; `None` if the driver cannot tell.
    pub at: Option<Instant>,
}

/// Where a frame goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// UDP.
    Udp(SocketAddr),
    /// Ethernet.
    Mac([u8; 6]),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => address.fmt(f),
            Self::Mac([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
        }
    }
}

/// What a NIC has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicStats {
    /// Frames taken and given to the network.
    pub sent_frames: u64,
    /// Their bytes, without what lies around frames.
    pub sent_bytes: u64,
    /// System calls (or the like) for them.
    pub send_calls: u64,
    /// Frames taken that the network refused: too long, no route, nobody there.
    pub send_drops: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// System calls (or the like) for them.
    pub receive_calls: u64,
    /// Frames that the kernel (or a full queue) threw away before they were received.
    pub receive_drops: u64,
    /// Frames that came cut, or for others.
    pub malformed: u64,
}

/// A NIC and what is wrapped around it.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// The driver and where it sits.
    pub driver: Driver,
    /// Frames are never longer than this.
    pub max_frame: Option<usize>,
    /// Faults that arriving frames meet, for tests.
    pub faults: Option<FaultSettings>,
    /// A file for every frame that passes.
    pub pcap: Option<PathBuf>,
}

/// A driver and where it sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// [`udp`].
    Udp {
        /// The address to use; port 0 is any.
        bind: SocketAddr,
    },
    /// [`ethernet`].
    Ethernet {
        /// The interface's name.
        interface: String,
    },
}

impl NicConfig {
    /// A driver with nothing around it.
    pub const fn plain(driver: Driver) -> Self {
        Self {
            driver,
            max_frame: None,
            faults: None,
            pcap: None,
        }
    }
}

/// Why a NIC could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// UDP.
    #[error("cannot use UDP at {bind}")]
    Udp {
        /// Where.
        bind: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The file for frames.
    #[error("cannot write frames to {}", path.display())]
    Pcap {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Ethernet.
    #[error("cannot use Ethernet frames on {interface}")]
    Ethernet {
        /// Where.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// Opens a NIC with the middleware that `config` asks for.
///
/// # Errors
/// The kernel refuses what the driver needs.
pub fn open(config: &NicConfig) -> Result<Box<dyn Nic>, NicError> {
    let mut nic: Box<dyn Nic> = match &config.driver {
        Driver::Udp { bind } => {
            let nic = Udp::open(*bind, config.max_frame);
            Box::new(nic.map_err(|source| NicError::Udp {
                bind: *bind,
                source,
            })?)
        }
        Driver::Ethernet { interface } => {
            let nic = Ethernet::open(interface, config.max_frame);
            Box::new(nic.map_err(|source| NicError::Ethernet {
                interface: interface.clone(),
                source,
            })?)
        }
    };
    if let Some(settings) = &config.faults {
        nic = Box::new(Faults::new(nic, *settings));
    }
    // Outside of the faults: what the link sees is what people look for.
    if let Some(path) = &config.pcap {
        let pcap = Pcap::new(nic, path);
        nic = Box::new(pcap.map_err(|source| NicError::Pcap {
            path: path.clone(),
            source,
        })?);
    }
    if tracer::is_wanted() {
        nic = Box::new(Tracer::new(nic));
    }
    Ok(nic)
}
