//! What stands in the kernel for a descriptor in a set, as `/proc/self/fdinfo` tells (proc(5)).

use core::ffi::c_int;
use core::str;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::path::DecInt;

/// A line about one descriptor is shorter.
const LINE: usize = 256;

/// Whether the registration of `fd` in the set `epfd` carries `data`. Also true if nobody can say.
pub(super) fn carries(epfd: c_int, fd: c_int, data: u64) -> bool {
    let Ok(file) = file_of(epfd) else {
        return true;
    };
    let mut line = [0; LINE];
    let mut used = 0;
    let mut bytes = [0; 1024];
    loop {
        let got = match rustix::io::read(&file, &mut bytes) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return true,
            Ok(0) => return false,
            Ok(got) => got,
        };
        for &byte in bytes.iter().take(got) {
            if byte != b'\n' {
                if let Some(place) = line.get_mut(used) {
                    *place = byte;
                    used += 1;
                }
                continue;
            }
            let told = line.get(..used).and_then(registration);
            used = 0;
            // A number may stand there twice, for two files.
            if told == Some((fd, data)) {
                return true;
            }
        }
    }
}

fn file_of(epfd: c_int) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = open(c"/proc/self/fdinfo", flags, Mode::empty())?;
    openat(&directory, DecInt::new(epfd), flags, Mode::empty())
}

/// The descriptor and the data of a line such as `tfd: 5 events: 1d data: ffffffff pos:0 ino:61af sdev:7`.
fn registration(line: &[u8]) -> Option<(c_int, u64)> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let mut value = |name| {
        let named = words.next()? == name;
        words.next().filter(|_| named)
    };
    let fd = value("tfd:")?.parse().ok()?;
    value("events:")?;
    let data = u64::from_str_radix(value("data:")?, 16).ok()?;
    Some((fd, data))
}

#[cfg(test)]
mod tests {
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
    use rustix::fd::AsRawFd;
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = b"tfd:        5 events:       1d data: fffe71ad00000007  pos:0 ino:61af sdev:7";
        assert_eq!(registration(line), Some((5, 0xfffe_71ad_0000_0007)));
        for other in [
            &b"pos:\t0"[..],
            b"tfd: 5 events: 1d",
            b"tfd: x events: 1 data: 2",
            b"",
        ] {
            assert_eq!(registration(other), None);
        }
    }

    #[test]
    fn the_kernel_says_what_a_registration_carries() {
        let set = create(CreateFlags::CLOEXEC).unwrap();
        // More than one read brings.
        let pipes: Vec<_> = (0..100).map(|_| pipe().unwrap()).collect();
        for (number, (end, _)) in (1_u64 << 60..).zip(&pipes) {
            add(&set, end, EventData::new_u64(number), EventFlags::IN).unwrap();
        }
        let carries = |fd: &OwnedFd, data| carries(set.as_raw_fd(), fd.as_raw_fd(), data);
        for (number, (end, other)) in (1_u64 << 60..).zip(&pipes) {
            assert!(carries(end, number));
            assert!(!carries(end, number + 1));
            assert!(!carries(other, number));
        }
        // No set, and so nothing that could be known.
        assert!(super::carries(-1, 0, 0));
    }
}
