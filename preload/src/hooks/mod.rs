//! Every exported symbol.
//!
//! A hook looks the descriptor up and either calls libc's function with the arguments as they came or
//! an operation. Two kinds of definitions:
//!
//! * Functions that never block are defined with redhook's `hook!`.
//! * Cancellation points and everything that may block are defined with `export!`: `extern
//!   "C-unwind"`, so that pthread_cancel and siglongjmp pass through our frames, which redhook's
//!   `extern "C"` with its catch would abort. Variadic functions take their arguments in fixed
//!   places, which is how the x86-64 and AArch64 ABIs pass them.

#![expect(
    unsafe_code,
    reason = "exported C symbols and calls of libc's own functions"
)]

/// Exports a function under its libc name.
macro_rules! export {
    ($(unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)+) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret $body
        )+
    };
}

/// The library's version, NUL-terminated, for tools that look at the file.
#[unsafe(no_mangle)]
static viaduct_version: [u8; VERSION.len()] = {
    let mut bytes = [0; VERSION.len()];
    bytes.copy_from_slice(VERSION.as_bytes());
    bytes
};

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

mod aliases;
mod data;
mod fd;
mod numbers;
#[macro_use]
mod out_of_sight;
mod process;
mod raw;
mod ready;
mod socket;
mod submitted;
