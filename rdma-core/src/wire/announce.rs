//! ANNOUNCE: a backend tells its Ethernet segment which addresses it serves.

use core::net::{IpAddr, Ipv6Addr};

use super::{ANNOUNCED_MAX, HEADER_BYTES, Header, Kind, ParseError};

/// Bytes in front of the addresses: backend, epoch, count, reserved.
const FIXED_BYTES: usize = 32;

/// A parsed announcement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announce<'a> {
    /// The sender's identity.
    pub backend: [u8; 16],
    /// Differs between two runs of the sender.
    pub epoch: u64,
    /// Addresses of programs that the sender serves.
    pub addresses: AnnouncedAddresses<'a>,
}

/// Addresses, 16 bytes each; IPv4 in its IPv6-mapped form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnnouncedAddresses<'a>(&'a [[u8; 16]]);

impl<'a> AnnouncedAddresses<'a> {
    /// One after the other, IPv4 as such.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> + 'a {
        self.0
            .iter()
            .map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical())
    }
}

impl<'a> Announce<'a> {
    /// Reads what follows the header; what a driver added behind it is ignored.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let short = ParseError::Short(body.len());
        let (fixed, rest) = body.split_first_chunk::<FIXED_BYTES>().ok_or(short)?;
        let (backend, fixed) = fixed.split_first_chunk::<16>().ok_or(short)?;
        let (epoch, fixed) = fixed.split_first_chunk::<8>().ok_or(short)?;
        let (count, _) = fixed.split_first_chunk::<2>().ok_or(short)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count == 0 || count > ANNOUNCED_MAX {
            return Err(ParseError::Field("count"));
        }
        let addresses = rest.as_chunks::<16>().0.get(..count).ok_or(short)?;
        Ok(Self {
            backend: *backend,
            epoch: u64::from_be_bytes(*epoch),
            addresses: AnnouncedAddresses(addresses),
        })
    }

    /// Appends the whole frame, header included. Of too many addresses the first [`ANNOUNCED_MAX`]
    /// are told; without an address there is nothing to tell.
    pub fn emit(
        backend: [u8; 16],
        epoch: u64,
        addresses: impl IntoIterator<Item = IpAddr>,
        out: &mut Vec<u8>,
    ) {
        let header = Header {
            kind: Kind::Announce,
            flags: 0,
            session: 0,
            number: 0,
        };
        let start = out.len();
        out.extend_from_slice(&header.emit());
        out.extend_from_slice(&backend);
        out.extend_from_slice(&epoch.to_be_bytes());
        let count_at = out.len();
        out.extend_from_slice(&[0; 8]);
        let mut count = 0u16;
        for address in addresses.into_iter().take(ANNOUNCED_MAX) {
            let bytes = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            out.extend_from_slice(&bytes);
            count += 1;
        }
        out[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        debug_assert_eq!(
            out.len() - start,
            HEADER_BYTES + FIXED_BYTES + usize::from(count) * 16
        );
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(backend: [u8; 16], epoch: u64, count in 1usize..80) {
            let addresses: Vec<IpAddr> = (0..count)
                .map(|index| IpAddr::from(Ipv4Addr::from(u32::try_from(index).unwrap() + 0x0a00_0000)))
                .collect();
            let mut frame = Vec::new();
            Announce::emit(backend, epoch, addresses.iter().copied(), &mut frame);
            frame.extend_from_slice(&[0; 7]);
            let (header, body) = Header::parse(&frame).unwrap();
            prop_assert_eq!(header.kind, Kind::Announce);
            let read = Announce::parse(body).unwrap();
            prop_assert_eq!((read.backend, read.epoch), (backend, epoch));
            let told: Vec<IpAddr> = read.addresses.iter().collect();
            prop_assert_eq!(&told[..], &addresses[..count.min(ANNOUNCED_MAX)]);
        }

        #[test]
        fn any_bytes_parse_or_not(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(read) = Announce::parse(&bytes) {
                let mut frame = Vec::new();
                Announce::emit(read.backend, read.epoch, read.addresses.iter(), &mut frame);
                let again = Announce::parse(&frame[HEADER_BYTES..]).unwrap();
                prop_assert!(again.addresses.iter().eq(read.addresses.iter()));
            }
        }
    }

    #[test]
    fn nobody_is_not_announced() {
        let mut frame = Vec::new();
        Announce::emit([1; 16], 1, [], &mut frame);
        assert_eq!(
            Announce::parse(&frame[HEADER_BYTES..]),
            Err(ParseError::Field("count"))
        );
    }
}
