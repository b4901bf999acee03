//! The directory of a user's embedded daemon: `$XDG_RUNTIME_DIR/viaduct`, or `/tmp/viaduct-UID`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

/// Where the directory is or would be.
pub(crate) fn path() -> PathBuf {
    let uid = geteuid().as_raw();
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match session.filter(|dir| is_usable(dir, uid)) {
        Some(dir) => dir.join("viaduct"),
        None => PathBuf::from(format!("/tmp/viaduct-{uid}")),
    }
}

/// Makes the directory if it is not there, and refuses one that others could tamper with.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = path();
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot make {}", dir.display()));
        }
    }
    check(&dir, geteuid().as_raw())?;
    Ok(dir)
}

/// Whether `dir` is a session's directory of this user: after `sudo -E` it is somebody else's.
fn is_usable(dir: &Path, uid: u32) -> bool {
    let owned = fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
    dir.is_absolute() && owned && dir.as_os_str().len() <= PREFIX_MAX
}

fn check(dir: &Path, uid: u32) -> Result<()> {
    let name = dir.display();
    // Not following a link: in /tmp anybody could have put one there.
    let meta = fs::symlink_metadata(dir).with_context(|| format!("cannot look at {name}"))?;
    if !meta.is_dir() {
        bail!("{name} is not a directory: remove it, or set XDG_RUNTIME_DIR");
    }
    if meta.uid() != uid {
        let owner = meta.uid();
        bail!(
            "{name} belongs to user {owner}, not to {uid}: set XDG_RUNTIME_DIR to a directory of yours"
        );
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        bail!("{name} is open to others (mode {mode:03o}): chmod 700 {name}");
    }
    Ok(())
}

/// Leaves room for the file names within the 107 bytes that a socket's path may have.
const PREFIX_MAX: usize = 70;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_must_be_ours_alone() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("viaduct");
        let uid = geteuid().as_raw();
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        check(&dir, uid).unwrap();
        let other = check(&dir, uid + 1).unwrap_err().to_string();
        assert!(other.contains("belongs to user"), "{other}");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
        let open = check(&dir, uid).unwrap_err().to_string();
        assert!(open.contains("mode 750"), "{open}");
        let link = base.path().join("link");
        symlink(&dir, &link).unwrap();
        let linked = check(&link, uid).unwrap_err().to_string();
        assert!(linked.contains("not a directory"), "{linked}");
    }

    #[test]
    fn somebody_elses_session_is_not_used() {
        assert!(!is_usable(Path::new("relative"), geteuid().as_raw()));
        assert!(!is_usable(Path::new("/"), geteuid().as_raw() + 1));
    }
}
