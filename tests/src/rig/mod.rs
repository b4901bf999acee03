//! Real processes for end-to-end tests.
//!
//! * [`build`]: where the library and the daemon under test are.
//! * [`compiler`]: programs in C.
//! * [`daemon`]: a private daemon, and questions to it.
//! * [`guests`]: the daemons of a host and of two guests.
//! * [`held`]: one thread of a process, held up.
//! * [`linked`]: two daemons with a link between them.
//! * [`manager`]: what systemd is to a daemon.
//! * [`patience`]: how long a watcher has watched.
//! * [`program`]: programs, plain or under the library, with a watchdog.
//! * [`far`]: the far end of an accelerated connection, written against the protocol itself, so that
//!   a test can be as honest or as hostile as it likes.
//! * [`over`]: stopping a thread that works beside a test.
//!
//! Everything that a test starts is ended by process id when its handle is dropped.

pub mod build;
pub mod compiler;
pub mod daemon;
pub mod far;
pub mod guests;
pub mod held;
pub mod linked;
pub mod manager;
pub mod over;
pub mod patience;
pub mod program;
