//! The operations behind the hooks.
//!
//! * [`recv`] and [`send`]: bytes. [`message`] and [`vector`]: bytes with more beside them.
//!   [`mod@file`]: sendfile and splice.
//! * [`ready`]: poll and select. [`epoll`]: epoll sets.
//! * [`options`]: ioctl, fcntl and socket options that concern the state of a connection.

pub(crate) mod epoll;
pub(crate) mod file;
pub(crate) mod lock;
pub(crate) mod message;
pub(crate) mod options;
pub(crate) mod ready;
pub(crate) mod recv;
pub(crate) mod send;
pub(crate) mod vector;
