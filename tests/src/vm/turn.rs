//! Guests are large and slow: tests that boot some take turns, also those of other processes.

use std::fs::{self, File};

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};

use super::cache;

/// The right to have guests; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits for it.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn take() -> Result<Self> {
        fs::create_dir_all(cache())?;
        let file = File::create(cache().join("turn"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Self { _file: file })
    }
}
