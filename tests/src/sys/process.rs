//! Processes, threads and signals.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::ffi::CStr;
use core::mem::{MaybeUninit, zeroed};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use libc::{c_int, itimerval, sigset_t, timeval};

use super::descriptor::dup2;
use super::{Ret, ret};

/// fork(2): 0 in the child. The test has one thread when it forks.
pub fn fork() -> Ret {
    // SAFETY: the caller has one thread.
    ret(unsafe { libc::fork() })
}

/// Ends the process without destructors, as a forked child does.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: no pointers.
    unsafe { libc::_exit(code) }
}

/// Becomes `cat` with `fd` as its standard input and output; false if that cannot be done.
pub fn exec_cat(fd: c_int) -> bool {
    exec_on(c"/bin/cat", fd)
}

/// Becomes the program at `path` with `fd` as its standard input and output; false if that cannot be done.
pub fn exec_on(path: &CStr, fd: c_int) -> bool {
    let (_, _) = (dup2(fd, 0), dup2(fd, 1));
    let arguments = [path.as_ptr(), null()];
    // SAFETY: terminated strings in a terminated list.
    unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
    false
}

/// As [`exec`], by execveat.
pub fn exec_at(path: &CStr, argument: &CStr) -> bool {
    unsafe extern "C" {
        fn execveat(
            dir: c_int,
            path: *const libc::c_char,
            arguments: *const *const libc::c_char,
            environment: *const *const libc::c_char,
            flags: c_int,
        ) -> c_int;
        static environ: *const *const libc::c_char;
    }
    let arguments = [path.as_ptr(), argument.as_ptr(), null()];
    // SAFETY: one thread, which does not change the environment meanwhile.
    let environment = unsafe { environ };
    let list = arguments.as_ptr();
    // SAFETY: terminated strings in terminated lists.
    unsafe { execveat(libc::AT_FDCWD, path.as_ptr(), list, environment, 0) };
    false
}

/// daemon(3), which keeps directory and standard descriptors: the parent exits, the child returns.
pub fn daemon() -> Ret {
    // SAFETY: the caller has one thread.
    ret(unsafe { libc::daemon(1, 1) })
}

/// Becomes an ordinary user and group for good.
pub fn become_nobody() -> Ret {
    const NOBODY: u32 = 65_534;
    // SAFETY: no pointers.
    ret(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) })?;
    // SAFETY: no pointers.
    ret(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) })
}

/// chroot(2), and into it.
pub fn confine(path: &CStr) -> Ret {
    // SAFETY: a terminated string.
    ret(unsafe { libc::chroot(path.as_ptr()) })?;
    // SAFETY: a terminated string.
    ret(unsafe { libc::chdir(c"/".as_ptr()) })
}

/// unshare(2).
pub fn unshare(what: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::unshare(what) })
}

/// Becomes another program, which inherits every descriptor that is not close-on-exec; false if that
/// cannot be done.
pub fn exec(path: &CStr, argument: &CStr) -> bool {
    let arguments = [path.as_ptr(), argument.as_ptr(), null()];
    // SAFETY: terminated strings in a terminated list.
    unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
    false
}

/// SIGKILL.
pub fn kill(pid: Ret) -> Ret {
    let pid = pid.ok().and_then(|pid| libc::pid_t::try_from(pid).ok());
    // SAFETY: no pointers.
    ret(unsafe { libc::kill(pid.unwrap_or(0), libc::SIGKILL) })
}

/// The calling thread, for [`signal_thread`].
pub fn this_thread() -> libc::pthread_t {
    // SAFETY: no arguments.
    unsafe { libc::pthread_self() }
}

/// The calling thread's number in the kernel.
pub fn thread_number() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Whether a thread of this process sleeps in the kernel.
pub fn is_asleep(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    // The state follows the name, which may hold anything.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" S"))
    })
}

/// Sends a signal to a thread that has not been joined.
pub fn signal_thread(thread: libc::pthread_t, signal: c_int) {
    // SAFETY: the thread has not been joined, so its handle is valid.
    unsafe { libc::pthread_kill(thread, signal) };
}

/// Waits for a child: `exit N` or `signal N`.
pub fn wait_for(pid: Ret) -> String {
    let Ok(pid) = pid else {
        return "no child".to_owned();
    };
    let mut status = 0;
    let pid = libc::pid_t::try_from(pid).unwrap_or(-2);
    loop {
        // SAFETY: one int.
        let rc = ret(unsafe { libc::waitpid(pid, &raw mut status, 0) });
        match rc {
            Err(libc::EINTR) => {}
            Err(error) => return format!("waitpid: {error}"),
            Ok(_) if libc::WIFEXITED(status) => {
                return format!("exit {}", libc::WEXITSTATUS(status));
            }
            Ok(_) => return format!("signal {}", libc::WTERMSIG(status)),
        }
    }
}

/// Kills a process group of ours.
pub fn kill_group(leader: u32) {
    if let Ok(group) = libc::pid_t::try_from(leader) {
        // SAFETY: no pointers; the leader is our child and not yet waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// system(3).
pub fn system(command: &CStr) -> Ret {
    // SAFETY: a text that ends.
    ret(unsafe { libc::system(command.as_ptr()) })
}

/// popen(3) for reading, and pclose(3).
pub fn popen(command: &CStr) -> Ret {
    // SAFETY: texts that end.
    let stream = unsafe { libc::popen(command.as_ptr(), c"r".as_ptr()) };
    if stream.is_null() {
        return Err(super::errno());
    }
    // SAFETY: the stream that was just opened.
    ret(unsafe { libc::pclose(stream) })
}

/// Signals caught by [`catch`], all threads together.
static CAUGHT: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_signal(_signal: c_int) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
}

/// Catches `signal` and counts it.
pub fn catch(signal: c_int, flags: c_int) -> Ret {
    CAUGHT.store(0, Ordering::SeqCst);
    disposition(signal, counter(), flags)
}

/// What a handler was told of its signal: code, whether it came from this process, user.
static TOLD: [AtomicI64; 3] = [const { AtomicI64::new(-1) }; 3];

extern "C" fn note_signal(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO such a structure.
    let info = unsafe { &*info };
    // SAFETY: any bytes are numbers.
    let (process, user) = unsafe { (info.si_pid(), info.si_uid()) };
    // SAFETY: no memory.
    let own = unsafe { libc::getpid() };
    TOLD[0].store(i64::from(info.si_code), Ordering::SeqCst);
    TOLD[1].store(i64::from(process == own), Ordering::SeqCst);
    TOLD[2].store(i64::from(user), Ordering::SeqCst);
}

/// Catches `signal` and notes what the handler is told.
pub fn catch_told(signal: c_int) -> Ret {
    for word in &TOLD {
        word.store(-1, Ordering::SeqCst);
    }
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) = note_signal;
    disposition(signal, handler as *const () as usize, libc::SA_SIGINFO)
}

/// See [`catch_told`].
pub fn told() -> String {
    format!(
        "{:?}",
        TOLD.each_ref().map(|word| word.load(Ordering::SeqCst))
    )
}

/// The handler that counts.
pub(super) fn counter() -> usize {
    let handler: extern "C" fn(c_int) = count_signal;
    handler as *const () as usize
}

/// Default handling of `signal`, or ignoring it.
pub fn uncatch(signal: c_int, ignore: bool) -> Ret {
    disposition(
        signal,
        if ignore { libc::SIG_IGN } else { libc::SIG_DFL },
        0,
    )
}

fn disposition(signal: c_int, handler: usize, flags: c_int) -> Ret {
    // SAFETY: zero is a valid action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: a local action; the handler only counts.
    ret(unsafe { libc::sigaction(signal, &raw const action, null_mut()) })
}

/// Whether `signal` is handled as [`catch`] with these flags said.
pub fn is_caught(signal: c_int, flags: c_int) -> bool {
    // SAFETY: zero is a valid action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: a local action.
    let rc = unsafe { libc::sigaction(signal, null(), &raw mut action) };
    let handler: extern "C" fn(c_int) = count_signal;
    // SA_RESTORER is libc's own.
    rc == 0
        && action.sa_sigaction == handler as *const () as usize
        && action.sa_flags & !0x0400_0000 == flags
}

/// How often a caught signal has come.
pub fn caught() -> u32 {
    CAUGHT.load(Ordering::SeqCst)
}

/// SIGALRM after `first_ms`, then every `every_ms` (0: once). Both 0: never.
pub fn alarm(first_ms: i64, every_ms: i64) {
    let time = |ms: i64| timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let timer = itimerval {
        it_interval: time(every_ms),
        it_value: time(first_ms),
    };
    // SAFETY: a local timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut()) };
}

/// A set with one signal in it, or none.
pub fn signal_set(signal: Option<c_int>) -> sigset_t {
    let mut set = MaybeUninit::<sigset_t>::zeroed();
    // SAFETY: initialises a set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    if let Some(signal) = signal {
        // SAFETY: an initialised set.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// Blocks or unblocks one signal in this thread.
pub fn mask(signal: c_int, block: bool) {
    let set = signal_set(Some(signal));
    let how = if block {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a local set.
    unsafe { libc::pthread_sigmask(how, &raw const set, null_mut()) };
}

/// Whether a signal is blocked in this thread.
pub fn is_masked(signal: c_int) -> bool {
    let mut set = signal_set(None);
    // SAFETY: a local set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, null(), &raw mut set) };
    // SAFETY: a local set, which was just written.
    unsafe { libc::sigismember(&raw const set, signal) == 1 }
}

/// Whether a signal has come that is blocked.
pub fn is_pending(signal: c_int) -> bool {
    let mut set = signal_set(None);
    // SAFETY: a local set.
    unsafe { libc::sigpending(&raw mut set) };
    // SAFETY: a local set, which was just written.
    unsafe { libc::sigismember(&raw const set, signal) == 1 }
}
