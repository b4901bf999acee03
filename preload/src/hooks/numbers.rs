//! Further functions that hand out numbers of descriptors: a number that was closed unseen is one of ours no
//! more; and one that duplicates a descriptor of another process, or of this one.

use core::ffi::{c_char, c_int, c_long};

use libc::pid_t;

use crate::{lifecycle, real};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

macro_rules! handing_out {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)+) => {
        export! {
            $(
                unsafe fn $name($($arg: $type),*) -> c_int {
                    // SAFETY: see the top of the file.
                    let fd = unsafe { real::$name($($arg),*) };
                    lifecycle::created(fd);
                    fd
                }
            )+
        }
    };
}

handing_out! {
    fn __open_2(path: *const c_char, flags: c_int);
    fn __open64_2(path: *const c_char, flags: c_int);
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int);
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int);
    fn mkstemp(template: *mut c_char);
    fn mkstemp64(template: *mut c_char);
    fn mkostemp(template: *mut c_char, flags: c_int);
    fn mkostemp64(template: *mut c_char, flags: c_int);
    fn shm_open(name: *const c_char, flags: c_int, mode: usize);
    fn posix_openpt(flags: c_int);
    fn pidfd_open(pid: pid_t, flags: u32);
    fn fanotify_init(flags: u32, event_flags: u32);
}

redhook::hook! {
    unsafe fn pidfd_getfd(process: c_int, target: c_int, flags: u32) -> c_int => viaduct_pidfd_getfd {
        let [process, target] = [process, target].map(|fd| fd.cast_unsigned() as usize);
        // By number: libc has the function only since 2.36.
        // SAFETY: no pointers.
        let fd = unsafe { real::syscall(libc::SYS_pidfd_getfd, process, target, flags as usize, 0, 0, 0) };
        fetched(fd)
    }
}

fn fetched(fd: c_long) -> c_int {
    let fd = c_int::try_from(fd).unwrap_or(-1);
    if fd >= 0 {
        lifecycle::fetched(fd);
    }
    fd
}
