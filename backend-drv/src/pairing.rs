//! When two registrations are the two ends of one connection: names and byte counts.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rdma_core::control::Register;
/// The part of `struct tcp_info` by which two ends are compared, of this host or of another.
pub use rdma_core::wire::pairing::Sample as Stream;

/// One end's view of its connection. IPv4 is always written as IPv4, never v4-mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// This end's address.
    pub own: SocketAddr,
    /// The far end's address.
    pub far: SocketAddr,
}

impl Tuple {
    /// The connection that a registration names.
    pub fn of(register: &Register) -> Self {
        let addr = |bytes: &[u8; 16], port| {
            let ip = if register.family == 4 {
                let [a, b, c, d, ..] = *bytes;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            } else {
                IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
            };
            SocketAddr::new(ip, port)
        };
        Self {
            own: addr(&register.own_addr, register.own_port),
            far: addr(&register.far_addr, register.far_port),
        }
    }

    /// The same connection as the far end sees it.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        Self {
            own: self.far,
            far: self.own,
        }
    }

    /// Whether the socket is connected to itself.
    pub fn is_loop(&self) -> bool {
        self.own == self.far
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.own, self.far)
    }
}

/// What the kernel says of one end at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Inode of the socket; 0 if no process holds it any more.
    pub inode: u32,
    /// SO_COOKIE; never used again while the machine runs.
    pub cookie: u64,
    /// The TCP state, as in `enum tcp_state`.
    pub state: u8,
    /// Counts and parameters; `None` if the kernel did not tell.
    pub stream: Option<Stream>,
}

impl Sample {
    /// TCP_ESTABLISHED: neither end has sent a FIN that the other has seen.
    pub const ESTABLISHED: u8 = 1;
}

/// What a comparison of two ends came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// They are the two ends of one stream.
    Match,
    /// Something stands between them.
    Mismatch,
    /// At least one end is not, or no longer, an established connection of its socket.
    Gone {
        /// The first of the two.
        left: bool,
        /// The second.
        right: bool,
    },
}

/// The SYN counts as an acknowledged byte on the connecting side. (A FIN would count too, but both
/// ends are established, so there was none.) One byte of slack on either side costs no certainty.
const SYN: u64 = 1;

/// Whether two ends carry one stream in both directions. `left` was sampled between the two samples
/// of `right`, so that every "has been acknowledged" can be held against a later "has received".
pub fn same_stream(before: &Stream, left: &Stream, after: &Stream) -> bool {
    let scales = left.send_scale == after.receive_scale && left.receive_scale == after.send_scale;
    let segments = left.send_mss <= after.advertised_mss && after.send_mss <= left.advertised_mss;
    let left_to_right =
        left.acked <= after.received.saturating_add(SYN) && before.received <= left.sent;
    let right_to_left =
        before.acked <= left.received.saturating_add(SYN) && left.received <= after.sent;
    scales && segments && left_to_right && right_to_left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(family: u8, own: [u8; 16], far: [u8; 16]) -> Register {
        Register {
            slot: 0,
            generation: 0,
            cookie: 0,
            connects: 1,
            side: 1,
            family,
            own_port: 1,
            far_port: 2,
            reserved: [0; 6],
            own_addr: own,
            far_addr: far,
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_means() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[127, 0, 0, 1]);
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[255, 255, 127, 0, 0, 1]);
        let plain = Tuple::of(&register(4, v4, v4));
        assert_eq!(plain, Tuple::of(&register(6, mapped, mapped)));
        assert_eq!(plain.to_string(), "127.0.0.1:1->127.0.0.1:2");
        assert_eq!(plain.mirrored().mirrored(), plain);
        assert!(!plain.is_loop());
    }

    fn stream(sent: u64, acked: u64, received: u64) -> Stream {
        Stream {
            send_scale: 7,
            receive_scale: 7,
            send_mss: 1448,
            advertised_mss: 1460,
            acked,
            received,
            sent,
        }
    }

    #[test]
    fn counts_that_one_stream_can_have_match() {
        // The connecting side has its SYN acknowledged; 100 bytes went out, 60 arrived, 40 back.
        let client = stream(100, 61, 40);
        let server = stream(40, 40, 60);
        assert!(same_stream(&server, &client, &server));
        assert!(same_stream(&client, &server, &client));
        // Moving on between the samples is no mismatch.
        let later = stream(90, 70, 100);
        assert!(same_stream(&server, &client, &later));
    }

    #[test]
    fn counts_that_one_stream_cannot_have_do_not() {
        let client = stream(100, 101, 0);
        assert!(same_stream(&stream(0, 0, 100), &client, &stream(0, 0, 100)));
        assert!(!same_stream(&stream(0, 0, 99), &client, &stream(0, 0, 99)));
        assert!(!same_stream(
            &stream(0, 0, 101),
            &client,
            &stream(0, 0, 101)
        ));
        assert!(!same_stream(
            &stream(7, 7, 100),
            &client,
            &stream(7, 7, 100)
        ));
    }

    #[test]
    fn another_scale_or_segment_size_is_another_stream() {
        let one = stream(0, 0, 0);
        let scaled = Stream {
            receive_scale: 8,
            ..one
        };
        assert!(!same_stream(&scaled, &one, &scaled));
        let small = Stream {
            advertised_mss: 536,
            ..one
        };
        assert!(!same_stream(&small, &one, &small));
    }
}
