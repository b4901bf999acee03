//! Where the library and the daemon under test are.

use std::path::PathBuf;

/// The library.
pub fn library() -> PathBuf {
    find("libviaduct.so")
}

/// The daemon.
pub fn viaductd() -> PathBuf {
    find("viaductd")
}

/// The daemon of virtual machines.
pub fn viaduct_guest() -> PathBuf {
    find("viaduct-guest")
}

/// The tool.
pub fn viaduct() -> PathBuf {
    find("viaduct")
}

/// A built file, in VIADUCT_BUILD_DIR or else where the running test or program was built.
///
/// # Panics
/// If it is not there.
fn find(name: &str) -> PathBuf {
    let directory = std::env::var_os("VIADUCT_BUILD_DIR")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| {
            // target/PROFILE/deps/TEST or target/PROFILE/PROGRAM
            let own = std::env::current_exe().ok()?;
            let beside = own.parent()?;
            let is_test = beside.ends_with("deps");
            Some(if is_test { beside.parent()? } else { beside }.to_path_buf())
        })
        .unwrap_or_default();
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace` for the same profile first (or set VIADUCT_BUILD_DIR)",
        path.display()
    );
    path
}
