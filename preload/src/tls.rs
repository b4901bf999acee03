//! What a thread keeps: const-initialised, without destructors, so that it can be used from signal
//! handlers, during thread exit and after fork.

#![expect(
    unsafe_code,
    reason = "the restartable-sequence area is read through the thread pointer"
)]

use core::cell::Cell;
use core::sync::atomic::{AtomicIsize, Ordering};

thread_local! {
    static TOKEN: Cell<u32> = const { Cell::new(0) };
    static INTERRUPTS: Cell<u32> = const { Cell::new(0) };
    static UNFINISHED: Cell<u64> = const { Cell::new(0) };
    static NOTE: Cell<u32> = const { Cell::new(0) };
    static DEFERRED: Cell<u32> = const { Cell::new(0) };
    static SHUTDOWN: Cell<Option<(i32, i32)>> = const { Cell::new(None) };
}

/// A number for the calling thread, unique among the living threads of the machine's pid namespace,
/// never 0 and below 2^31: the owner word of a direction lock.
#[inline(always)]
pub(crate) fn token() -> u32 {
    let token = TOKEN.get();
    if token == 0 { fresh_token() } else { token }
}

/// [`token`], if the thread has ever asked for it.
pub(crate) fn known_token() -> Option<u32> {
    Some(TOKEN.get()).filter(|token| *token != 0)
}

/// The connection for which something is left to do when the thread has freed its lock: its index.
pub(crate) fn deferred() -> Option<u32> {
    DEFERRED.get().checked_sub(1)
}

/// See [`deferred`].
pub(crate) fn defer(index: Option<u32>) {
    DEFERRED.set(index.map_or(0, |index| index + 1));
}

/// A shutdown that is to be done then: the descriptor, and how. With one before it, both are.
pub(crate) fn defer_shutdown(fd: i32, how: i32) {
    let both = SHUTDOWN.get().is_some_and(|(_, before)| before != how);
    let how = if both { libc::SHUT_RDWR } else { how };
    SHUTDOWN.set(Some((fd, how)));
}

/// The shutdown that is to be done.
pub(crate) fn take_shutdown() -> Option<(i32, i32)> {
    SHUTDOWN.take()
}

#[cold]
fn fresh_token() -> u32 {
    let token = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    TOKEN.set(token);
    token
}

/// In a forked child: this thread is another one now.
pub(crate) fn after_fork() {
    TOKEN.set(0);
    UNFINISHED.set(0);
    NOTE.set(0);
    DEFERRED.set(0);
    SHUTDOWN.set(None);
}

/// The thread's place in the table of [`crate::pins`], plus one; 0: none yet.
pub(crate) fn note() -> u32 {
    NOTE.get()
}

/// See [`note`].
pub(crate) fn set_note(number: u32) {
    NOTE.set(number);
}

/// How many signal handlers without SA_RESTART have run on this thread.
pub(crate) fn interrupts() -> u32 {
    INTERRUPTS.get()
}

/// A signal handler without SA_RESTART runs.
pub(crate) fn count_interrupt() {
    INTERRUPTS.set(INTERRUPTS.get().wrapping_add(1));
}

/// Remembers a wait that has begun (0: none), so that the thread's next wait can clean up after one
/// that was left by siglongjmp. Returns what was remembered before.
pub(crate) fn swap_unfinished(wait: u64) -> u64 {
    UNFINISHED.replace(wait)
}

/// Offset of the rseq area from the thread pointer; 0 if glibc did not register one.
static RSEQ_OFFSET: AtomicIsize = AtomicIsize::new(0);

/// Finds glibc's rseq area (glibc 2.35 and later export its place).
pub(crate) fn find_rseq() {
    // SAFETY: a terminated name; the symbols are plain constants of libc.
    let (offset, size) = unsafe {
        (
            libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>(),
            libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>(),
        )
    };
    if offset.is_null() || size.is_null() {
        return;
    }
    // SAFETY: both symbols were found; their types are ptrdiff_t and unsigned int.
    let (offset, size) = unsafe { (*offset, *size) };
    if size != 0 {
        RSEQ_OFFSET.store(offset, Ordering::Relaxed);
    }
}

/// The processor this thread runs on, plus one; 0 if unknown. One load: the kernel keeps it current.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        let offset = RSEQ_OFFSET.load(Ordering::Relaxed);
        if offset != 0 {
            let cpu: u32;
            // SAFETY: glibc registered `struct rseq` at this offset; cpu_id is its second word.
            unsafe {
                core::arch::asm!(
                    "mov {cpu:e}, fs:[{offset} + 4]",
                    cpu = out(reg) cpu,
                    offset = in(reg) offset,
                    options(nostack, readonly, preserves_flags)
                );
            }
            // Values above this range say "not registered".
            if cpu < 0x10000 {
                return cpu + 1;
            }
        }
    }
    0
}
