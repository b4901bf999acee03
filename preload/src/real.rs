//! libc's own functions, below our hooks.
//!
//! All are looked up once, in the constructor. A hook that runs earlier (another library's
//! constructor) looks its function up itself.

#![expect(unsafe_code, reason = "calls through function pointers found by dlsym")]

use core::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, off_t, pid_t, pollfd,
    sigaction as SigAction, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval,
};

macro_rules! originals {
    ($($(#[$attr:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)+) => {
        /// Looks every function up.
        pub(crate) fn resolve_all() {
            $( symbols::$name.resolve(); )+
        }

        #[expect(non_upper_case_globals, reason = "named after the functions")]
        mod symbols {
            use super::Symbol;
            $( pub(super) static $name: Symbol = Symbol::new(
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a symbol name"),
                });
            )+
        }

        $(
            $(#[$attr])*
            /// libc's function of this name.
            ///
            /// # Safety
            /// As the function itself.
            #[inline(always)]
            pub(crate) unsafe fn $name($($arg: $type),*) -> $ret {
                let address = symbols::$name.address();
                if address.is_null() {
                    crate::errno::set(libc::ENOSYS);
                    return -1 as $ret;
                }
                type Function = unsafe extern "C-unwind" fn($($type),*) -> $ret;
                // SAFETY: the symbol of this name has this signature.
                let function = unsafe { core::mem::transmute::<*mut c_void, Function>(address) };
                // SAFETY: by the caller.
                unsafe { function($($arg),*) }
            }
        )+
    };
}

/// Addresses of functions for code that jumps to them.
#[cfg(all(target_arch = "x86_64", not(test)))]
#[expect(non_snake_case, reason = "named after the functions")]
pub(crate) mod addresses {
    use super::{Symbol, c_void};

    macro_rules! address_of {
        ($($name:ident = $text:literal),+) => {
            $(
                /// libc's function of this name.
                pub(crate) extern "C" fn $name() -> *mut c_void {
                    static SYMBOL: Symbol = Symbol::new($text);
                    SYMBOL.address()
                }
            )+
        };
    }
    address_of!(
        execl = c"execl",
        execlp = c"execlp",
        execle = c"execle",
        vfork = c"vfork",
        posix_spawn = c"posix_spawn",
        posix_spawnp = c"posix_spawnp",
        system = c"system",
        popen = c"popen",
        longjmp = c"longjmp",
        _longjmp = c"_longjmp",
        siglongjmp = c"siglongjmp",
        __longjmp_chk = c"__longjmp_chk",
        _Fork = c"_Fork",
        __vfork = c"__vfork",
        dprintf = c"dprintf",
        vdprintf = c"vdprintf",
        __dprintf_chk = c"__dprintf_chk",
        __vdprintf_chk = c"__vdprintf_chk",
        aio_read = c"aio_read",
        aio_write = c"aio_write",
        aio_read64 = c"aio_read64",
        aio_write64 = c"aio_write64",
        lio_listio = c"lio_listio",
        lio_listio64 = c"lio_listio64"
    );

    macro_rules! address_found_from_caller {
        ($($name:ident = $text:literal),+) => {
            $(
                /// The function of this name that `caller` would have found.
                pub(crate) extern "C" fn $name(caller: *const c_void) -> *mut c_void {
                    static SYMBOL: Symbol = Symbol::new($text);
                    SYMBOL.address_for(caller)
                }
            )+
        };
    }
    address_found_from_caller!(
        io_uring_submit = c"io_uring_submit",
        io_uring_submit_and_wait = c"io_uring_submit_and_wait",
        io_uring_submit_and_wait_timeout = c"io_uring_submit_and_wait_timeout",
        io_uring_submit_and_wait_min_timeout = c"io_uring_submit_and_wait_min_timeout",
        io_uring_submit_and_wait_reg = c"io_uring_submit_and_wait_reg",
        io_uring_submit_and_get_events = c"io_uring_submit_and_get_events",
        io_uring_wait_cqes = c"io_uring_wait_cqes",
        io_uring_wait_cqes_min_timeout = c"io_uring_wait_cqes_min_timeout",
        io_uring_wait_cqe_timeout = c"io_uring_wait_cqe_timeout",
        io_uring_register_files = c"io_uring_register_files",
        io_uring_register_files_tags = c"io_uring_register_files_tags",
        io_uring_register_files_update = c"io_uring_register_files_update",
        io_uring_register_files_update_tag = c"io_uring_register_files_update_tag",
        io_submit = c"io_submit"
    );
}

/// Stands for a function that the process does not have, of those that answer a negative number.
#[cfg(all(target_arch = "x86_64", not(test)))]
extern "C" fn not_there() -> c_int {
    -libc::ENOSYS
}

/// One function.
struct Symbol {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    #[inline(always)]
    fn address(&self) -> *mut c_void {
        let address = self.address.load(Ordering::Relaxed);
        if address.is_null() {
            self.resolve()
        } else {
            address
        }
    }

    /// As `address`, of a function that not every process has. One that came with a library of the caller's own
    /// (`dlopen` with `RTLD_LOCAL`) is found from there.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    fn address_for(&self, caller: *const c_void) -> *mut c_void {
        let address = self.address();
        if !address.is_null() {
            return address;
        }
        let found = self.beside(caller);
        if found.is_null() {
            return not_there as *mut c_void;
        }
        self.address.store(found, Ordering::Relaxed);
        found
    }

    /// The symbol as the object at `caller` and its dependencies have it. The object then stays for good.
    #[cfg(all(target_arch = "x86_64", not(test)))]
    #[cold]
    fn beside(&self, caller: *const c_void) -> *mut c_void {
        // SAFETY: zero is a valid Dl_info.
        let mut object: libc::Dl_info = unsafe { core::mem::zeroed() };
        // SAFETY: any address; the place is ours.
        if unsafe { libc::dladdr(caller, &raw mut object) } == 0 {
            return core::ptr::null_mut();
        }
        // SAFETY: the name of a loaded object, terminated.
        let handle = unsafe { libc::dlopen(object.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if handle.is_null() {
            return handle;
        }
        // SAFETY: a valid handle and a terminated name.
        unsafe { libc::dlsym(handle, self.name.as_ptr()) }
    }

    #[cold]
    fn resolve(&self) -> *mut c_void {
        // SAFETY: a valid handle and a terminated name.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(address, Ordering::Relaxed);
        address
    }
}

originals! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int;
    fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int;
    fn accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t;
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t;
    fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t;
    fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t;
    fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    fn recvfrom(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int, addr: *mut sockaddr, alen: *mut socklen_t) -> ssize_t;
    fn sendto(fd: c_int, buf: *const c_void, len: size_t, flags: c_int, addr: *const sockaddr, alen: socklen_t) -> ssize_t;
    fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t;
    fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t;
    fn recvmmsg(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int, timeout: *mut timespec) -> c_int;
    fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int) -> c_int;
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t;
    fn __recv_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    fn __recvfrom_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int, addr: *mut sockaddr, alen: *mut socklen_t) -> ssize_t;
    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int;
    fn __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int;
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    fn select(count: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *mut timeval) -> c_int;
    fn pselect(count: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    fn epoll_create(size: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int;
    fn epoll_pwait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    fn epoll_pwait2(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    fn fcntl(fd: c_int, command: c_int, arg: usize) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn dup2(old: c_int, new: c_int) -> c_int;
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fn fork() -> pid_t;
    fn _exit(status: c_int) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
    fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int;
    fn fclose(stream: *mut c_void) -> c_int;
    fn pclose(stream: *mut c_void) -> c_int;
    fn creat(path: *const c_char, mode: usize) -> c_int;
    fn creat64(path: *const c_char, mode: usize) -> c_int;
    fn eventfd(count: u32, flags: c_int) -> c_int;
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int;
    fn memfd_create(name: *const c_char, flags: u32) -> c_int;
    fn inotify_init() -> c_int;
    fn inotify_init1(flags: c_int) -> c_int;
    fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int;
    fn splice(input: c_int, in_offset: *mut i64, out: c_int, out_offset: *mut i64, len: size_t, flags: u32) -> ssize_t;
    fn unshare(flags: c_int) -> c_int;
    fn close_range(first: u32, last: u32, flags: c_int) -> c_int;
    fn fdopen(fd: c_int, mode: *const c_char) -> isize;
    fn sigaction(signum: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int;
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int;
    fn execvpe(file: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn fexecve(fd: c_int, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn execveat(dir: c_int, path: *const c_char, argv: *const *const c_char, env: *const *const c_char, flags: c_int) -> c_int;
    fn daemon(stay: c_int, keep: c_int) -> c_int;
    fn forkpty(main: *mut c_int, name: *mut c_char, terminal: *const c_void, size: *const c_void) -> pid_t;
    fn pread(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t;
    fn open(path: *const c_char, flags: c_int, mode: usize) -> c_int;
    fn open64(path: *const c_char, flags: c_int, mode: usize) -> c_int;
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: usize) -> c_int;
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: usize) -> c_int;
    fn __open_2(path: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn mkstemp(template: *mut c_char) -> c_int;
    fn mkstemp64(template: *mut c_char) -> c_int;
    fn mkostemp(template: *mut c_char, flags: c_int) -> c_int;
    fn mkostemp64(template: *mut c_char, flags: c_int) -> c_int;
    fn shm_open(name: *const c_char, flags: c_int, mode: usize) -> c_int;
    fn posix_openpt(flags: c_int) -> c_int;
    fn pidfd_open(pid: pid_t, flags: u32) -> c_int;
    fn fanotify_init(flags: u32, event_flags: u32) -> c_int;
    fn pipe(fds: *mut c_int) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int;
    fn preadv2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
}
