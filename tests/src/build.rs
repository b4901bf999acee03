//! Where the programs under test are: beside the test itself, or where VIADUCT_BUILD_DIR says.

use std::path::PathBuf;

/// The preload library.
pub fn library() -> PathBuf {
    find("libviaduct.so")
}

/// The daemon.
pub fn viaductd() -> PathBuf {
    find("viaductd")
}

/// The tool.
pub fn viaduct() -> PathBuf {
    find("viaduct")
}

/// A built file.
///
/// # Panics
/// With one line that says what to do, if it is not there.
fn find(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace` (with --release for release tests), or set VIADUCT_BUILD_DIR",
        path.display()
    );
    path
}

/// The profile's directory: a test lies in its `deps`.
fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("VIADUCT_BUILD_DIR") {
        return PathBuf::from(directory);
    }
    let exe = std::env::current_exe().expect("a running program has a path");
    let deps = exe.parent().expect("a program lies in a directory");
    deps.parent().unwrap_or(deps).to_owned()
}
