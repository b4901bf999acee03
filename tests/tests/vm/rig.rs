//! What tests with guests need.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use viaduct_tests::vm::check_tools;
use viaduct_tests::vm::guest::{Guest, Spec};
use viaduct_tests::vm::kernel::Kernel;
use viaduct_tests::vm::turn::Turn;

/// A kernel, a directory, and the right to have guests.
pub(crate) struct Rig {
    /// For all guests.
    pub(crate) kernel: Kernel,
    directory: tempfile::TempDir,
    _turn: Turn,
}

impl Rig {
    /// `None`, and a line that says so, where there can be no guests.
    pub(crate) fn new() -> Result<Option<Self>> {
        let kernel = check_tools().and_then(|()| Kernel::prepared().context("no kernel"));
        match kernel {
            Ok(kernel) => Ok(Some(Self {
                kernel,
                directory: tempfile::tempdir()?,
                _turn: Turn::take()?,
            })),
            Err(why) => {
                skipped(&format!(
                    "guests: {why:#}; `scripts/test vm` gets what they need"
                ));
                Ok(None)
            }
        }
    }

    /// A path in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A guest with the program `guest`.
    pub(crate) fn spec(&self, name: &str) -> Spec {
        let mut spec = Spec::new(self.path(name));
        spec.contents
            .programs
            .push(env!("CARGO_BIN_EXE_guest").into());
        spec
    }

    /// Boots it.
    pub(crate) fn boot(&self, spec: &Spec) -> Result<Guest> {
        Guest::boot(&self.kernel, spec)
    }
}

/// The interface of a test's own network to which a guest can be connected, and our address there.
pub(crate) const TAP: &str = "tap-guest";
pub(crate) const HOST: &str = "10.77.0.9";

/// Runs a test where nobody else is on the network, and with these addresses. Needs root.
pub(crate) fn in_own_network(
    addresses: &[&str],
    test: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    thread::scope(|scope| {
        let alone = scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                skipped("a network of its own needs root");
                return Ok(());
            }
            ip("link set lo up")?;
            ip(&format!("tuntap add {TAP} mode tap vnet_hdr"))?;
            ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
            ip(&format!("link set {TAP} up"))?;
            for address in addresses {
                ip(&format!("addr add {address}/32 dev lo"))?;
            }
            test()
        });
        alone
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// ip(8), in the network of the calling thread.
pub(crate) fn ip(line: &str) -> Result<()> {
    let said = Command::new("ip").args(line.split(' ')).output()?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "ip {line}: {error}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "scripts/test counts such lines")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}
