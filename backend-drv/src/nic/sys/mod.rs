//! System calls that have no safe wrapper, and the memory they work on. All unsafe code of the NICs is here.
//!
//! * [`Slice`]: payload in memory that others write.
//! * [`Outbox`], [`Inbox`]: many datagrams per call, cut and joined by the kernel.
//! * [`PacketRings`], [`packet_socket()`]: Ethernet frames in memory shared with the kernel.
//! * this file: numbers that the kernel is asked for.

#![expect(
    unsafe_code,
    reason = "socket options and ioctls without safe wrappers"
)]

mod inbox;
mod outbox;
mod packet_ring;
mod packet_socket;
mod slice;
mod socket_address;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

pub use inbox::{Datagrams, Inbox, Message};
pub use outbox::{Outbox, Run};
pub use packet_ring::{Arrived, PacketRings};
pub use packet_socket::{bind_packet, interface_index, interface_mac, packet_drops, packet_socket};
pub use slice::Slice;

/// The MTU of an interface in the network namespace of `socket`.
///
/// # Errors
/// There is no such interface.
pub fn interface_mtu(socket: impl AsFd, interface: &str) -> io::Result<usize> {
    let mut request = named(interface)?;
    // SAFETY: SIOCGIFMTU reads the name from and writes the MTU to the ifreq that it is given.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFMTU,
            &raw mut request,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFMTU has filled in this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Sets an option whose value is one int.
///
/// # Errors
/// What setsockopt says.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the pointer names an int and its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A request about an interface.
fn named(interface: &str) -> io::Result<libc::ifreq> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || !interface.is_ascii() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 },
    })
}
