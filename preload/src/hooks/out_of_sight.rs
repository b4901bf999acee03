//! Functions of libc that read or write a descriptor by calls that no hook sees: formatted output without a
//! stream, and POSIX's asynchronous I/O, which other threads of libc do. The connection goes back to the
//! kernel before.

use core::ffi::c_int;

use crate::{lifecycle, probe};

/// Exports a function that goes on as the next one of its name in our place, after a call of `$before` with the first
/// arguments. As `export_in_place`, and for arguments in floating point as well. Whoever looks the next one up is told
/// the address that it returns to.
#[cfg(target_arch = "x86_64")]
macro_rules! export_after {
    ($before:path: $($name:ident),+) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C-unwind" fn $name() {
                core::arch::naked_asm!(
                    "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                    "sub rsp, 128",
                    "movups [rsp], xmm0", "movups [rsp + 16], xmm1",
                    "movups [rsp + 32], xmm2", "movups [rsp + 48], xmm3",
                    "movups [rsp + 64], xmm4", "movups [rsp + 80], xmm5",
                    "movups [rsp + 96], xmm6", "movups [rsp + 112], xmm7",
                    "call {before}",
                    "mov rdi, [rsp + 184]",
                    "call {real}",
                    "mov r11, rax",
                    "movups xmm0, [rsp]", "movups xmm1, [rsp + 16]",
                    "movups xmm2, [rsp + 32]", "movups xmm3, [rsp + 48]",
                    "movups xmm4, [rsp + 64]", "movups xmm5, [rsp + 80]",
                    "movups xmm6, [rsp + 96]", "movups xmm7, [rsp + 112]",
                    "add rsp, 128",
                    "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                    "jmp r11",
                    before = sym $before,
                    real = sym crate::real::addresses::$name,
                )
            }
        )+
    };
}

/// Elsewhere these functions are not seen.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! export_after {
    ($before:path: $($name:ident),+) => {};
}

export_after!(printing: dprintf, vdprintf, __dprintf_chk, __vdprintf_chk);

export_after!(submitting: aio_read, aio_write, aio_read64, aio_write64);

export_after!(submitting_all: lio_listio, lio_listio64);

extern "C" fn printing(fd: c_int) {
    if lifecycle::any_known() {
        lifecycle::to_stdio(fd);
    }
}

/// One request, which begins with its descriptor.
extern "C" fn submitting(request: *const c_int) {
    if !lifecycle::any_known() {
        return;
    }
    // SAFETY: any bytes are a number.
    if let Some(fd) = unsafe { probe::read(request) } {
        lifecycle::to_stdio(fd);
    }
}

/// A list of requests, of which some may be null.
extern "C" fn submitting_all(_mode: c_int, list: *const *const c_int, count: c_int) {
    if !lifecycle::any_known() {
        return;
    }
    for place in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: any bytes are an address.
        let Some(request) = (unsafe { probe::read(list.wrapping_add(place)) }) else {
            return;
        };
        submitting(request);
    }
}
