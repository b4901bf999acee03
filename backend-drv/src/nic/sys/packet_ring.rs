//! Frames in memory shared with the kernel: one ring of slots for what arrives, one for what goes out (TPACKET_V2).
//!
//! Version 3 gathers arriving frames in blocks and hands a block over when it is full or after a millisecond at the
//! least; version 2 hands over each frame, which is what a request and its answer need.
//!
//! A slot begins with the kernel's header, and that with a word that says whose the slot is. Whoever it names may
//! write the slot; so bytes of a slot that is ours are plain memory until the word is set back.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::mm::{MapFlags, ProtFlags};

use super::packet_socket::set_struct;
use crate::nic::Outgoing;
use crate::nic::stamp::Stamp;

/// The two rings of a packet socket.
#[derive(Debug)]
pub struct PacketRings {
    base: NonNull<u8>,
    bytes: usize,
    incoming: Ring,
    outgoing: Ring,
    /// Slots filled since the kernel last took all.
    unsent: usize,
}

/// Where the slots of a ring lie. A slot does not cross blocks.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// From the beginning of the mapping.
    offset: usize,
    block_bytes: usize,
    blocks: usize,
    slot_bytes: usize,
    slots_per_block: usize,
    /// The slot to look at next.
    next: usize,
}

/// A frame that has arrived, Ethernet header first.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// What was stored of it.
    pub bytes: &'a mut [u8],
    /// More was not stored.
    pub cut: bool,
    /// It is for this interface, or for everybody.
    pub ours: bool,
    /// Frames before it were lost for want of slots.
    pub losing: bool,
    /// When the kernel got it.
    pub at: Stamp,
}

// SAFETY: the mapping is this value's alone, and all access goes through `&mut self`.
unsafe impl Send for PacketRings {}

impl PacketRings {
    /// Gives `socket` rings of about `incoming_bytes` and `outgoing_bytes`, whose slots hold Ethernet frames of up to
    /// `frame_bytes` bytes. The socket must not be bound yet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(
        socket: impl AsFd,
        frame_bytes: usize,
        incoming_bytes: usize,
        outgoing_bytes: usize,
    ) -> io::Result<Self> {
        let socket = socket.as_fd();
        let slot_bytes = (HEADROOM + frame_bytes).next_multiple_of(SLOT_ALIGN);
        let incoming = Ring::new(0, slot_bytes, incoming_bytes);
        let outgoing = Ring::new(incoming.bytes(), slot_bytes, outgoing_bytes);
        let version = libc::tpacket_versions::TPACKET_V2 as i32;
        super::set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
        // Frames that the kernel finds wrong are lost, and do not stop those behind them.
        super::set_option(socket, libc::SOL_PACKET, libc::PACKET_LOSS, 1)?;
        let request = incoming.request()?;
        set_struct(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let request = outgoing.request()?;
        set_struct(socket, libc::SOL_PACKET, libc::PACKET_TX_RING, &request)?;
        let bytes = incoming.bytes() + outgoing.bytes();
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                socket,
                0,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            bytes,
            incoming,
            outgoing,
            unsent: 0,
        })
    }

    /// Frames that may wait to be received.
    pub const fn incoming_slots(&self) -> usize {
        self.incoming.slots()
    }

    /// Bytes of the outgoing ring.
    pub const fn outgoing_bytes(&self) -> usize {
        self.outgoing.bytes()
    }

    /// Hands the next arrived frame to `sink` and gives its slot back; false if there is none.
    pub fn receive(&mut self, sink: impl FnOnce(Arrived<'_>)) -> bool {
        let slot = self.slot(self.incoming);
        let status = self.status(slot).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return false;
        }
        let header = self.header(slot);
        let len = usize::try_from(header.tp_snaplen).unwrap_or(usize::MAX);
        let at = usize::from(header.tp_mac);
        // The kernel fills slots as it has laid them out; anything else would be a misunderstanding between us.
        let room = self.incoming.slot_bytes.saturating_sub(at);
        if at >= ADDRESS_AT && len <= room {
            let ours = matches!(
                self.packet_type(slot),
                libc::PACKET_HOST | libc::PACKET_BROADCAST
            );
            // SAFETY: within the slot, see above, and so within the mapping.
            let first = unsafe { self.base.add(slot + at) };
            // SAFETY: initialised memory of a slot that is ours until the status is set back below; the slice does
            // not outlive this block, and `&mut self` keeps everybody else in this process away.
            let bytes = unsafe { core::slice::from_raw_parts_mut(first.as_ptr(), len) };
            sink(Arrived {
                bytes,
                cut: header.tp_len > header.tp_snaplen,
                ours,
                losing: status & libc::TP_STATUS_LOSING != 0,
                at: Stamp {
                    seconds: header.tp_sec.into(),
                    nanos: header.tp_nsec,
                },
            });
        }
        self.status(slot)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.incoming.advance();
        true
    }

    /// Copies a frame behind an Ethernet header to the next free slot; false if there is none. The frame must not be
    /// longer than a slot holds; what does not fit would be left out.
    pub fn queue(&mut self, header: &[u8; 14], frame: &Outgoing<'_>) -> bool {
        let slot = self.slot(self.outgoing);
        // A timestamp that the kernel left in the word does not matter.
        let busy = libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_SENDING;
        if self.status(slot).load(Ordering::Acquire) & busy != 0 {
            return false;
        }
        let mut at = slot + DATA_AT;
        let end = slot + self.outgoing.slot_bytes;
        at += self.write(at, end, header.as_ptr(), header.len());
        at += self.write(at, end, frame.head.as_ptr(), frame.head.len());
        for run in &frame.payload {
            at += self.write(at, end, run.base().as_ptr(), run.len());
        }
        let len = u32::try_from(at - slot - DATA_AT).unwrap_or(0);
        // SAFETY: the slot lies inside the mapping and is longer than a header.
        let field = unsafe {
            self.base
                .add(slot + core::mem::offset_of!(libc::tpacket2_hdr, tp_len))
        };
        // SAFETY: aligned, since slots and the field are, and the slot is ours until the status is set below.
        unsafe { field.cast::<u32>().write(len) };
        self.status(slot)
            .store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.outgoing.advance();
        self.unsent += 1;
        true
    }

    /// Whether frames wait for [`PacketRings::kick`].
    pub const fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Tells the kernel to send what is queued. Afterwards it has taken all, or there is an error.
    ///
    /// # Errors
    /// What send says, or EAGAIN if not all was taken; the frames not taken wait.
    pub fn kick(&mut self, socket: impl AsFd) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let socket = socket.as_fd().as_raw_fd();
        // SAFETY: no memory is passed: the kernel looks into the ring.
        let sent = unsafe { libc::send(socket, core::ptr::null(), 0, flags) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        // Where the buffer is full after some, send tells of those.
        let status = self.status(self.slot(self.last_queued()));
        if self.unsent > 0 && status.load(Ordering::Acquire) & libc::TP_STATUS_SEND_REQUEST != 0 {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        self.unsent = 0;
        Ok(())
    }

    /// Takes back what the kernel has not taken; returns how many frames.
    ///
    /// The kernel works only while [`PacketRings::kick`] does, and in order, so these are the last ones queued.
    pub fn abandon(&mut self) -> usize {
        let mut taken_back = 0;
        while self.unsent > 0 {
            let ring = self.last_queued();
            let status = self.status(self.slot(ring));
            if status.load(Ordering::Acquire) & libc::TP_STATUS_SEND_REQUEST == 0 {
                break;
            }
            status.store(libc::TP_STATUS_AVAILABLE, Ordering::Release);
            self.outgoing = ring;
            self.unsent -= 1;
            taken_back += 1;
        }
        self.unsent = 0;
        taken_back
    }

    /// The outgoing ring as it was before the frame that was queued last.
    const fn last_queued(&self) -> Ring {
        let mut ring = self.outgoing;
        ring.go_back();
        ring
    }

    /// Copies at most up to `end`; returns how many bytes.
    fn write(&mut self, at: usize, end: usize, from: *const u8, len: usize) -> usize {
        let len = len.min(end.saturating_sub(at));
        // SAFETY: the caller names a place in a slot.
        let to = unsafe { self.base.add(at) };
        // SAFETY: `len` bytes from `at` lie in a slot that is ours; the source is a live slice or mapped ring memory
        // of at least `len` bytes, and nobody outside this module has memory of the mapping.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_ptr(), len) };
        len
    }

    /// Offset of the ring's next slot. Always such that a whole slot lies inside the mapping.
    const fn slot(&self, ring: Ring) -> usize {
        let block = ring.next / ring.slots_per_block;
        let slot = ring.next % ring.slots_per_block;
        ring.offset + block * ring.block_bytes + slot * ring.slot_bytes
    }

    /// The word that says whose the slot at `slot` is.
    fn status(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: slots lie inside the mapping.
        let word = unsafe { self.base.add(slot) };
        // SAFETY: aligned like the slot, mapped as long as `self`, and never accessed but as an atomic.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }

    /// The kernel's header of a slot that is ours, all but the status.
    fn header(&self, slot: usize) -> libc::tpacket2_hdr {
        // SAFETY: slots lie inside the mapping and are longer than a header.
        let header = unsafe { self.base.add(slot) };
        // SAFETY: aligned like the slot; integers only; ours, so nobody writes it now.
        unsafe { header.cast::<libc::tpacket2_hdr>().read() }
    }

    /// To whom the frame in a slot of ours was addressed.
    fn packet_type(&self, slot: usize) -> u8 {
        let at = slot + ADDRESS_AT + core::mem::offset_of!(libc::sockaddr_ll, sll_pkttype);
        // SAFETY: the address stands behind the header, and slots are longer than both.
        let field = unsafe { self.base.add(at) };
        // SAFETY: a byte of a slot that is ours.
        unsafe { field.read() }
    }
}

impl Drop for PacketRings {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; nothing borrowed from it outlives `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, "munmap of packet rings");
        }
    }
}

impl Ring {
    /// A ring of about `bytes` bytes at `offset`.
    const fn new(offset: usize, slot_bytes: usize, bytes: usize) -> Self {
        let block_bytes = if slot_bytes > BLOCK_BYTES {
            slot_bytes.next_power_of_two()
        } else {
            BLOCK_BYTES
        };
        Self {
            offset,
            block_bytes,
            blocks: bytes.div_ceil(block_bytes),
            slot_bytes,
            slots_per_block: block_bytes / slot_bytes,
            next: 0,
        }
    }

    const fn bytes(&self) -> usize {
        self.blocks * self.block_bytes
    }

    const fn slots(&self) -> usize {
        self.blocks * self.slots_per_block
    }

    const fn advance(&mut self) {
        self.next += 1;
        if self.next == self.slots() {
            self.next = 0;
        }
    }

    const fn go_back(&mut self) {
        if self.next == 0 {
            self.next = self.slots();
        }
        self.next -= 1;
    }

    fn request(&self) -> io::Result<libc::tpacket_req> {
        let number = |value: usize| u32::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        Ok(libc::tpacket_req {
            tp_block_size: number(self.block_bytes)?,
            tp_block_nr: number(self.blocks)?,
            tp_frame_size: number(self.slot_bytes)?,
            tp_frame_nr: number(self.slots())?,
        })
    }
}

/// Blocks of slots: big enough that jumbo frames waste little, and a power of two of pages.
const BLOCK_BYTES: usize = 128 << 10;
/// Slots begin at cache lines.
const SLOT_ALIGN: usize = 64;
/// Where the sender's address stands in a slot of an arrived frame.
const ADDRESS_AT: usize = size_of::<libc::tpacket2_hdr>();
/// Where the kernel looks for an outgoing frame.
const DATA_AT: usize = libc::TPACKET2_HDRLEN - size_of::<libc::sockaddr_ll>();
/// What the kernel wants before an arriving frame: its header, the address, and the Ethernet header such that what
/// follows that is aligned.
const HEADROOM: usize = (libc::TPACKET2_HDRLEN + 16).next_multiple_of(16);
const _: () = assert!(ADDRESS_AT + size_of::<libc::sockaddr_ll>() <= HEADROOM);
const _: () = assert!(ADDRESS_AT.is_multiple_of(16) && DATA_AT == ADDRESS_AT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_blocks_without_crossing_them() {
        for frame in [60, 1514, 9014, 65_549] {
            let slot = (HEADROOM + frame).next_multiple_of(SLOT_ALIGN);
            let mut ring = Ring::new(0, slot, 1 << 20);
            assert!(ring.bytes() >= 1 << 20 && ring.slots() >= 8);
            assert!(ring.block_bytes.is_power_of_two());
            assert!(ring.slots_per_block * ring.slot_bytes <= ring.block_bytes);
            ring.go_back();
            assert_eq!(ring.next, ring.slots() - 1);
            ring.advance();
            assert_eq!(ring.next, 0);
        }
    }
}
