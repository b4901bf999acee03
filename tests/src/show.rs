//! How results are printed: the same text for the same behaviour, without times, addresses and ports.

use crate::sys::Ret;

/// A result: its number, or the name of its errno.
pub fn ret(ret: Ret) -> String {
    match ret {
        Ok(value) => value.to_string(),
        Err(error) => errno(error),
    }
}

/// Success or the errno, for calls whose number says nothing.
pub fn ok(ret: Ret) -> String {
    ret.map_or_else(errno, |_| "ok".to_owned())
}

/// The name of an errno.
pub fn errno(error: i32) -> String {
    let name = ERRNOS.iter().find(|(number, _)| *number == error);
    name.map_or_else(|| format!("errno {error}"), |(_, name)| (*name).to_owned())
}

/// Received bytes: short text as it is, everything else as length and hash.
pub fn data(bytes: &[u8]) -> String {
    if bytes.len() <= 24 && bytes.iter().all(|b| (b' '..=b'~').contains(b)) {
        return format!("\"{}\"", String::from_utf8_lossy(bytes));
    }
    format!("{} bytes {:016x}", bytes.len(), hash(bytes))
}

/// A result and, if it is a count, the bytes it counts.
pub fn got(ret: Ret, buffer: &[u8]) -> String {
    match ret {
        Ok(count) => {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let bytes = buffer.get(..count).unwrap_or(buffer);
            format!("{count} {}", data(bytes))
        }
        Err(error) => errno(error),
    }
}

/// FNV-1a, by words so that an unoptimised build is quick enough.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |word: u64| {
        hash = (hash ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29);
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    for byte in rest {
        mix(u64::from(*byte));
    }
    hash
}

/// Bits of poll(2).
pub fn bits(bits: i16) -> String {
    words(u32::from(bits.cast_unsigned()))
}

/// Bits of epoll(7), which are those of poll.
pub fn words(bits: u32) -> String {
    if bits == 0 {
        return "-".to_owned();
    }
    let known = [
        (0x1, "IN"),
        (0x2, "PRI"),
        (0x4, "OUT"),
        (0x8, "ERR"),
        (0x10, "HUP"),
        (0x20, "NVAL"),
        (0x40, "RDNORM"),
        (0x100, "WRNORM"),
        (0x2000, "RDHUP"),
    ];
    let mut names: Vec<String> = known
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let rest = known.iter().fold(bits, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names.join("|")
}

/// Events of an epoll set, sorted by their data.
pub fn events(events: &Result<Vec<(u32, u64)>, i32>) -> String {
    match events {
        Err(error) => errno(*error),
        Ok(events) => {
            let mut events = events.clone();
            events.sort_by_key(|(_, data)| *data);
            let each: Vec<String> = events
                .iter()
                .map(|(bits, data)| format!("{data}:{}", words(*bits)))
                .collect();
            format!("[{}]", each.join(" "))
        }
    }
}

const ERRNOS: &[(i32, &str)] = &[
    (libc::EAGAIN, "EAGAIN"),
    (libc::EALREADY, "EALREADY"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EBADF, "EBADF"),
    (libc::ECONNABORTED, "ECONNABORTED"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ECONNRESET, "ECONNRESET"),
    (libc::EEXIST, "EEXIST"),
    (libc::EFAULT, "EFAULT"),
    (libc::EINPROGRESS, "EINPROGRESS"),
    (libc::EINTR, "EINTR"),
    (libc::EINVAL, "EINVAL"),
    (libc::EISCONN, "EISCONN"),
    (libc::EISDIR, "EISDIR"),
    (libc::EMFILE, "EMFILE"),
    (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::ENOBUFS, "ENOBUFS"),
    (libc::ENOENT, "ENOENT"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ENOTSOCK, "ENOTSOCK"),
    (libc::ENOPROTOOPT, "ENOPROTOOPT"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EPERM, "EPERM"),
    (libc::EPIPE, "EPIPE"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
];
