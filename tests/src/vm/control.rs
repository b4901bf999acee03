//! Commands that run inside a guest. The other side is `init.sh`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What a command has said and how it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its status, as a shell sees it.
    pub status: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
}

impl Said {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// The channel into one guest.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    number: u128,
}

impl Control {
    /// Connects to the guest whose channel is at `path`. Only one can at a time.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path)?,
            // Nobody who spoke with this guest before has used it.
            number: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |time| time.as_nanos()),
        })
    }

    /// Runs `command` in a shell of the guest and waits until it ends.
    ///
    /// # Errors
    /// It did not end in time, or the guest is gone.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Said> {
        let deadline = Instant::now() + limit;
        self.number += 1;
        let line = format!("{} {}\n", self.number, base64(command.as_bytes()));
        self.stream.set_write_timeout(Some(limit))?;
        self.stream
            .write_all(line.as_bytes())
            .context("the guest takes no commands")?;
        loop {
            let head = self
                .line(deadline)
                .with_context(|| format!("waiting for: {command}"))?;
            let numbers: Vec<_> = head.split(' ').collect();
            let &[number, status, out, err] = numbers.as_slice() else {
                continue;
            };
            let (Ok(status), Ok(out), Ok(err)) = (status.parse(), out.parse(), err.parse()) else {
                continue;
            };
            let said = Said {
                status,
                out: self.bytes(out, deadline)?,
                err: self.bytes(err, deadline)?,
            };
            // Answers to somebody who did not wait for them are passed over.
            if number == self.number.to_string() {
                return Ok(said);
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match self.bytes(1, deadline)?.as_slice() {
                [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte => line.extend(byte),
            }
        }
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut at = 0;
        while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer in time");
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(room) {
                Ok(0) => bail!("the guest is gone"),
                Ok(more) => at += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [one, two, three] = [0, 1, 2]
            .map(|at| chunk.get(at).copied().unwrap_or(0))
            .map(u32::from);
        let bits = one << 16 | two << 8 | three;
        for place in 0..4 {
            let digit = BASE64.get((bits >> (18 - 6 * place) & 63) as usize);
            let digit = digit.filter(|_| place <= chunk.len());
            text.push(digit.copied().unwrap_or(b'=').into());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_in_base64() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn answers_to_others_are_passed_over() {
        let (stream, mut guest) = UnixStream::pair().unwrap();
        let mut control = Control { stream, number: 41 };
        guest
            .write_all(b"rest of one\n7 0 3 1\nabcd42 3 4 2\nout\nno")
            .unwrap();
        let said = control.run("true", Duration::from_secs(10)).unwrap();
        assert_eq!((said.status, said.text()), (3, "out\n".to_owned()));
        assert_eq!(said.err, b"no");
        let mut asked = [0; 12];
        guest.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"42 dHJ1ZQ==\n");
        drop(guest);
        assert!(control.run("true", Duration::from_secs(10)).is_err());
    }
}
