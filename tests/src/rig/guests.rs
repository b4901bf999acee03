//! A host's daemon and the daemons of its guests. The guests are no machines: they are members of a region by its
//! server's socket, and share this machine's network.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::net::{SocketAddrUnix, getpeername};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tempfile::TempDir;

use super::build;
use super::daemon::{Daemon, retry, wait_readable};
use super::program::WATCHDOG;

/// Descriptors of a daemon that has just started.
const DESCRIPTORS: i32 = 64;

/// The daemon of a guest.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    device: PathBuf,
    socket: PathBuf,
}

impl Guest {
    /// A guest whose device is at `device`, and which serves programs at `socket`.
    fn start(device: &Path, socket: &Path, more: &[&str]) -> Self {
        let whom = (!more.contains(&"--uid")).then_some("--any-user");
        let mut child = Command::new(build::viaduct_guest())
            .arg("--device")
            .arg(format!("socket:{}", device.display()))
            .arg("--socket")
            .arg(socket)
            .args(whom)
            .args(["--shared-network", "--log", "warn", "--ready-fd", "1"])
            .args(more)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("viaduct-guest starts");
        let mut stdout = child.stdout.take().expect("piped");
        let ready = wait_readable(&stdout, WATCHDOG) && stdout.read_exact(&mut [0]).is_ok();
        assert!(ready, "the guest's daemon did not start");
        Self {
            child,
            device: device.to_owned(),
            socket: socket.to_owned(),
        }
    }

    /// Where the host listens for it.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Where its programs connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it, and with it its device.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills it as if it had been a process of a machine that runs on: the host goes on seeing the device, until what is
    /// returned is dropped.
    pub fn abandon(&mut self) -> OwnedFd {
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("our own child");
        let held = (3..DESCRIPTORS).find_map(|number| {
            let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
            let peer = SocketAddrUnix::try_from(getpeername(&socket).ok()??).ok()?;
            (peer.path_bytes() == Some(self.device.as_os_str().as_bytes())).then_some(socket)
        });
        let held = held.expect("the device's socket");
        self.kill();
        held
    }

    /// Has it drained and stopped.
    pub fn drain(&mut self) {
        let done = Command::new(build::viaduct_guest())
            .args(["--drain", "--socket"])
            .arg(&self.socket)
            .output()
            .expect("viaduct-guest starts");
        assert!(done.status.success(), "{done:?}");
        retry("the guest's daemon stops", || {
            self.child.try_wait().expect("our own child")
        });
    }

    /// Starts it again, as after [`Guest::kill`].
    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        *self = Self::start(&self.device, &self.socket, &[]);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A host and its guests.
#[derive(Debug)]
pub struct Guests {
    /// The daemons of the guests.
    pub guests: Vec<Guest>,
    /// That of the host.
    pub host: Daemon,
    _directory: TempDir,
}

/// How a host and its guests are set up.
#[derive(Debug)]
struct Setup<'a> {
    /// Of each region.
    memory: &'a str,
    /// In the configuration of the host.
    link: &'a str,
    /// In that of each machine.
    limits: &'a [&'a str],
    managed: bool,
    /// Arguments of the guests' daemons.
    more: &'a [&'a str],
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            memory: "1 GiB",
            link: "",
            limits: &[],
            managed: false,
            more: &[],
        }
    }
}

impl Guests {
    /// A guest of each of these tenants. `more` are arguments of their daemons, which serve everybody unless those say
    /// whom.
    pub fn start(tenants: &[&str], more: &[&str]) -> Self {
        Self::configured(tenants, "1 GiB", more)
    }

    /// The same, with regions of another size.
    pub fn configured(tenants: &[&str], memory: &str, more: &[&str]) -> Self {
        let setup = Setup {
            memory,
            more,
            ..Setup::default()
        };
        Self::hosted(tenants, &setup)
    }

    /// A guest of each of these tenants, whose host has this in its configuration besides.
    pub fn linked(tenants: &[&str], link: &str) -> Self {
        let setup = Setup {
            link,
            ..Setup::default()
        };
        Self::hosted(tenants, &setup)
    }

    /// A guest of each of these tenants, whose host has this in its configuration of each.
    pub fn limited(tenants: &[&str], limits: &[&str]) -> Self {
        let setup = Setup {
            limits,
            ..Setup::default()
        };
        Self::hosted(tenants, &setup)
    }

    /// A guest of each of these tenants, whose host is looked after by a [`Manager`](super::manager::Manager).
    pub fn managed(tenants: &[&str]) -> Self {
        let setup = Setup {
            managed: true,
            ..Setup::default()
        };
        Self::hosted(tenants, &setup)
    }

    fn hosted(tenants: &[&str], setup: &Setup<'_>) -> Self {
        // Other users' programs come to the sockets in it.
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        let device = |index: usize| directory.path().join(format!("vm-{index}.sock"));
        let machines: String = (0..tenants.len())
            .map(|index| {
                format!(
                    "[[vm]]\nname = \"{index}\"\nsocket = \"{}\"\ntenant = \"{}\"\nmemory = \"{}\"\n\
                     addresses = [\"127.0.0.0/8\", \"::1\"]\nshared_network = true\n{}\n",
                    device(index).display(),
                    tenants[index],
                    setup.memory,
                    setup.limits.get(index).unwrap_or(&""),
                )
            })
            .collect();
        let configuration = format!("{}{machines}", setup.link);
        let host = if setup.managed {
            Daemon::managed(&configuration)
        } else {
            Daemon::configured(&configuration)
        };
        let guests = (0..tenants.len()).map(|index| {
            let socket = directory.path().join(format!("guest-{index}.sock"));
            Guest::start(&device(index), &socket, setup.more)
        });
        let guests = guests.collect();
        Self {
            guests,
            host,
            _directory: directory,
        }
    }
}
