//! Whether starting a file changes privileges: then the kernel asks the loader for secure execution
//! (AT_SECURE), and LD_PRELOAD is ignored.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{getgid, getuid};

/// What a file would add to the present user's privileges.
#[derive(Debug)]
pub(super) struct Privilege {
    setuid: Option<u32>,
    setgid: Option<u32>,
    capabilities: bool,
    own: (u32, u32),
    /// The mount or the process forbids any gain.
    forbidden: bool,
}

impl Privilege {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let nosuid = statvfs(path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID));
        Ok(Self {
            setuid: (meta.mode() & SETUID != 0).then(|| meta.uid()),
            // Without the group's execute bit it means mandatory locking.
            setgid: (meta.mode() & SETGID == SETGID).then(|| meta.gid()),
            capabilities: has_capabilities(path),
            own: (getuid().as_raw(), getgid().as_raw()),
            forbidden: nosuid || prctl::get_no_new_privs().unwrap_or(false),
        })
    }

    /// What the present user would gain.
    pub(super) fn gained(&self) -> Option<String> {
        let (uid, gid) = self.own;
        if self.forbidden {
            None
        } else if let Some(owner) = self.setuid.filter(|&owner| owner != uid) {
            Some(format!("it is setuid to user {owner}"))
        } else if let Some(group) = self.setgid.filter(|&group| group != gid) {
            Some(format!("it is setgid to group {group}"))
        } else if self.capabilities && uid != 0 {
            Some("it has file capabilities".to_owned())
        } else {
            None
        }
    }

    /// What it has that changes nothing for the present user.
    pub(super) fn harmless(&self) -> Option<String> {
        if self.gained().is_some() {
            return None;
        }
        let what = match (self.setuid, self.setgid, self.capabilities) {
            (Some(_), ..) => "setuid",
            (_, Some(_), _) => "setgid",
            (.., true) => "given capabilities",
            _ => return None,
        };
        let why = if self.forbidden {
            "the mount or no_new_privs forbids that here"
        } else {
            "you gain nothing by it; for other users LD_PRELOAD would be ignored"
        };
        Some(format!("it is {what}, but {why}"))
    }
}

fn has_capabilities(path: &Path) -> bool {
    rustix::fs::getxattr(path, "security.capability", &mut [0u8; 64]).is_ok_and(|size| size > 0)
}

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2010;

#[cfg(test)]
mod tests {
    use super::*;

    fn privilege(setuid: Option<u32>, own: u32) -> Privilege {
        Privilege {
            setuid,
            setgid: None,
            capabilities: false,
            own: (own, 0),
            forbidden: false,
        }
    }

    #[test]
    fn only_a_change_of_user_counts() {
        assert!(privilege(Some(0), 1000).gained().is_some());
        let same = privilege(Some(0), 0);
        assert!(same.gained().is_none() && same.harmless().is_some());
        let none = privilege(None, 1000);
        assert!(none.gained().is_none() && none.harmless().is_none());
    }

    #[test]
    fn a_mount_may_forbid_it() {
        let forbidden = Privilege {
            forbidden: true,
            ..privilege(Some(0), 1000)
        };
        assert!(forbidden.gained().is_none());
        assert!(forbidden.harmless().unwrap().contains("forbids"));
    }

    #[test]
    fn capabilities_are_nothing_to_root() {
        let file = |own| Privilege {
            capabilities: true,
            ..privilege(None, own)
        };
        assert!(file(1000).gained().is_some());
        assert!(file(0).gained().is_none());
    }
}
