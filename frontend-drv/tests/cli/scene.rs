//! What the tests stand on: a directory, the tool's command line, files made for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory of a test, on the file system of the build so that the tool can be linked into it.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The tool, with nothing of Viaduct in its environment and no daemon to be found by chance.
pub(crate) fn viaduct(dir: &Path, arguments: &[&str]) -> Command {
    tool_at(Path::new(env!("CARGO_BIN_EXE_viaduct")), dir, arguments)
}

/// As [`viaduct`], for a tool that was copied elsewhere.
pub(crate) fn tool_at(tool: &Path, dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VIADUCT_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("LD_PRELOAD")
        .env("XDG_RUNTIME_DIR", dir)
        .stdin(Stdio::null())
        .args(arguments);
    command
}

/// Runs to the end.
pub(crate) fn finish(mut command: Command) -> Finished {
    Finished(command.output().unwrap())
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Finished(pub(crate) Output);

impl Finished {
    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    /// Asserts a failure that says one line, with these words in it, and nothing on stdout.
    #[track_caller]
    pub(crate) fn assert_fails(&self, code: i32, words: &[&str]) {
        let stderr = self.stderr();
        assert_eq!(self.code(), Some(code), "{self:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("viaduct: "), "{stderr}");
        assert_eq!(self.stdout(), "");
        for word in words {
            assert!(stderr.contains(word), "no \"{word}\" in: {stderr}");
        }
    }
}

/// Compiles C; none, said on stderr, without a compiler or with one that cannot do it.
pub(crate) fn compile(dir: &Path, name: &str, source: &str, options: &[&str]) -> Option<PathBuf> {
    let path = dir.join(name);
    let input = dir.join(format!("{name}.c"));
    fs::write(&input, source).unwrap();
    let mut cc = Command::new("cc");
    cc.args(options).arg("-o").arg(&path).arg(&input);
    match cc.output() {
        Ok(output) if output.status.success() => Some(path),
        other => {
            eprintln!("SKIPPED: cc cannot make {name}: {other:?}");
            None
        }
    }
}

/// A library that changes nothing.
pub(crate) fn empty_library(dir: &Path) -> Option<String> {
    let path = compile(
        dir,
        "empty.so",
        "int viaduct_test;\n",
        &["-shared", "-fPIC"],
    )?;
    Some(path.to_str().unwrap().to_owned())
}

/// Makes a script that anybody may run.
pub(crate) fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits until `done`. Whether it ever comes true is for the watchdog of the test run to judge.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
