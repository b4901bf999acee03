//! Sockets that carry whole Ethernet frames, and what an interface says of itself.

#![expect(unsafe_code, reason = "system calls without safe wrappers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::named;

/// A packet socket that receives nothing yet. Needs CAP_NET_RAW, and nothing later does.
///
/// # Errors
/// `PermissionDenied` without it.
pub fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    Ok(socket)
}

/// The number of an interface. It differs if the interface was removed and made again.
///
/// # Errors
/// There is no such interface.
pub fn interface_index(socket: impl AsFd, interface: &str) -> io::Result<i32> {
    let mut request = named(interface)?;
    // SAFETY: SIOCGIFINDEX reads the name from and writes the index to the ifreq that it is given.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFINDEX,
            &raw mut request,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFINDEX has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// From now on `socket` receives the frames of interface number `index` with this EtherType, and sends there.
///
/// # Errors
/// There is no such interface.
pub fn bind_packet(socket: impl AsFd, index: i32, ether_type: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or(0),
        sll_protocol: ether_type.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(20);
    // SAFETY: the pointer names an address of that length.
    let result =
        unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The address of an Ethernet interface.
///
/// # Errors
/// There is no such interface, or `Unsupported` if it is of another kind.
pub fn interface_mac(socket: impl AsFd, interface: &str) -> io::Result<[u8; 6]> {
    let mut request = named(interface)?;
    // SAFETY: SIOCGIFHWADDR reads the name from and writes the address to the ifreq that it is given.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFHWADDR,
            &raw mut request,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFHWADDR has filled in this member of the union.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [a, b, c, d, e, f, ..] = address.sa_data.map(|byte| byte.to_ne_bytes()[0]);
    Ok([a, b, c, d, e, f])
}

/// Frames that `socket` has lost since this was last asked.
///
/// # Errors
/// What getsockopt says.
pub fn packet_drops(socket: impl AsFd) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).unwrap_or(8);
    // SAFETY: the pointers name the structure and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stats.tp_drops)
}

/// Sets an option whose value is a structure of the kernel's.
pub(super) fn set_struct<T: Copy>(
    socket: impl AsFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer names a value and its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            core::ptr::from_ref(value).cast(),
            len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
