//! What the kernel's TCP carried, asked past the library.

#![expect(
    unsafe_code,
    reason = "getsockopt by system call, not by libc's symbol"
)]

use std::io::{Error, Result};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Offset of `tcpi_bytes_received` in the kernel's `struct tcp_info`. Unlike the bytes that were
/// acknowledged it is never late.
const BYTES_RECEIVED: usize = 128;

/// Bytes received.
pub(crate) fn kernel_bytes(stream: &TcpStream) -> Result<u64> {
    let mut info = [0u8; 256];
    let mut length = libc::socklen_t::try_from(info.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getsockopt,
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(Error::last_os_error());
    }
    let bytes = info
        .get(BYTES_RECEIVED..BYTES_RECEIVED + 8)
        .and_then(|bytes| bytes.try_into().ok());
    Ok(bytes.map_or(0, u64::from_ne_bytes))
}
