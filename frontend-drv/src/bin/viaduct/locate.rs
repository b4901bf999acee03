//! Where the library and the daemon's program are, and what a command's name stands for.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::failure::Failure;

/// The preload library: as named, or where an installation or a build puts it.
pub(crate) fn library(option: Option<&Path>) -> Result<PathBuf> {
    let named = match option {
        Some(path) => Some((path.to_owned(), "--library")),
        None => env::var_os("VIADUCT_LIBRARY")
            .filter(|value| !value.is_empty())
            .map(|path| (PathBuf::from(path), "VIADUCT_LIBRARY")),
    };
    let found = match named {
        Some((path, by)) if !path.is_file() => {
            let message = format!("{by}: {} is not a file", path.display());
            return Err(Failure::bad_input(message).into());
        }
        Some((path, _)) => path,
        None => {
            let places = library_places();
            let found = places.iter().map(|place| place.join(LIBRARY));
            found.into_iter().find(|path| path.is_file()).with_context(|| {
                format!(
                    "{LIBRARY} is not in {}: install it, or name it with --library or VIADUCT_LIBRARY",
                    list(&places)
                )
            })?
        }
    };
    let found = std::path::absolute(&found)
        .with_context(|| format!("cannot resolve {}", found.display()))?;
    // The loader splits LD_PRELOAD at both and knows no quoting.
    if found.to_string_lossy().contains([' ', ':']) {
        let message = format!(
            "{}: a path with a space or a colon cannot be preloaded, use a link elsewhere",
            found.display()
        );
        return Err(Failure::bad_input(message).into());
    }
    Ok(found)
}

/// The daemon's program: beside this one, in PATH, or where system programs are.
pub(crate) fn daemon_program() -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = beside().into_iter().collect();
    let path = env::var_os("PATH").unwrap_or_default();
    places.extend(env::split_paths(&path).filter(|dir| dir.is_absolute()));
    places.extend(SYSTEM_PLACES.iter().map(PathBuf::from));
    let program = places.iter().map(|place| place.join(DAEMON));
    program.into_iter().find(|path| is_program(path)).with_context(|| {
        format!(
            "{DAEMON} is neither beside {} nor in PATH or {}: install it, or name a running daemon's socket with --socket",
            env::current_exe().unwrap_or_default().display(),
            SYSTEM_PLACES.join(", ")
        )
    })
}

/// What execvp would run for `name`.
pub(crate) fn command(name: &OsStr) -> Result<PathBuf, Failure> {
    let shown = Path::new(name).display();
    if name.as_encoded_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Ok(_) if is_program(&path) => Ok(path),
            Ok(meta) if meta.is_dir() => Err(Failure::with_code(
                CANNOT_RUN,
                format!("{shown} is a directory"),
            )),
            Ok(_) => Err(Failure::with_code(
                CANNOT_RUN,
                format!("{shown} is not executable: chmod +x it"),
            )),
            Err(error) => Err(Failure::with_code(NOT_FOUND, format!("{shown}: {error}"))),
        };
    }
    // execvp's default where PATH is not set.
    let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut places = env::split_paths(&path).map(|dir| dir.join(name));
    places
        .find(|path| is_program(path))
        .ok_or_else(|| Failure::with_code(NOT_FOUND, format!("{shown}: command not found in PATH")))
}

/// Exit status of a launcher whose command is there but cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// Exit status of a launcher whose command is not there.
pub(crate) const NOT_FOUND: u8 = 127;

fn library_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(beside) = beside() {
        if let Some(prefix) = beside.parent() {
            places.extend([prefix.join("lib/viaduct"), prefix.join("lib")]);
        }
        places.insert(0, beside);
    }
    places.extend(["/usr/lib/viaduct", "/usr/local/lib"].map(PathBuf::from));
    places
}

/// The directory of this program's file.
fn beside() -> Option<PathBuf> {
    env::current_exe().ok()?.parent().map(Path::to_owned)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn list(places: &[PathBuf]) -> String {
    let names = places.iter().map(|place| place.display().to_string());
    names.collect::<Vec<_>>().join(", ")
}

const LIBRARY: &str = "libviaduct.so";
const DAEMON: &str = "viaductd";
const SYSTEM_PLACES: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_execvp_finds_them() {
        assert!(command(OsStr::new("sh")).unwrap().is_absolute());
        assert_eq!(
            command(OsStr::new("/bin/sh")).unwrap(),
            Path::new("/bin/sh")
        );
        for missing in [
            "no-such-command-of-anybody",
            "/nonexistent/x",
            "/etc/passwd",
            "/tmp",
        ] {
            assert!(command(OsStr::new(missing)).is_err(), "{missing}");
        }
    }

    #[test]
    fn a_path_that_the_loader_would_split_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with space.so");
        fs::write(&path, "").unwrap();
        let error = library(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("cannot be preloaded"), "{error}");
    }
}
