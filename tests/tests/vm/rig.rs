//! What tests with guests need.

use std::path::PathBuf;

use anyhow::{Context, Result};
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
    #[expect(clippy::print_stdout, reason = "scripts/test counts such lines")]
    pub(crate) fn new() -> Result<Option<Self>> {
        let kernel = check_tools().and_then(|()| Kernel::prepared().context("no kernel"));
        match kernel {
            Ok(kernel) => Ok(Some(Self {
                kernel,
                directory: tempfile::tempdir()?,
                _turn: Turn::take()?,
            })),
            Err(why) => {
                println!("skipped: guests: {why:#}; `scripts/test vm` gets what they need");
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
