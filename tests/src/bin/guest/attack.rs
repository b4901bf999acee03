//! What a guest may do to the device that it shares with its host, with or without the daemon inside it.
//!
//! Memory and registers are mapped as any process of the guest's root can map them. Everything follows from a seed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdma_core::channel::{
    CHANNEL_VERSION, CONTROL_AREA_BYTES, CONTROL_VECTOR, DOORBELL_REGISTER, Direction, Grant,
    GuestContext, GuestHello, HEAP_START, MESSAGE_BYTES, Up, Writer, control_offset,
    doorbell_value,
};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::wire::pairing::{Names, Pairing, Sample};
use viaduct_tests::vm::window::Window;

use crate::say;

/// The register that says which member we are.
const POSITION_REGISTER: usize = 8;

/// What the host has vectors for, and some more.
const VECTORS: u64 = 40;

/// The device as root sees it.
struct Bare {
    memory: Window,
    registers: Window,
}

impl Bare {
    fn open() -> Result<Self> {
        let devices = fs::read_dir("/sys/bus/pci/devices")?;
        let is_ivshmem = |path: &PathBuf| {
            let number = fs::read_to_string(path.join("device"));
            number.is_ok_and(|number| number.trim() == "0x1110")
        };
        let mut paths = devices.filter_map(|entry| Some(entry.ok()?.path()));
        let path = paths.find(is_ivshmem).context("no device")?;
        let open = |name: &str| File::options().read(true).write(true).open(path.join(name));
        let memory = open("resource2")?;
        let bytes = usize::try_from(memory.metadata()?.len())?;
        Ok(Self {
            memory: Window::map(memory, bytes)?,
            registers: Window::map(open("resource0")?, 4096)?,
        })
    }

    fn member(&self) -> Result<u16> {
        let said = self.registers.half(POSITION_REGISTER).load(Relaxed);
        Ok(u16::try_from(said)?)
    }

    fn ring(&self, member: u16, vector: u16) {
        let value = doorbell_value(member, vector);
        self.registers.half(DOORBELL_REGISTER).store(value, Relaxed);
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Small, large, or anything.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(8),
            1 => u64::MAX - self.below(8),
            2 => self.below(1 << 22),
            _ => self.next(),
        }
    }

    fn half(&mut self) -> u32 {
        (self.number() & 0xffff_ffff) as u32
    }

    fn quarter(&mut self) -> u16 {
        (self.number() & 0xffff) as u16
    }
}

/// Does something until the time is over.
fn during(seconds: u64, mut what: impl FnMut()) -> Result<()> {
    say("attacking")?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        what();
    }
    say("done")
}

/// Writes anything anywhere in the region, most of it where it is looked at.
pub(crate) fn garbage(seed: u64, seconds: u64) -> Result<()> {
    let bare = Bare::open()?;
    let mut random = Random(seed | 1);
    let own = control_offset(bare.member()?).context("no control area")? as u64;
    let bytes = bare.memory.bytes() as u64;
    during(seconds, || {
        for _ in 0..64 {
            let at = match random.below(4) {
                0 => own + random.below(CONTROL_AREA_BYTES as u64),
                1 => random.below(HEAP_START),
                2 => HEAP_START + random.below(4 << 20),
                _ => random.below(bytes),
            };
            let at = usize::try_from(at)
                .unwrap_or(0)
                .min(bare.memory.bytes() - 8);
            bare.memory.word(at).store(random.number(), Relaxed);
        }
        bare.ring(0, CONTROL_VECTOR);
    })
}

/// Says things in the control ring that are no nonsense and not true.
pub(crate) fn lies(seed: u64, seconds: u64) -> Result<()> {
    let bare = Bare::open()?;
    let member = bare.member()?;
    let region = bare.memory.region();
    let mut random = Random(seed | 1);
    let mut writer = Writer::new(&region, member, Direction::Up).context("no control ring")?;
    let mut buffer = [0; MESSAGE_BYTES];
    let mut known = Vec::new();
    during(seconds, || {
        let message = lie(&mut random, &mut known);
        let length = message.emit(&mut buffer);
        if random.below(16) == 0 {
            let place = usize::try_from(random.below(length as u64)).unwrap_or(0);
            if let Some(byte) = buffer.get_mut(place) {
                *byte ^= 1 << random.below(8);
            }
        }
        let _ = writer.push(buffer.get(..length).unwrap_or_default());
        if !writer.flush() || random.below(64) == 0 {
            // Whoever is not served any more begins anew.
            if let Some(anew) = Writer::new(&region, member, Direction::Up) {
                writer = anew;
            }
            let hello = Up::Hello(GuestHello {
                version: CHANNEL_VERSION,
                layout_version: LAYOUT_VERSION,
                nonce: random.next(),
            });
            let length = hello.emit(&mut buffer);
            let _ = writer.push(buffer.get(..length).unwrap_or_default());
            writer.flush();
        }
        bare.ring(0, CONTROL_VECTOR);
    })
}

/// One message. Numbers of programs and connections are sometimes those of earlier lies.
fn lie(random: &mut Random, known: &mut Vec<u32>) -> Up {
    // The first numbers that guests get, and those of others.
    let process = match random.below(3) {
        0 => {
            let index = usize::try_from(random.below(known.len().max(1) as u64));
            known.get(index.unwrap_or(0)).copied()
        }
        1 => Some((1 << 21) + (random.half() & 0x3fff)),
        _ => Some(random.half()),
    };
    let process = process.unwrap_or(1 << 21);
    known.push(process);
    known.truncate(1000);
    let connection = random.number();
    match random.below(11) {
        0 | 1 => Up::Program {
            process,
            at: random.number() & !4095,
        },
        2 => Up::ProgramGone(process),
        3 => Up::Context(GuestContext {
            process,
            context: random.half(),
            member: random.quarter(),
            vector: random.quarter(),
            reserved: 0,
        }),
        4 => Up::Ended(connection),
        5 => Up::Departed {
            connection,
            held: random.below(2) == 0,
        },
        6 => Up::Withdraw {
            connection,
            may_return: random.below(2) == 0,
        },
        7 => Up::Told(connection),
        8 => Up::Holds {
            process,
            names: names(random),
            grant: Grant {
                registration: random.number(),
                connection,
                at: random.number() & !4095,
                arena_bytes: random.number() & !4095,
                offset: random.number() & !4095,
                arena: random.half(),
                ring_log2: random.half() & 31,
                peer: random.half(),
                end: u8::from(random.below(2) == 0),
                relayed: u8::from(random.below(2) == 0),
                reserved: [0; 2],
            },
        },
        9 => Up::Pairing {
            process,
            message: Pairing::Offer {
                id: connection,
                names: names(random),
                ring_log2: (random.half() & 31) as u8,
                sample: Sample::default(),
            },
        },
        _ => Up::Kick {
            process,
            context: random.half(),
        },
    }
}

/// Our own address or another, and that of a victim or nobody's.
fn names(random: &mut Random) -> Names {
    let mut address = |network: u8| {
        let [host, ..] = (random.below(3) + 1).to_le_bytes();
        ([10, network, 0, host], random.quarter()).into()
    };
    Names {
        own: address(77),
        far: address(78),
    }
}

/// Rings everything that can be rung, as fast as it goes.
pub(crate) fn flood(seconds: u64) -> Result<()> {
    let bare = Bare::open()?;
    let mut random = Random(1);
    during(seconds, || {
        for _ in 0..100 {
            let vector = u16::try_from(random.below(VECTORS)).unwrap_or(0);
            bare.ring(u16::try_from(random.below(4)).unwrap_or(0), vector);
            bare.ring(0, CONTROL_VECTOR);
        }
    })
}
