//! From a `#!` script to the program that runs it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::locate;

/// The scripts on the way, and the file that is not a script.
pub(super) fn follow(command: &Path) -> Result<(Vec<PathBuf>, PathBuf)> {
    let mut scripts = Vec::new();
    let mut path = command.to_owned();
    while let Some(interpreter) = interpreter(&path)? {
        scripts.push(path);
        if scripts.len() > DEPTH_MAX {
            bail!("{}: more than {DEPTH_MAX} interpreters", command.display());
        }
        path = interpreter;
    }
    Ok((scripts, path))
}

/// What runs the script at `path`; none if it is not a script.
fn interpreter(path: &Path) -> Result<Option<PathBuf>> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD_MAX).read_to_end(&mut head))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let Some(rest) = head.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let Some(first) = words.next() else {
        bail!("{}: nothing stands behind #!", path.display());
    };
    let first = Path::new(OsStr::from_bytes(first));
    if first.file_name() != Some(OsStr::new("env")) {
        return Ok(Some(first.to_owned()));
    }
    // env runs the first word that is neither an option nor an assignment.
    let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    match name {
        Some(name) => Ok(Some(locate::command(OsStr::from_bytes(name))?)),
        None => Ok(Some(first.to_owned())),
    }
}

/// The kernel follows as many.
const DEPTH_MAX: usize = 5;
/// The kernel reads as much of the first line.
const HEAD_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn follow_text(text: &str) -> Result<(Vec<PathBuf>, PathBuf)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, text).unwrap();
        follow(&path)
    }

    #[test]
    fn interpreters_are_followed() {
        let (scripts, path) = follow_text("#! /bin/sh -e\nexit\n").unwrap();
        assert_eq!((scripts.len(), path.as_path()), (1, Path::new("/bin/sh")));
        for line in ["#!/usr/bin/env sh", "#!/usr/bin/env -S A=b sh -e"] {
            let (_, path) = follow_text(line).unwrap();
            assert_eq!(path.file_name(), Some(OsStr::new("sh")), "{line}");
        }
    }

    #[test]
    fn what_is_no_script_is_itself() {
        assert_eq!(follow_text("text").unwrap().0.len(), 0);
        assert_eq!(follow_text("").unwrap().0.len(), 0);
    }

    #[test]
    fn broken_scripts_are_errors() {
        assert!(follow_text("#!\n").is_err());
        assert!(follow_text("#!/nonexistent/interpreter\n").is_err());
        assert!(follow_text("#!/usr/bin/env no-such-command-of-anybody\n").is_err());
    }

    #[test]
    fn scripts_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("circle");
        fs::write(&path, format!("#!{}\n", path.display())).unwrap();
        assert!(follow(&path).is_err());
    }
}
