//! Memory for one call of poll or select: on the stack, unless the call asks about very many descriptors.

#![expect(unsafe_code, reason = "memory fresh from the kernel")]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "memory from mmap is aligned to a page"
)]

use libc::pollfd;

/// Entries and ring bits of a call with few descriptors.
const FEW: (usize, usize) = (32, 16);
/// The same of a call with more.
const MANY: (usize, usize) = (264, 130);

const NOTHING: pollfd = pollfd {
    fd: -1,
    events: 0,
    revents: 0,
};

/// Lends room for so many entries and so many ring bits. `None`: there is no memory.
pub(super) fn lend<T>(
    entries: usize,
    bits: usize,
    work: impl FnOnce(&mut [pollfd], &mut [i16]) -> T,
) -> Option<T> {
    if entries <= FEW.0 && bits <= FEW.1 {
        return Some(work(
            &mut [NOTHING; FEW.0][..entries],
            &mut [0; FEW.1][..bits],
        ));
    }
    if entries <= MANY.0 && bits <= MANY.1 {
        return Some(on_stack(entries, bits, work));
    }
    let bytes = entries * size_of::<pollfd>();
    let region = frontend_drv::memory::reserve(bytes + bits * size_of::<i16>()).ok()?;
    let base = region.base().as_ptr();
    // SAFETY: fresh zero memory of that size, aligned to a page.
    let lent = unsafe { core::slice::from_raw_parts_mut(base.cast::<pollfd>(), entries) };
    // SAFETY: what follows in it; entries are larger than bits, and aligned as much.
    let ring = unsafe { core::slice::from_raw_parts_mut(base.add(bytes).cast::<i16>(), bits) };
    let result = work(lent, ring);
    // SAFETY: neither is used any more.
    unsafe { frontend_drv::memory::unmap(region) };
    Some(result)
}

/// A frame of its own: calls with few descriptors do not fill so much.
#[inline(never)]
fn on_stack<T>(
    entries: usize,
    bits: usize,
    work: impl FnOnce(&mut [pollfd], &mut [i16]) -> T,
) -> T {
    work(&mut [NOTHING; MANY.0][..entries], &mut [0; MANY.1][..bits])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_descriptors_has_room() {
        for (entries, bits) in [
            (0, 0),
            (32, 16),
            (33, 1),
            (3, 17),
            (264, 130),
            (265, 130),
            (70_001, 35_000),
        ] {
            let lent = lend(entries, bits, |entries, bits| {
                entries.fill(pollfd {
                    fd: 7,
                    events: 1,
                    revents: 1,
                });
                bits.fill(-1);
                let sound = entries
                    .iter()
                    .all(|entry| entry.fd == 7 && entry.revents == 1);
                (entries.len(), bits.len(), sound)
            });
            assert_eq!(lent, Some((entries, bits, true)));
        }
    }
}
