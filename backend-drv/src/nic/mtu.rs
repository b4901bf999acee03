//! How long frames may be: the interface's MTU, looked up again now and then since it can change at any moment.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::sys;

/// An interface's MTU, less what the driver puts around a frame.
#[derive(Debug)]
pub struct Mtu {
    /// Without one there is nothing to look up.
    interface: Option<String>,
    overhead: usize,
    limit: usize,
    now: usize,
    checked: Instant,
}

impl Mtu {
    /// The MTU of `interface` as `socket` sees it, less `overhead`, at most `limit`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn of_interface(
        socket: impl AsFd,
        interface: &str,
        overhead: usize,
        limit: usize,
    ) -> io::Result<Self> {
        let mtu = sys::interface_mtu(socket, interface)?;
        Ok(Self {
            interface: Some(interface.to_owned()),
            overhead,
            limit,
            now: mtu.saturating_sub(overhead).min(limit),
            checked: Instant::now(),
        })
    }

    /// As [`Mtu::of_interface`], for the interface that has `address`. With the unspecified address it is the largest of
    /// all but loopback's: which interface a frame takes is not known, and the link finds out what passes.
    pub fn of_address(
        socket: impl AsFd,
        address: IpAddr,
        overhead: usize,
        limit: usize,
    ) -> io::Result<Self> {
        let mut largest = None;
        for candidate in getifaddrs()? {
            let loopback = candidate.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            let fits = match ip_of(&candidate) {
                Some(ip) => ip == address || (address.is_unspecified() && !loopback),
                None => false,
            };
            if fits {
                let name = &candidate.interface_name;
                let mtu = Self::of_interface(socket.as_fd(), name, overhead, limit)?;
                if largest
                    .as_ref()
                    .is_none_or(|best: &Self| best.now < mtu.now)
                {
                    largest = Some(mtu);
                }
            }
        }
        // An address of no interface, such as 127.0.0.2: whatever the limit is.
        Ok(largest.unwrap_or_else(|| Self {
            interface: None,
            overhead,
            limit,
            now: limit.min(UNKNOWN.saturating_sub(overhead)),
            checked: Instant::now(),
        }))
    }

    /// Bytes of the longest frame.
    pub const fn max_frame(&self) -> usize {
        self.now
    }

    /// Looks again if the last look is old; true if it did.
    pub fn refresh(&mut self, socket: impl AsFd) -> bool {
        let old = self.checked.elapsed() >= AGE_MAX;
        if old {
            self.look(socket);
        }
        old
    }

    /// Looks again: something says that it has changed.
    pub fn look(&mut self, socket: impl AsFd) {
        self.checked = Instant::now();
        let Some(interface) = &self.interface else {
            return;
        };
        // An interface that has gone may come back; until then frames are lost anyway.
        if let Ok(mtu) = sys::interface_mtu(socket, interface) {
            self.now = mtu.saturating_sub(self.overhead).min(self.limit);
        }
    }
}

fn ip_of(candidate: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = candidate.address.as_ref()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
}

/// How old what we know of an interface may become.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Where no interface is known: what passes nearly everywhere.
const UNKNOWN: usize = 1500;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn loopback_has_the_mtu_the_kernel_says() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mtu = sys::interface_mtu(&socket, "lo").unwrap();
        let found = Mtu::of_address(&socket, "127.0.0.1".parse().unwrap(), 28, 65_507).unwrap();
        assert_eq!(found.max_frame(), (mtu - 28).min(65_507));
        assert!(Mtu::of_interface(&socket, "no-such-nic", 0, 1500).is_err());
    }
}
