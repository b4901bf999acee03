//! `libviaduct.so`: unmodified socket programs over rings, by `LD_PRELOAD`.
//!
//! The application's descriptor is a kernel TCP socket from birth to close. The library watches
//! connections to peers, registers those that last with the local daemon, and moves each direction
//! from the kernel to a shared-memory ring at an exact byte. Everything else passes straight to libc.
//!
//! * [`hooks`]: every exported symbol, a few lines each: look the descriptor up, call an operation.
//! * [`ops`]: the operations: sending, receiving, readiness, life of descriptors.
//! * [`real`]: libc's own functions. [`tls`]: what a thread keeps. [`user`]: the program's buffers.
//! * [`fds`]: descriptor number to connection. [`conn`]: connections of this process.
//! * [`upgrade`]: registering, attaching, arming, switching. [`downgrade`]: back to TCP. [`renew`]: and on the
//!   rings again. [`kernel`]: the kernel's byte counts.
//! * [`control`]: the daemon's messages. [`contexts`]: waiting contexts and doorbells. [`wait`]:
//!   spinning and sleeping. [`kick`]: waking the far end. [`pins`]: which threads sleep on what.
//! * [`retire`]: stepping back before seccomp and for io_uring.
//! * [`config`] and [`init`]: the environment, read once. [`trace`]: VIADUCT_LOG. [`signals`]: EINTR or restart.
//! * [`probe`] and [`faults`]: bad addresses of the program are EFAULT.
//!
//! Rules of the house: no allocation, no lock of the process, no logging and no libc call that is
//! one of our own hooks on a data path; no lock held across a blocking call; errno untouched on
//! success; no frame with a destructor above a blocking libc call (`C-unwind`: cancellation and
//! siglongjmp pass through us).

#![expect(
    rustdoc::private_intra_doc_links,
    reason = "the library has no Rust interface: its documentation is for its developers"
)]
#![cfg_attr(
    test,
    expect(
        dead_code,
        unused_imports,
        reason = "the exported symbols that use it would interpose the test program's own libc calls"
    )
)]

mod config;
mod conn;
mod contexts;
mod control;
mod downgrade;
mod errno;
mod faults;
mod fds;
mod forsaken;
mod holders;
#[cfg(not(test))]
mod hooks;
mod init;
mod kernel;
mod kick;
mod lifecycle;
mod lull;
mod ops;
mod pins;
mod probe;
mod real;
mod registers;
mod relayed;
mod renew;
mod resend;
mod retire;
mod signals;
mod tls;
mod trace;
mod upgrade;
mod user;
mod wait;
