//! Why a connection is not, or no longer, on the rings.

#![forbid(unsafe_code)]

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $text:literal;)+) => {
        /// Why a connection is not (or no longer) accelerated. The codes are stable: they stand in
        /// shared memory, in the control protocol and in the output of the tools.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Reason {
            /// All reasons, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable number.
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// The reason behind a number.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name that the tools print.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// The peer list does not name the far address.
    NotPeer = 1, "not_peer";
    /// An entry of the peer list excludes the far address.
    Excluded = 2, "excluded";
    /// VIADUCT_DISABLE is set.
    Disabled = 3, "disabled";
    /// Not a TCP stream socket over IPv4 or IPv6 (MPTCP and SCTP included).
    NotTcp = 4, "not_tcp";
    /// The connection is not (or no longer) established.
    NotEstablished = 5, "not_established";
    /// No daemon answers.
    NoDaemon = 6, "no_daemon";
    /// The daemon speaks another version.
    Version = 7, "version";
    /// The daemon could not prove the socket's identity through the kernel.
    Identity = 8, "identity";
    /// More than one registration claims the same connection.
    Ambiguous = 9, "ambiguous";
    /// The two ends disagree on bytes, segment size or window scale: something stands between them.
    Mismatch = 10, "mismatch";
    /// The two ends do not trust each other (other user, user namespace or tenant).
    Untrusted = 11, "untrusted";
    /// A quota of the daemon is used up.
    Quota = 12, "quota";
    /// The process is short of file descriptors.
    FdLimit = 13, "fd_limit";
    /// The process is short of mappings or address space.
    MapLimit = 14, "map_limit";
    /// More connections than the process has slots.
    SlotLimit = 15, "slot_limit";
    /// /proc is not mounted or not readable.
    NoProc = 16, "no_proc";
    /// The socket is connected to itself.
    SelfConnected = 17, "self_connected";
    /// An upper layer protocol (kTLS, ...), TCP_REPAIR or a socket filter is in use.
    SocketOption = 18, "socket_option";
    /// Urgent data was sent or asked for.
    OutOfBand = 19, "out_of_band";
    /// SO_PEEK_OFF is set.
    PeekOffset = 20, "peek_offset";
    /// SO_ZEROCOPY or MSG_ZEROCOPY is in use.
    ZeroCopy = 21, "zerocopy";
    /// The descriptor is read or written by libc itself (fdopen, dprintf, aio_read).
    Stdio = 22, "stdio";
    /// The descriptor was passed to another process (SCM_RIGHTS).
    FdPassed = 23, "fd_passed";
    /// The connection was inherited over exec.
    Exec = 24, "exec";
    /// splice, tee or vmsplice was used on the socket.
    Splice = 25, "splice";
    /// The program waits in a way that the library does not see.
    UnseenWaiter = 26, "unseen_waiter";
    /// The epoll set is nested, polled or shared over fork.
    SharedEpoll = 27, "shared_epoll";
    /// io_uring is set up in the process.
    IoUring = 28, "io_uring";
    /// The daemon could not make the connection's memory.
    NoMemory = 29, "no_memory";
    /// The connection was shared over fork before it was upgraded.
    Forked = 30, "forked";
    /// The far end has not registered (no library there, or a short connection).
    Unpaired = 31, "unpaired";
    /// The connection is younger than VIADUCT_UPGRADE_AFTER asks for.
    Young = 32, "young";
    /// More sets or threads wait on the connection than it has wait entries for.
    Waiters = 33, "waiters";
    /// The library could not be initialised in this process.
    Uninitialised = 34, "uninitialised";
    /// `viaduct revoke` took the connection back to TCP.
    Revoked = 35, "revoked";
    /// The program has set a seccomp filter for itself.
    Sandboxed = 36, "sandboxed";
    /// No backend answers at the far address.
    Unreachable = 37, "unreachable";
    /// The daemon took the connection back to TCP before it left; it may come back with the next one.
    Drained = 38, "drained";
    /// A thread of the program has a descriptor table of its own.
    PrivateDescriptors = 39, "private_descriptors";
    /// The far end wrote nonsense into the connection memory.
    RingCorrupt = 40, "ring_corrupt";
    /// Bytes came through the kernel after the far end had switched: a writer that nobody saw.
    UnseenWriter = 41, "unseen_writer";
    /// A holder of the connection died in the middle of an operation.
    HolderDied = 42, "holder_died";
    /// The far end broke the connection.
    FarEnd = 43, "far_end";
    /// The link to the far host was silent for too long.
    LinkTimeout = 44, "link_timeout";
    /// The far host, or its backend, has started anew and knows nothing of the connection.
    LinkReset = 45, "link_reset";
}

impl Reason {
    /// Whether a connection that was broken for this reason has timed out (ETIMEDOUT); the others were
    /// reset (ECONNRESET).
    pub const fn is_timeout(self) -> bool {
        matches!(self, Self::LinkTimeout)
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_fit_the_counters() {
        let mut names = std::collections::HashSet::new();
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert!((reason.code() as usize) < crate::counters::REASONS);
            assert!(names.insert(reason.name()), "{reason} twice");
        }
        assert_eq!(Reason::from_code(0), None);
    }
}
