//! Socket addresses as the kernel reads and writes them.

#![expect(unsafe_code, reason = "a union-like C structure")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::libc;

/// Room for an address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    /// Bytes of room.
    pub(super) const LEN: libc::socklen_t = 28;

    /// No address.
    pub(super) const fn none() -> Self {
        let zero = libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        Self { v6: zero }
    }

    /// `address`, and how many bytes of it count.
    pub(super) fn of(address: SocketAddr) -> (Self, libc::socklen_t) {
        match address {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // The whole union is initialised, so that no byte of it is undefined later.
                let mut raw = Self::none();
                raw.v4 = v4;
                (raw, 16)
            }
            SocketAddr::V6(address) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: address.scope_id(),
                };
                (Self { v6 }, Self::LEN)
            }
        }
    }

    /// The address, if it is one of these families. IPv4 in IPv6 clothes is IPv4.
    pub(super) fn read(&self) -> Option<SocketAddr> {
        // SAFETY: all members begin with the family, every byte is initialised, and any value is valid.
        let family = i32::from(unsafe { self.family });
        match family {
            libc::AF_INET => {
                // SAFETY: as above; plain integers.
                let v4 = unsafe { self.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                let address = SocketAddrV4::new(ip, u16::from_be(v4.sin_port));
                Some(SocketAddr::V4(address))
            }
            libc::AF_INET6 => {
                // SAFETY: as above; plain integers.
                let v6 = unsafe { self.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                if let Some(ip) = ip.to_ipv4_mapped() {
                    return Some(SocketAddr::V4(SocketAddrV4::new(ip, port)));
                }
                Some(SocketAddr::V6(SocketAddrV6::new(
                    ip,
                    port,
                    v6.sin6_flowinfo,
                    v6.sin6_scope_id,
                )))
            }
            _ => None,
        }
    }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

const _: () = assert!(size_of::<RawAddress>() == 28 && size_of::<libc::sockaddr_in>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.9.0.1:7447", "[fe80::1%3]:1", "[2001:db8::7]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::of(address).0.read(), Some(address));
        }
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:9".parse().unwrap();
        let plain: SocketAddr = "10.0.0.1:9".parse().unwrap();
        assert_eq!(RawAddress::of(mapped).0.read(), Some(plain));
        assert_eq!(RawAddress::none().read(), None);
    }
}
