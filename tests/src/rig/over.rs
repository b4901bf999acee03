//! A word between a test and its thread.

use std::sync::atomic::{AtomicBool, Ordering};

/// Raised when it is dropped, also by a test that fails: whoever works beside the test then stops.
#[derive(Debug)]
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
