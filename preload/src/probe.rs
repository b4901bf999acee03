//! Addresses that the program gave us, touched without risk.
//!
//! The kernel answers EFAULT for an address that is not there. Bytes that go by a ring are copied by
//! the library, so before the copy each page of a buffer is touched by one instruction that may fault:
//! a load if the buffer is read, a store of what stands there already if it is to be overwritten. The
//! section `viaduct_extable` names every such instruction and the place to go on at if it faults; the
//! handler of [`crate::faults`] looks there ([`landing`]).
//!
//! Whoever touches has an entry of a connection or has seen that there are any
//! ([`crate::lifecycle::any_known`]): the handler is installed before the first of them. Memory that
//! another thread unmaps between touch and copy faults as it would in the program.

#![expect(
    unsafe_code,
    reason = "instructions that may fault, and copies from and to the program's memory"
)]

use core::arch::asm;

/// The smallest page. Where pages are larger, some are touched more than once.
const PAGE: usize = 4096;

/// Whether `len` bytes from `at` can be read.
#[inline(always)]
pub(crate) fn readable(at: *const u8, len: usize) -> bool {
    if len <= PAGE {
        // Two pages at most: that of the first byte and that of the last.
        len == 0 || load(at) && load_last(at, len)
    } else {
        readable_to(at, len) == len
    }
}

/// Whether `len` bytes from `at` can be written.
///
/// # Safety
/// The program gave these bytes to be overwritten, and the caller does so next: a write of another
/// thread at the same moment may be lost.
#[inline(always)]
pub(crate) unsafe fn writable(at: *mut u8, len: usize) -> bool {
    if len <= PAGE {
        // SAFETY: by contract, in both.
        len == 0 || unsafe { store(at) } && unsafe { store_last(at, len) }
    } else {
        // SAFETY: by contract.
        unsafe { writable_to(at, len) == len }
    }
}

/// How many of `len` bytes from `at` can be read, up to the first page that cannot.
#[inline(never)]
pub(crate) fn readable_to(at: *const u8, len: usize) -> usize {
    first_bad(at.addr(), len, |offset| load(at.wrapping_add(offset)))
}

/// As [`readable_to`], for bytes to be overwritten.
///
/// # Safety
/// As [`writable`].
#[inline(never)]
pub(crate) unsafe fn writable_to(at: *mut u8, len: usize) -> usize {
    // SAFETY: by contract.
    first_bad(at.addr(), len, |offset| unsafe {
        store(at.wrapping_add(offset))
    })
}

/// Touches the first byte of each page in a range; the offset at which that failed, or `len`.
#[inline(always)]
fn first_bad(at: usize, len: usize, touch: impl Fn(usize) -> bool) -> usize {
    let mut offset = 0;
    while offset < len {
        if !touch(offset) {
            return offset;
        }
        offset += PAGE - at.wrapping_add(offset) % PAGE;
    }
    len
}

/// What stands at `at`; `None` if it cannot be read.
///
/// # Safety
/// Any bytes are a `T`.
#[inline(always)]
pub(crate) unsafe fn read<T: Copy>(at: *const T) -> Option<T> {
    if !readable(at.cast(), size_of::<T>()) {
        return None;
    }
    // SAFETY: just found readable; any bytes are a `T`.
    Some(unsafe { at.read_unaligned() })
}

/// Overwrites what stands at `at`; false if it cannot be written.
///
/// # Safety
/// The program gave the place to be overwritten.
#[inline(always)]
pub(crate) unsafe fn write<T: Copy>(at: *mut T, value: T) -> bool {
    // SAFETY: by contract.
    let good = unsafe { writable(at.cast(), size_of::<T>()) };
    if good {
        // SAFETY: just found writable.
        unsafe { at.write_unaligned(value) };
    }
    good
}

/// An instruction that may fault and where to go on then, as distances from the words themselves.
#[repr(C)]
struct Exception {
    fault: i32,
    landing: i32,
}

// The linker's names for the ends of the section, which are nobody else's.
core::arch::global_asm!(
    ".hidden __start_viaduct_extable",
    ".hidden __stop_viaduct_extable"
);
unsafe extern "C" {
    #[link_name = "__start_viaduct_extable"]
    static FIRST: Exception;
    #[link_name = "__stop_viaduct_extable"]
    static END: Exception;
}

/// Where to go on after a fault of the instruction at `fault`; `None` if that is none of ours.
pub(crate) fn landing(fault: usize) -> Option<usize> {
    let (first, end) = (&raw const FIRST, &raw const END);
    let count = (end.addr() - first.addr()) / size_of::<Exception>();
    let absolute = |word: &i32| {
        core::ptr::from_ref(word)
            .addr()
            .wrapping_add_signed(*word as isize)
    };
    (0..count).find_map(|i| {
        // SAFETY: i is below the number of entries between the two symbols.
        let entry = unsafe { &*first.add(i) };
        (absolute(&entry.fault) == fault).then(|| absolute(&entry.landing))
    })
}

/// Instructions of which those at label 2 and, if `$second` names it, label 3 may fault, with their
/// entries in the table.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! touch {
    ($instructions:literal, $second:literal, $($operands:tt)*) => {
        asm!(
            $instructions,
            ".pushsection viaduct_extable, \"aR\"",
            ".balign 4",
            ".long 2b - .",
            ".long {bad} - .",
            $second,
            ".popsection",
            $($operands)*
            bad = label { return false },
            options(nostack),
        )
    };
    ($instruction:literal, $($operands:tt)*) => { touch!($instruction, "", $($operands)*) };
}

/// Touches the byte at `at` by a load.
#[inline(always)]
fn load(at: *const u8) -> bool {
    // SAFETY: a load whose fault is caught; what it finds is not used.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        touch!("2: cmp byte ptr [{at}], 0", at = in(reg) at,);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        touch!("2: ldrb wzr, [{at}]", at = in(reg) at,);
    }
    let _ = at;
    true
}

/// Touches the last of `len` bytes, which are not none, by a load.
#[inline(always)]
fn load_last(at: *const u8, len: usize) -> bool {
    // SAFETY: as in `load`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        touch!("2: cmp byte ptr [{at} + {len} - 1], 0", at = in(reg) at, len = in(reg) len,);
    }
    #[cfg(target_arch = "x86_64")]
    return true;
    #[cfg(not(target_arch = "x86_64"))]
    load(at.wrapping_add(len - 1))
}

/// Touches the byte at `at` by a store of what it holds.
///
/// # Safety
/// As [`writable`].
#[inline(always)]
unsafe fn store(at: *mut u8) -> bool {
    // SAFETY: a store whose fault is caught, of a byte that is to be overwritten.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        touch!("2: or byte ptr [{at}], 0", at = in(reg) at,);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        touch!(
            "2: ldrb w9, [{at}]\n3: strb w9, [{at}]",
            ".long 3b - .\n.long {bad} - .",
            at = in(reg) at, out("w9") _,
        );
    }
    let _ = at;
    true
}

/// Touches the last of `len` bytes, which are not none, by a store of what it holds.
///
/// # Safety
/// As [`writable`].
#[inline(always)]
unsafe fn store_last(at: *mut u8, len: usize) -> bool {
    // SAFETY: as in `store`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        touch!("2: or byte ptr [{at} + {len} - 1], 0", at = in(reg) at, len = in(reg) len,);
    }
    #[cfg(target_arch = "x86_64")]
    return true;
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: by contract.
    unsafe {
        store(at.wrapping_add(len - 1))
    }
}

#[cfg(test)]
mod tests {
    use core::ffi::c_int;

    use super::*;
    use crate::faults::install;

    /// Two pages, of which the second cannot be touched.
    fn pages(first: c_int) -> *mut u8 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping.
        let base =
            unsafe { libc::mmap(core::ptr::null_mut(), 8192, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: the first page of the mapping.
        assert_eq!(unsafe { libc::mprotect(base, 4096, first) }, 0);
        base.cast()
    }

    #[test]
    fn touches_say_what_is_there() {
        install();
        // SAFETY: nobody else uses the pages.
        let writable = |at: *mut u8, len| unsafe { writable(at, len) };
        // SAFETY: as above.
        let writable_to = |at: *mut u8, len| unsafe { writable_to(at, len) };
        let both = pages(libc::PROT_READ | libc::PROT_WRITE);
        let end = both.wrapping_add(4096);
        assert!(readable(both, 4096) && writable(both, 4096));
        assert!(readable(end, 0) && writable(end, 0));
        assert!(!readable(both, 4097) && !writable(both, 4097));
        assert!(!readable(end, 1) && !writable(end, 1));
        assert!(!readable(end.wrapping_sub(1), 2));
        assert!(!writable(end.wrapping_sub(1), 2));
        assert_eq!(readable_to(both.wrapping_add(96), 8000), 4000);
        assert_eq!(writable_to(both.wrapping_add(96), 8000), 4000);
        let only_read = pages(libc::PROT_READ);
        assert!(readable(only_read, 4096) && !writable(only_read, 1));
        for nowhere in [0, 8, 0x7fff_ffff_f000, 1 << 47, 1 << 62, usize::MAX - 9] {
            let at = core::ptr::without_provenance_mut(nowhere);
            assert!(!readable(at, 5), "{nowhere:#x}");
            assert!(!writable(at, 5), "{nowhere:#x}");
        }
    }

    #[test]
    fn touching_changes_nothing() {
        install();
        let page = pages(libc::PROT_READ | libc::PROT_WRITE);
        for offset in 0..4096 {
            // SAFETY: inside the page.
            unsafe { page.add(offset).write(offset.to_le_bytes()[0]) };
        }
        // SAFETY: nobody else uses the page.
        assert!(unsafe { writable(page, 4096) });
        for offset in 0..4096 {
            // SAFETY: inside the page.
            assert_eq!(unsafe { page.add(offset).read() }, offset.to_le_bytes()[0]);
        }
    }

    #[test]
    fn values_are_read_and_written_or_not() {
        install();
        type Word = [u8; 8];
        let page = pages(libc::PROT_READ | libc::PROT_WRITE);
        let last = page.wrapping_add(4096 - 8).cast::<Word>();
        let across = page.wrapping_add(4096 - 4).cast::<Word>();
        // SAFETY: nobody else uses the pages.
        let write = |at, value| unsafe { write(at, value) };
        // SAFETY: any bytes are bytes.
        let read = |at| unsafe { read::<Word>(at) };
        assert!(write(last, *b"01234567"));
        assert!(!write(across, *b"89abcdef"));
        assert_eq!(read(across), None);
        assert_eq!(read(last), Some(*b"01234567"));
    }

    #[test]
    fn a_file_that_ends_early_is_no_memory() {
        install();
        // SAFETY: a terminated name.
        let file = unsafe { libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_SHARED,
                file,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        assert!(!readable(base.cast(), 1), "SIGBUS");
    }
}
