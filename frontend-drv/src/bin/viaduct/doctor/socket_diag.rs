//! Tries out what the daemon proves identities with: a TCP connection of our own, looked up by its
//! addresses in NETLINK_SOCK_DIAG, must come back with the inode of our socket.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

pub(super) fn try_out() -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let far = listener.local_addr().context("no address")?;
    let stream = TcpStream::connect(far).context("cannot connect on loopback")?;
    let own = stream.local_addr().context("no address")?;
    let (std::net::SocketAddr::V4(own), std::net::SocketAddr::V4(far)) = (own, far) else {
        bail!("loopback is not IPv4");
    };
    let inode = inode_of(&stream)?;
    match look_up(own, far)? {
        found if u64::from(found) == inode => Ok(()),
        found => bail!("it names inode {found} for our connection, which has {inode}"),
    }
}

fn inode_of(stream: &TcpStream) -> Result<u64> {
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let meta = std::fs::metadata(&path).with_context(|| format!("cannot look at {path}"))?;
    Ok(meta.ino())
}

/// The inode of the socket with these addresses.
fn look_up(own: SocketAddrV4, far: SocketAddrV4) -> Result<u32> {
    let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
    let netlink: OwnedFd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
        .context("cannot make a socket")?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))
        .context("cannot bound a wait")?;
    send(netlink.as_raw_fd(), &request(own, far), MsgFlags::empty()).context("cannot ask")?;
    let mut reply = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty()).context("no answer")?;
    let reply = reply.get(..length).unwrap_or_default();
    match word16(reply, 4) {
        Some(SOCK_DIAG_BY_FAMILY) => word32(reply, INODE_AT).context("the answer is too short"),
        Some(NLMSG_ERROR) => {
            let error = word32(reply, 16)
                .unwrap_or(0)
                .cast_signed()
                .saturating_neg();
            bail!("the kernel answers: {}", Errno::from_raw(error).desc())
        }
        _ => bail!("the answer is of another kind"),
    }
}

/// A `struct nlmsghdr` and a `struct inet_diag_req_v2` for exactly one connection.
fn request(own: SocketAddrV4, far: SocketAddrV4) -> [u8; 72] {
    let mut bytes = [0; 72];
    let mut put = |at: usize, field: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + field.len()) {
            place.copy_from_slice(field);
        }
    };
    put(0, &72u32.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(16, &[AF_INET, IPPROTO_TCP]);
    put(20, &u32::MAX.to_ne_bytes()); // every state
    put(24, &own.port().to_be_bytes());
    put(26, &far.port().to_be_bytes());
    put(28, &own.ip().octets());
    put(44, &far.ip().octets());
    put(64, &[0xff; 8]); // INET_DIAG_NOCOOKIE
    bytes
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
/// `struct nlmsghdr`, then `idiag_inode`, the last word of `struct inet_diag_msg`.
const INODE_AT: usize = 16 + 68;

const _: () = assert!(AF_INET as i32 == libc::AF_INET && IPPROTO_TCP as i32 == libc::IPPROTO_TCP);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_does_not_exist_is_not_found() {
        let address = |port| SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), port);
        let error = look_up(address(1), address(2)).unwrap_err().to_string();
        assert!(!error.is_empty());
    }

    #[test]
    fn words_beyond_the_end_are_none() {
        assert_eq!(word32(&[1, 2, 3], 0), None);
        assert_eq!(word16(&[1, 2, 3], 9), None);
    }
}
