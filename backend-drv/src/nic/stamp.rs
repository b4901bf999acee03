//! When the kernel got a frame. It says so by the clock on the wall; [`Stamps`] translates.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frames are not kept for longer: the clock was set meanwhile.
const AGE_MAX: Duration = Duration::from_secs(1);

/// A moment since the epoch, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Whole seconds.
    pub seconds: u64,
    /// And nanoseconds.
    pub nanos: u32,
}

impl Stamp {
    /// Reads a `timespec` of this machine.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (seconds, rest) = bytes.split_first_chunk()?;
        let nanos = rest.first_chunk()?;
        Some(Self {
            seconds: u64::try_from(i64::from_ne_bytes(*seconds)).ok()?,
            nanos: u32::try_from(i64::from_ne_bytes(*nanos)).ok()?,
        })
    }
}

/// Both clocks, read once for what one call brings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamps(Option<(SystemTime, Instant)>);

impl Stamps {
    /// The moment of `stamp`; `None` if it is not near now.
    pub fn moment(&mut self, stamp: Stamp) -> Option<Instant> {
        let read = || (SystemTime::now(), Instant::now());
        let (wall, here) = *self.0.get_or_insert_with(read);
        let then = UNIX_EPOCH.checked_add(Duration::new(stamp.seconds, stamp.nanos))?;
        match wall.duration_since(then) {
            Ok(age) if age <= AGE_MAX => here.checked_sub(age),
            Ok(_) => None,
            // It came after the clocks were read.
            Err(ahead) if ahead.duration() <= AGE_MAX => here.checked_add(ahead.duration()),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(time: SystemTime) -> Stamp {
        let since = time.duration_since(UNIX_EPOCH).unwrap();
        Stamp {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
        }
    }

    #[test]
    fn what_the_kernel_says_is_told_by_our_clock() {
        let (wall, here) = (SystemTime::now(), Instant::now());
        let mut stamps = Stamps(Some((wall, here)));
        let ago = Duration::from_micros(300);
        assert_eq!(stamps.moment(stamp(wall - ago)), here.checked_sub(ago));
        assert_eq!(stamps.moment(stamp(wall + ago)), here.checked_add(ago));
        let long = 2 * AGE_MAX;
        assert_eq!(stamps.moment(stamp(wall - long)), None);
        assert_eq!(stamps.moment(stamp(wall + long)), None);
        let near = Stamps::default().moment(stamp(SystemTime::now())).unwrap();
        assert!(near >= here && near <= Instant::now() + AGE_MAX);
    }

    #[test]
    fn a_timespec_is_read_and_nonsense_is_not() {
        let bytes =
            |seconds: i64, nanos: i64| [seconds.to_ne_bytes(), nanos.to_ne_bytes()].concat();
        let expected = Stamp {
            seconds: 5,
            nanos: 7,
        };
        assert_eq!(Stamp::read(&bytes(5, 7)), Some(expected));
        assert_eq!(Stamp::read(&bytes(-5, 7)), None);
        assert_eq!(Stamp::read(&bytes(5, -7)), None);
        assert_eq!(Stamp::read(&bytes(5, 7)[..15]), None);
    }
}
