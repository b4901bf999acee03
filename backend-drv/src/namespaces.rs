//! From the configured domains to the namespaces that clients come from.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::broker::Domain;
use crate::config::DomainConfig;
use crate::memory::netns_cookie;

/// Why the domains cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A namespace cannot be looked at.
    #[error("domain {domain}: netns = {}: {source}{remedy}", .path.display())]
    System {
        /// Whose.
        domain: String,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Two paths name one namespace.
    #[error("domain {0}: netns: is the namespace of domain {1} too; one domain per namespace")]
    Twice(String, String),
}

/// Finds the namespaces of the configured domains. Entering a namespace needs root, so this comes
/// before root is given up.
///
/// # Errors
/// [`NamespaceError`] names the domain and the path.
pub fn resolve(domains: &[DomainConfig]) -> Result<Vec<Domain>, NamespaceError> {
    let mut found: Vec<Domain> = Vec::new();
    for domain in domains {
        let failed = |path: &Path, source: io::Error| NamespaceError::System {
            domain: domain.name.clone(),
            path: path.to_owned(),
            remedy: if source.kind() == io::ErrorKind::PermissionDenied {
                " (entering a namespace needs root; start viaductd as root with `user` set)"
            } else {
                ""
            },
            source,
        };
        let netns = match &domain.netns {
            Some(path) => cookie_at(path).map_err(|error| failed(path, error))?,
            None => cookie_here().map_err(|error| failed(Path::new("(own)"), error))?,
        };
        if let Some(other) = found.iter().find(|other| other.netns == netns) {
            return Err(NamespaceError::Twice(
                domain.name.clone(),
                other.name.clone(),
            ));
        }
        found.push(Domain {
            name: domain.name.clone(),
            tenant: domain.tenant.clone(),
            netns,
            addresses: domain.addresses.clone(),
        });
    }
    Ok(found)
}

/// Cookie of the calling thread's network namespace.
///
/// # Errors
/// No socket to be had.
pub fn cookie_here() -> io::Result<u64> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    netns_cookie(socket)
}

/// Cookie of the network namespace at `path`, seen by a thread that goes there and does not return.
fn cookie_at(path: &Path) -> io::Result<u64> {
    let namespace = File::open(path)?;
    let visit = thread::Builder::new().spawn(move || -> io::Result<u64> {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        cookie_here()
    })?;
    visit
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the visiting thread ended early")))
}
