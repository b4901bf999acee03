//! The environment of the library, read once in the constructor.

#![expect(unsafe_code, reason = "one pointer that is null or valid for good")]

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use rdma_core::Policy;
use rdma_core::control::DEFAULT_SOCKET;
use rdma_core::layout::{RING_LOG2_DEFAULT, RING_LOG2_MAX, RING_LOG2_MIN};

/// Default of VIADUCT_UPGRADE_AFTER: a one-exchange connection must pay nothing, a lasting one
/// upgrades in its first milliseconds.
const CALLS_DEFAULT: u32 = 16;
const BYTES_DEFAULT: u64 = 16 * 1024;

/// Longest spin in microseconds unless VIADUCT_SPIN_US says otherwise.
const SPIN_DEFAULT_US: u32 = 50;

/// What does not change after the constructor.
#[derive(Debug)]
pub(crate) struct Config {
    /// Who is a peer.
    pub policy: Policy,
    /// The daemon's socket.
    pub socket: String,
    /// Ring size to ask for, as a power of two.
    pub ring_log2: u32,
    /// Session of the `viaduct run` that started us; 0 if none.
    pub session: u64,
    /// Declining a peer ends the program.
    pub strict: bool,
}

static CONFIG: OnceLock<Config> = OnceLock::new();
/// The configuration in force; null while (or where) the library is inert.
static IN_FORCE: AtomicPtr<Config> = AtomicPtr::new(core::ptr::null_mut());
static UPGRADE_CALLS: AtomicU32 = AtomicU32::new(CALLS_DEFAULT);
static UPGRADE_BYTES: AtomicU64 = AtomicU64::new(BYTES_DEFAULT);
static SPIN_US: AtomicU32 = AtomicU32::new(SPIN_DEFAULT_US);

/// The configuration; `None` while (or where) the library is inert.
#[inline]
pub(crate) fn config() -> Option<&'static Config> {
    // SAFETY: null, or what CONFIG holds for good.
    unsafe { IN_FORCE.load(Ordering::Acquire).as_ref() }
}

/// From now on the library is inert in this process.
pub(crate) fn disable() {
    IN_FORCE.store(core::ptr::null_mut(), Ordering::Release);
}

/// Data calls and bytes after which a connection registers.
#[inline]
pub(crate) fn upgrade_after() -> (u32, u64) {
    (
        UPGRADE_CALLS.load(Ordering::Relaxed),
        UPGRADE_BYTES.load(Ordering::Relaxed),
    )
}

/// Longest spin in microseconds.
#[inline]
pub(crate) fn spin_us() -> u32 {
    SPIN_US.load(Ordering::Relaxed)
}

/// Reads the environment.
///
/// # Errors
/// One line that names the bad value and the remedy.
pub(crate) fn load() -> Result<(), String> {
    if var("VIADUCT_DISABLE").is_some_and(|value| value != "0" && !value.is_empty()) {
        return Ok(());
    }
    let Some(peers) = var("VIADUCT_PEERS") else {
        return Ok(());
    };
    let (level, file) = (var("VIADUCT_LOG"), var("VIADUCT_LOG_FILE"));
    crate::trace::configure(level.as_deref(), file.as_deref())?;
    let policy = Policy::parse(&peers).map_err(|error| error.to_string())?;
    if let Some(value) = var("VIADUCT_UPGRADE_AFTER") {
        let (calls, bytes) = upgrade(&value).ok_or_else(|| {
            format!("VIADUCT_UPGRADE_AFTER: \"{value}\" is not CALLS[,BYTES] (0 = at once)")
        })?;
        UPGRADE_CALLS.store(calls, Ordering::Relaxed);
        UPGRADE_BYTES.store(bytes, Ordering::Relaxed);
    }
    if let Some(value) = var("VIADUCT_SPIN_US") {
        let spin = value
            .parse()
            .ok()
            .filter(|&us: &u32| us <= 1_000_000)
            .ok_or_else(|| {
                format!(
                    "VIADUCT_SPIN_US: \"{value}\" is not a number of microseconds from 0 to 1000000"
                )
            })?;
        SPIN_US.store(spin, Ordering::Relaxed);
    }
    let ring_log2 = match var("VIADUCT_RING_BYTES") {
        None => RING_LOG2_DEFAULT,
        Some(value) => value
            .parse()
            .ok()
            .filter(|&bytes: &u64| (1 << RING_LOG2_MIN..=1 << RING_LOG2_MAX).contains(&bytes))
            .map(|bytes| bytes.next_power_of_two().trailing_zeros())
            .ok_or_else(|| {
                format!("VIADUCT_RING_BYTES: \"{value}\" is not a number of bytes from 65536 to 1073741824")
            })?,
    };
    let session = var("VIADUCT_SESSION")
        .and_then(|value| u64::from_str_radix(&value, 16).ok())
        .unwrap_or(0);
    let config = Config {
        policy,
        socket: var("VIADUCT_SOCKET")
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| DEFAULT_SOCKET.to_owned()),
        ring_log2,
        session,
        strict: strict(),
    };
    if !config.policy.is_empty() {
        let config = CONFIG.get_or_init(|| config);
        IN_FORCE.store(core::ptr::from_ref(config).cast_mut(), Ordering::Release);
    }
    Ok(())
}

/// Whether VIADUCT_STRICT asks for errors instead of fallback.
pub(crate) fn strict() -> bool {
    var("VIADUCT_STRICT").is_some_and(|value| value != "0" && !value.is_empty())
}

fn var(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?;
    Some(String::from_utf8_lossy(OsStr::as_bytes(&value)).into_owned())
}

/// `CALLS[,BYTES]`; without BYTES, only calls count, except that 0 means at once.
fn upgrade(value: &str) -> Option<(u32, u64)> {
    match value.split_once(',') {
        Some((calls, bytes)) => Some((calls.trim().parse().ok()?, bytes.trim().parse().ok()?)),
        None => Some((value.trim().parse().ok()?, u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrade_after_takes_calls_and_bytes() {
        assert_eq!(upgrade("0"), Some((0, u64::MAX)));
        assert_eq!(upgrade("16,65536"), Some((16, 65536)));
        assert_eq!(upgrade("x"), None);
        assert_eq!(upgrade("1,"), None);
        assert_eq!(upgrade("-1"), None);
    }
}
