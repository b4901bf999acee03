//! One thread of another process, held up while the others go on.

use std::io;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::daemon::retry;

/// See the module documentation. Goes on when this is dropped, by the thread that made it.
#[derive(Debug)]
pub struct Held(Pid);

impl Held {
    /// Holds up the thread with this name of a process that we have started, as soon as it sleeps: then it keeps
    /// nothing that others wait for.
    ///
    /// # Errors
    /// This system does not let us.
    ///
    /// # Panics
    /// There is no such thread.
    pub fn thread(process: rustix::process::Pid, name: &str) -> io::Result<Self> {
        let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
        let thread = std::fs::read_dir(&tasks)?.flatten().find_map(|task| {
            let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let number = task.file_name().to_str()?.parse().ok()?;
            (comm.trim_end() == name).then_some(Pid::from_raw(number))
        });
        let thread = thread.unwrap_or_else(|| panic!("no thread {name} in {tasks}"));
        retry("the thread sleeps", || {
            let stat = std::fs::read_to_string(format!("{tasks}/{thread}/stat"));
            // The state follows the name, which may hold anything.
            let stat = stat.ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            rest.starts_with(" S").then_some(())
        });
        ptrace::seize(thread, ptrace::Options::empty())?;
        ptrace::interrupt(thread)?;
        waitpid(thread, Some(WaitPidFlag::__WALL))?;
        Ok(Self(thread))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Its process may have ended.
        let _ = ptrace::detach(self.0, None);
    }
}
