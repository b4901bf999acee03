//! What QEMU is told while it runs: QMP, a line of JSON for each question and answer.

use std::io::{BufRead, BufReader, IoSlice, Lines};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Monitor {
    /// Connects to the monitor at a socket.
    ///
    /// # Errors
    /// Nobody is there, or it speaks something else.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let mut monitor = Self { stream, lines };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Says something, and what it answers.
    ///
    /// # Errors
    /// It does not answer, or not with a result.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask_with(command, arguments, &[])
    }

    fn ask_with(
        &mut self,
        command: &str,
        arguments: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(
                ancillary.push(SendAncillaryMessage::ScmRights(fds)),
                "one descriptor at a time"
            );
        }
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(line.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        ensure!(
            sent == line.len(),
            "QEMU takes {sent} bytes of {}",
            line.len()
        );
        for line in self.lines.by_ref() {
            let said: Value = serde_json::from_str(&line?)?;
            if let Some(result) = said.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = said.get("error") {
                bail!("QEMU: {error}");
            }
        }
        bail!("QEMU is gone");
    }

    /// Moves its machine to another QEMU, which waits at a socket, and waits until it is there. This one has none then.
    ///
    /// # Errors
    /// The machine stays here, or is not there after a minute.
    pub fn migrate(&mut self, to: &Path) -> Result<()> {
        // Bytes in a second; usual is an eighth of a gigabyte.
        self.ask(
            "migrate-set-parameters",
            &json!({"max-bandwidth": 1_u64 << 32}),
        )?;
        self.ask("migrate", &json!({"uri": format!("unix:{}", to.display())}))?;
        for _ in 0..600 {
            let said = self.ask("query-migrate", &json!({}))?;
            match said["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU: {said}"),
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        bail!("the machine does not move")
    }

    /// Gives it descriptors that nothing ever happens on, so that the lowest numbers are taken.
    ///
    /// A QEMU that has no irqfd, as one that emulates the processor, goes on to poll the numbers of the eventfds of an
    /// ivshmem device that was unplugged, for a device that is freed (hw/misc/ivshmem, up to 10.0). Whatever gets such a
    /// number next makes it crash. QEMU 7.2 closes them again when nobody is connected any more.
    ///
    /// # Errors
    /// It does not take them.
    pub fn occupy_numbers(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let silent = eventfd(0, EventfdFlags::CLOEXEC)?;
            self.ask_with("add-fd", &json!({}), &[silent.as_fd()])?;
        }
        Ok(())
    }
}
