//! Limits of the process, and giving up root.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, setgid, setgroups, setuid};

/// Why the daemon could not become another user.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Not in the user database.
    #[error("user = {0}: there is no such user; create it or leave the key out")]
    NoSuchUser(String),
    /// The system refused.
    #[error("cannot become user {user}: {source}")]
    System {
        /// Who.
        user: String,
        /// Why.
        source: nix::Error,
    },
}

/// Looks a user up.
///
/// # Errors
/// [`PrivilegeError::NoSuchUser`].
pub fn find_user(name: &str) -> Result<User, PrivilegeError> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(PrivilegeError::NoSuchUser(name.to_owned())),
        Err(source) => Err(PrivilegeError::System {
            user: name.to_owned(),
            source,
        }),
    }
}

/// Becomes `user` for good.
///
/// # Errors
/// The system refused, or root could be had back.
pub fn become_user(user: &User) -> Result<(), PrivilegeError> {
    let result = setgroups(&[user.gid])
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .and_then(|()| match setuid(Uid::from_raw(0)) {
            Ok(()) if !user.uid.is_root() => Err(nix::Error::EPERM),
            _ => Ok(()),
        });
    result.map_err(|source| PrivilegeError::System {
        user: user.name.clone(),
        source,
    })
}

/// Whether the daemon runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Group of a name.
///
/// # Errors
/// [`PrivilegeError::NoSuchUser`].
pub fn find_group(name: &str) -> Result<Gid, PrivilegeError> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(PrivilegeError::NoSuchUser(name.to_owned())),
    }
}

/// Allows as many descriptors as the system lets us have, and returns how many that is.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}
