//! Writing results to stdout.

use std::io::{self, Write};

/// Writes the whole text. A reader that has closed its pipe ends the tool quietly; see
/// [`crate::failure::report`].
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
