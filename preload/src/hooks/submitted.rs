//! What a program hands to the kernel through liburing, whose system calls no hook sees, and through libaio.
//!
//! Before requests are submitted, each connection that one of them names goes back to the kernel, and each epoll set
//! is marked as polled. What a program does by libc's calls beside them stays on rings: it may have liburing for its
//! files alone. The layouts are those of `struct io_uring` of liburing 2 (`liburing.h`), of `struct io_uring_sqe`
//! (`linux/io_uring.h`) and of `struct iocb` (`linux/aio_abi.h`).

use core::ffi::{c_int, c_long, c_uint};

use rdma_core::Reason;

use crate::conn::conn;
use crate::ops::{epoll, ready};
use crate::{fds, lifecycle, probe};

export_after!(
    of_ring: io_uring_submit, io_uring_submit_and_wait, io_uring_submit_and_wait_timeout,
    io_uring_submit_and_wait_min_timeout, io_uring_submit_and_wait_reg, io_uring_submit_and_get_events,
    io_uring_wait_cqes, io_uring_wait_cqes_min_timeout, io_uring_wait_cqe_timeout
);
export_after!(of_files: io_uring_register_files);
export_after!(of_tagged_files: io_uring_register_files_tags);
export_after!(of_more_files: io_uring_register_files_update);
export_after!(of_more_tagged_files: io_uring_register_files_update_tag);
export_after!(of_context: io_submit);

/// Where the fields of `struct io_uring` are that lead to requests not submitted yet.
const RING_MASK: usize = 16;
const RING_ENTRIES: usize = 56;
const RING_HEAD: usize = 64;
const RING_TAIL: usize = 68;
const RING_FLAGS: usize = 192;
/// `IORING_SETUP_SQE128`: an entry has twice the size.
const SETUP_LARGE: u32 = 1 << 10;
const ENTRY: usize = 64;
/// More than the kernel ever takes (`IORING_MAX_ENTRIES`, and of files `IORING_MAX_FIXED_FILES`).
const MOST: c_uint = 1 << 20;

/// Where the fields of `struct io_uring_sqe` are.
const OPERATION: usize = 0;
const FLAGS: usize = 1;
const DESCRIPTOR: usize = 4;
const OFFSET: usize = 8;
const ADDRESS: usize = 16;
const LENGTH: usize = 24;
const SPLICE_FLAGS: usize = 28;
const SPLICE_FROM: usize = 44;
/// `IOSQE_FIXED_FILE`, `SPLICE_F_FD_IN_FIXED`: no descriptor but the index of a registered file.
const FIXED_FILE: u8 = 1;
const SPLICE_FIXED: u32 = 1 << 31;
/// The operations that name a second descriptor, or many.
const FILES_UPDATE: u8 = 20;
const EPOLL_CTL: u8 = 29;
const SPLICE: u8 = 30;
const TEE: u8 = 33;

/// Where `struct iocb` has its descriptor.
const REQUEST_DESCRIPTOR: usize = 20;

/// What is `at` bytes behind `base`.
fn field<T: Copy>(base: *const u8, at: usize) -> Option<T> {
    // SAFETY: `T` is a number or a pointer here, which any bytes are.
    unsafe { probe::read(base.wrapping_add(at).cast::<T>()) }
}

extern "C" fn of_ring(ring: *const u8) {
    if lifecycle::any_known() {
        look_at_entries(ring);
    }
}

/// Those that are filled in and not yet shown to the kernel.
#[cold]
fn look_at_entries(ring: *const u8) -> Option<()> {
    let mask: u32 = field(field::<*const u8>(ring, RING_MASK)?, 0)?;
    let entries: *const u8 = field(ring, RING_ENTRIES)?;
    let (head, tail): (u32, u32) = (field(ring, RING_HEAD)?, field(ring, RING_TAIL)?);
    let size = if field::<u32>(ring, RING_FLAGS)? & SETUP_LARGE == 0 {
        ENTRY
    } else {
        2 * ENTRY
    };
    for number in 0..tail
        .wrapping_sub(head)
        .min(mask.saturating_add(1))
        .min(MOST)
    {
        let place = usize::try_from(head.wrapping_add(number) & mask).ok()?;
        look_at_entry(entries.wrapping_add(place.checked_mul(size)?))?;
    }
    Some(())
}

fn look_at_entry(entry: *const u8) -> Option<()> {
    if field::<u8>(entry, FLAGS)? & FIXED_FILE == 0 {
        is_used(field(entry, DESCRIPTOR)?);
    }
    match field::<u8>(entry, OPERATION)? {
        SPLICE | TEE if field::<u32>(entry, SPLICE_FLAGS)? & SPLICE_FIXED == 0 => {
            is_used(field(entry, SPLICE_FROM)?);
        }
        EPOLL_CTL => is_used(field(entry, OFFSET)?),
        FILES_UPDATE => are_used(field(entry, ADDRESS)?, field(entry, LENGTH)?),
        _ => {}
    }
    Some(())
}

extern "C" fn of_files(_ring: *const u8, files: *const c_int, count: c_uint) {
    are_used(files, count);
}

extern "C" fn of_tagged_files(
    _ring: *const u8,
    files: *const c_int,
    _tags: *const u64,
    count: c_uint,
) {
    are_used(files, count);
}

extern "C" fn of_more_files(_ring: *const u8, _first: c_uint, files: *const c_int, count: c_uint) {
    are_used(files, count);
}

extern "C" fn of_more_tagged_files(
    _ring: *const u8,
    _first: c_uint,
    files: *const c_int,
    _tags: *const u64,
    count: c_uint,
) {
    are_used(files, count);
}

pub(super) extern "C" fn of_context(
    _context: *const u8,
    count: c_long,
    requests: *const *const u8,
) {
    if !lifecycle::any_known() {
        return;
    }
    for place in 0..usize::try_from(count).unwrap_or(0) {
        let request = field(requests.wrapping_add(place).cast(), 0);
        let Some(fd) = request.and_then(|request| field(request, REQUEST_DESCRIPTOR)) else {
            return;
        };
        is_used(fd);
    }
}

fn are_used(files: *const c_int, count: c_uint) {
    if !lifecycle::any_known() {
        return;
    }
    for place in 0..usize::try_from(count.min(MOST)).unwrap_or(0) {
        let Some(fd) = field(files.wrapping_add(place).cast(), 0) else {
            return;
        };
        is_used(fd);
    }
}

/// The kernel is told of a descriptor, and will read, write or poll it by itself.
fn is_used(fd: c_int) {
    let entry = fds::lookup(fd);
    if let Some(conn) = entry.as_conn().map(conn) {
        // Once; a program goes on by naming it in each request.
        if conn.vetoed() != Some(Reason::IoUring) || ready::involves_ring(conn) {
            lifecycle::to_kernel(conn, fd, Reason::IoUring);
        }
    } else if entry.as_epoll().is_some() {
        epoll::mark_polled(fd);
    }
}
