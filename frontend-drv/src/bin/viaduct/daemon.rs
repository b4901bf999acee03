//! Which daemon: where to look for one, and whether it is there and of our version.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rdma_core::control::{DEFAULT_SOCKET, Query};

use crate::query::{Connection, QueryError};
use crate::report::DaemonInfo;
use crate::runtime_dir;

/// A daemon that has answered.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) info: DaemonInfo,
    pub(crate) connection: Connection,
}

impl Daemon {
    /// Connects, asks for version and limits, and refuses a daemon of another version.
    pub(crate) fn reach(socket: &Path) -> Result<Self, QueryError> {
        let connection = Connection::open(socket)?;
        let text = connection.ask(Query::LIMITS, 0)?;
        let info =
            DaemonInfo::parse(&text).map_err(|error| QueryError::Nonsense(error.to_string()))?;
        if let Some(difference) = info.mismatch() {
            return Err(QueryError::Version(difference));
        }
        tracing::debug!(socket = %socket.display(), version = info.version, "daemon answers");
        Ok(Self {
            socket: socket.to_owned(),
            info,
            connection,
        })
    }

    /// The first daemon that answers of those a tool may mean.
    pub(crate) fn find(option: Option<&Path>) -> Result<Self> {
        let mut tried = Vec::new();
        for (at, socket) in candidates(option).iter().enumerate() {
            match Self::reach(socket) {
                Ok(daemon) => return Ok(daemon),
                // Rarely used, so not worth mentioning.
                Err(QueryError::Absent(_)) if at > 1 => {}
                Err(error) => tried.push(format!("{} ({error})", socket.display())),
            }
        }
        bail!(
            "no daemon answers at {}: start viaductd, or name its socket with --socket or VIADUCT_SOCKET",
            tried.join(", nor at ")
        )
    }
}

/// The socket that the user named, by option or environment.
pub(crate) fn named(option: Option<&Path>) -> Option<PathBuf> {
    let environment = || std::env::var_os("VIADUCT_SOCKET").filter(|value| !value.is_empty());
    option
        .map(Path::to_owned)
        .or_else(|| environment().map(PathBuf::from))
}

/// Where a daemon may be: the one that was named, else the system's, else this user's embedded one.
pub(crate) fn candidates(option: Option<&Path>) -> Vec<PathBuf> {
    match named(option) {
        Some(socket) => vec![socket],
        None => {
            let dir = runtime_dir::path();
            let embedded = EMBEDDED_SOCKETS.map(|name| dir.join(name));
            std::iter::once(PathBuf::from(DEFAULT_SOCKET))
                .chain(embedded)
                .collect()
        }
    }
}

/// Names of an embedded daemon's socket in its directory. The first is the usual one; the others are
/// for when that is taken by a daemon that cannot be used.
pub(crate) const EMBEDDED_SOCKETS: [&str; 3] =
    ["viaductd.sock", "viaductd-2.sock", "viaductd-3.sock"];
