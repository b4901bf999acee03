//! The three kinds of memory that the daemon shares with programs, typed.
//!
//! Every word in them may be written by a program at any time; readers take values as they come and
//! use none of them as an index or a length without a check.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rdma_core::event::{CONTEXT_STRIDE, EVENT_BYTES, EventContext};
use rdma_core::layout::{
    CONN_MAGIC, ConnHeader, ConnView, End, EndWords, LAYOUT_VERSION, ProducerWords, conn_bytes,
    end_offset, ring_offset,
};
use rdma_core::slot::{ARENA_BYTES, ARENA_HEADER_BYTES, ArenaHeader, SLOT_BYTES, SLOTS, Slot};
use rdma_core::sync::Ordering;
use rdma_core::trim;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};

use crate::memory::{Held, Mapping};

/// Slots copied at once.
const COPY_SLOTS: u32 = 128;

/// Seals on every memory that the daemon makes or accepts: the size is final.
pub const FINAL_SIZE: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Makes `bytes` bytes of zeroed memory whose size nobody can change.
///
/// # Errors
/// Out of descriptors, memory or file size (RLIMIT_FSIZE).
pub fn sealed_memory(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }?;
    rustix::fs::ftruncate(&memory, bytes)?;
    rustix::fs::fcntl_add_seals(&memory, FINAL_SIZE)?;
    Ok(memory)
}

/// Memory that parts are given out of.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// The mapping.
    pub mapping: &'a Arc<Mapping>,
    /// The file of all that is given out,
    pub memory: &'a Arc<OwnedFd>,
    /// which begins here in the mapping.
    pub start: u64,
}

/// A program's slots, made by the program; see [`rdma_core::slot`].
#[derive(Debug)]
pub struct SlotArena {
    memory: OwnedFd,
    mapping: Mapping,
}

impl SlotArena {
    /// Maps the arena behind `memory`.
    ///
    /// # Errors
    /// As [`Mapping::of_sealed`].
    pub fn new(memory: OwnedFd) -> io::Result<Self> {
        let mapping = Mapping::of_sealed(&memory, ARENA_BYTES)?;
        Ok(Self { memory, mapping })
    }

    /// Mailbox and counters.
    #[expect(clippy::expect_used, reason = "the length was fixed in `new`")]
    pub fn header(&self) -> &ArenaHeader {
        self.mapping.get(0).expect("longer than the header")
    }

    /// Slot `index`; `None` beyond the end.
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        if index >= SLOTS {
            return None;
        }
        self.mapping
            .get(ARENA_HEADER_BYTES + index as usize * SLOT_BYTES)
    }

    /// Gives a copy of each slot below `end` to `found`.
    ///
    /// The slots are read as a file, not looked at in place: looking at a page that was never used
    /// would bring it into being, at our expense, and the program could change it meanwhile.
    pub fn each_slot(&self, end: u32, mut found: impl FnMut(u32, &Slot)) {
        let Ok(mut copy) = Mapping::private(COPY_SLOTS as usize * SLOT_BYTES) else {
            return;
        };
        let mut bytes = vec![0; copy.len()];
        let end = end.min(SLOTS);
        let mut first = 0;
        while first < end {
            let count = COPY_SLOTS.min(end - first);
            let at = ARENA_HEADER_BYTES as u64 + u64::from(first) * SLOT_BYTES as u64;
            let Some(wanted) = bytes.get_mut(..count as usize * SLOT_BYTES) else {
                return;
            };
            // The size is final, so reading stops short only if it fails.
            match rustix::io::pread(&self.memory, &mut *wanted, at) {
                Ok(length) if length == wanted.len() => copy.fill(wanted),
                _ => return,
            }
            for index in 0..count {
                if let Some(slot) = copy.get(index as usize * SLOT_BYTES) {
                    found(first + index, slot);
                }
            }
            first += count;
        }
    }

    /// Tells the program to look at its control socket.
    pub fn raise_mailbox(&self) {
        self.header().mailbox.fetch_add(1, Ordering::SeqCst);
    }
}

/// A program's waiting contexts, made by the daemon; see [`rdma_core::event`].
#[derive(Debug)]
pub struct EventMemory {
    memory: Arc<OwnedFd>,
    mapping: Mapping,
    /// Where it begins in the file.
    at: u64,
    /// Where it begins in what it is a part of.
    place: u64,
}

impl EventMemory {
    /// Fresh event memory.
    ///
    /// # Errors
    /// As [`sealed_memory`].
    pub fn create() -> io::Result<Self> {
        Self::of(sealed_memory("viaduct-events", EVENT_BYTES as u64)?)
    }

    /// That of a daemon before us.
    ///
    /// # Errors
    /// As [`Mapping::of_sealed`].
    pub fn of(memory: OwnedFd) -> io::Result<Self> {
        let mapping = Mapping::of_sealed(&memory, EVENT_BYTES)?;
        Ok(Self {
            memory: Arc::new(memory),
            mapping,
            at: 0,
            place: 0,
        })
    }

    /// That which begins at `place` in `whole`. `None` if it does not lie inside.
    pub fn part(whole: &Whole<'_>, place: u64) -> Option<Self> {
        Some(Self {
            memory: Arc::clone(whole.memory),
            mapping: Mapping::window(whole.mapping, place, EVENT_BYTES)?,
            at: place.checked_sub(whole.start)?,
            place,
        })
    }

    /// Where it begins in what it is a part of.
    pub const fn place(&self) -> u64 {
        self.place
    }

    /// Whether it is a part of something larger: a guest's region, which begins with something else.
    pub const fn is_part(&self) -> bool {
        self.place > 0
    }

    /// Where it begins in the file that programs get.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The descriptor that programs get.
    pub const fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    /// Context `number`; `None` beyond the end.
    pub fn context(&self, number: u32) -> Option<&EventContext> {
        self.mapping.get(number as usize * CONTEXT_STRIDE)
    }
}

/// Memory of several connections of one pair of programs; see [`rdma_core::layout`].
#[derive(Debug)]
pub struct ConnectionArena {
    memory: Arc<OwnedFd>,
    mapping: Arc<Mapping>,
    /// Where it begins in the file.
    at: u64,
}

impl ConnectionArena {
    /// A fresh arena of `bytes` bytes.
    ///
    /// # Errors
    /// As [`sealed_memory`].
    pub fn create(bytes: u64) -> io::Result<Self> {
        Self::of(sealed_memory("viaduct-connections", bytes)?, bytes)
    }

    /// One of `bytes` bytes that a daemon before us has made.
    ///
    /// # Errors
    /// As [`Mapping::of_sealed`].
    pub fn of(memory: OwnedFd, bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::of_sealed(&memory, len)?;
        Ok(Self {
            memory: Arc::new(memory),
            mapping: Arc::new(mapping),
            at: 0,
        })
    }

    /// One of `bytes` bytes that begins at `place` in `whole`. `None` if it does not lie inside.
    pub fn part(whole: &Whole<'_>, place: u64, bytes: u64) -> Option<Self> {
        let mapping = Mapping::window(whole.mapping, place, usize::try_from(bytes).ok()?)?;
        Some(Self {
            memory: Arc::clone(whole.memory),
            mapping: Arc::new(mapping),
            at: place.checked_sub(whole.start)?,
        })
    }

    /// Where it begins in the file that programs get.
    pub const fn start(&self) -> u64 {
        self.at
    }

    /// The descriptor that programs get.
    pub const fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    /// Takes all pages of the connection at `offset` now, so that none can be missing later.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(&self, offset: u64, ring_log2: u32) -> io::Result<()> {
        let bytes = conn_bytes(1 << ring_log2) as u64;
        Ok(rustix::fs::fallocate(
            self.fd(),
            FallocateFlags::empty(),
            self.at + offset,
            bytes,
        )?)
    }

    /// Fills the header of the connection at `offset`.
    ///
    /// # Errors
    /// It does not lie inside.
    pub fn prepare(&self, offset: u64, ring_log2: u32, conn_id: u64) -> io::Result<()> {
        let header: &ConnHeader = self
            .at(offset, 0)
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        header.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.ring_log2.store(ring_log2, Ordering::Relaxed);
        header.conn_id.store(conn_id, Ordering::Relaxed);
        header.magic.store(CONN_MAGIC, Ordering::Release);
        Ok(())
    }

    /// Gives the pages of the connection at `offset` back; they read as zeros afterwards.
    ///
    /// # Errors
    /// What fallocate says; the memory must then not be used again.
    pub fn clear(&self, offset: u64, ring_log2: u32) -> io::Result<()> {
        let bytes = conn_bytes(1 << ring_log2) as u64;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            self.fd(),
            how,
            self.at + offset,
            bytes,
        )?)
    }

    /// What `make` makes of the connection at `offset`, as `end` sees it.
    pub fn hold<T>(
        &self,
        (offset, ring_log2, end): (u64, u32, End),
        make: impl FnOnce(ConnView) -> Option<T>,
    ) -> Option<Held<T>> {
        let offset = usize::try_from(offset).ok()?;
        Held::new(Arc::clone(&self.mapping), |region| {
            let part = region.part(offset, conn_bytes(1 << ring_log2))?;
            make(ConnView::new(&part, end, ring_log2)?)
        })
    }

    /// The words of one end of the connection at `offset`.
    pub fn end(&self, offset: u64, end: End) -> Option<&EndWords> {
        self.at(offset, end_offset(end.index()))
    }

    /// What `end` has read of the other end's ring, as it says; the connection lies at `offset`.
    pub fn consumed(&self, offset: u64, end: End) -> Option<u64> {
        Some(self.end(offset, end)?.consumer.head.load(Ordering::Acquire))
    }

    /// Where in the file the first memory is that the ring of `end` can do [without](trim::spare) while it is empty.
    ///
    /// # Errors
    /// What lseek says.
    pub fn first_spare(&self, ring: (u64, u32, End)) -> io::Result<Option<u64>> {
        let spare = self.spare(ring);
        match rustix::fs::seek(self.fd(), SeekFrom::Data(spare.start)) {
            Ok(at) => Ok(Some(at).filter(|at| *at < spare.end)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back `bytes` of that memory from `from` on; nothing beyond it.
    ///
    /// # Errors
    /// What fallocate says.
    pub fn give_back(&self, ring: (u64, u32, End), from: u64, bytes: u64) -> io::Result<()> {
        let spare = self.spare(ring);
        let from = from.max(spare.start);
        let end = from.saturating_add(bytes).min(spare.end);
        if from >= end {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self.fd(), how, from, end - from)?)
    }

    fn spare(&self, (offset, ring_log2, end): (u64, u32, End)) -> Range<u64> {
        let spare = trim::spare(end.index(), 1 << ring_log2);
        let start = self.at + offset;
        start + spare.start as u64..start + spare.end as u64
    }

    /// Bytes that `end` has published in its ring; the connection lies at `offset`.
    pub fn published(&self, offset: u64, ring_log2: u32, end: End) -> Option<u64> {
        let words: &ProducerWords = self.at(offset, ring_offset(end.index(), 1 << ring_log2))?;
        Some(words.tail.load(Ordering::Acquire))
    }

    /// Sends what the kernel takes now of `len` bytes of the ring of `end`, from `index` in its data on; not
    /// beyond the end of the data.
    ///
    /// # Errors
    /// As [`Mapping::send`].
    pub fn send(
        &self,
        socket: impl AsFd,
        (offset, ring_log2, end): (u64, u32, End),
        index: usize,
        len: usize,
    ) -> io::Result<usize> {
        let capacity = 1usize << ring_log2;
        let len = len.min(capacity.saturating_sub(index));
        let data = ring_offset(end.index(), capacity) + size_of::<ProducerWords>();
        let start = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(data + index))
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        self.mapping.send(socket, start, len)
    }

    fn at<T: rdma_core::mem::Shared + 'static>(&self, offset: u64, inside: usize) -> Option<&T> {
        let offset = usize::try_from(offset).ok()?.checked_add(inside)?;
        self.mapping.get(offset)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}
