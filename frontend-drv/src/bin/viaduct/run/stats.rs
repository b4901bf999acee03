//! What the connections of a session did, asked for when its program has ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rdma_core::control::Query;

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::query::Connection;
use crate::report::Totals;
use crate::units;

/// Asks on the connection that was held all along, else on a new one: the daemon may have been
/// restarted meanwhile.
pub(super) fn ask(daemon: &Daemon, session: u64) -> Result<Totals> {
    let answer = daemon
        .connection
        .ask(Query::TOTALS, session)
        .or_else(|error| {
            tracing::info!("asking again after: {error}");
            Connection::open(&daemon.socket)?.ask(Query::TOTALS, session)
        });
    let socket = daemon.socket.display();
    let text = answer.with_context(|| format!("asking the daemon at {socket}"))?;
    Totals::parse(&text).with_context(|| format!("reading the answer of the daemon at {socket}"))
}

/// A few lines on stderr.
pub(super) fn print(totals: &Totals) {
    let _ = io::stderr().lock().write_all(text(totals).as_bytes());
}

fn text(totals: &Totals) -> String {
    if totals.programs == Some(0) {
        return "viaduct: nothing to count: no connection to a peer lasted long enough to be \
                registered, or the library was not loaded (see viaduct doctor -- CMD)\n"
            .to_owned();
    }
    let way = |sent, received| {
        let (sent, received) = (units::bytes(sent), units::bytes(received));
        format!("{sent} sent, {received} received")
    };
    let reasons = match totals.reasons_text() {
        none if none.is_empty() => none,
        some => format!(" ({some})"),
    };
    format!(
        "viaduct: ring         {}\n\
         viaduct: TCP          {}\n\
         viaduct: connections  {} upgraded, {} declined{reasons}\n\
         viaduct: wake-ups     {} sent, {} sleeps\n",
        way(totals.ring_tx_bytes, totals.ring_rx_bytes),
        way(totals.tcp_tx_bytes, totals.tcp_rx_bytes),
        totals.upgraded,
        totals.declined,
        totals.wakeups_sent,
        totals.sleeps,
    )
}

/// The file of `--stats-json`: absent or whole, never half written and never of an earlier run.
#[derive(Debug)]
pub(super) struct StatsFile {
    path: PathBuf,
    part: PathBuf,
}

impl StatsFile {
    /// Makes sure, before the program starts, that the file can be written.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let wrong = |error: &io::Error| {
            Failure::bad_input(format!(
                "--stats-json: cannot write {}: {error}",
                path.display()
            ))
        };
        let path = std::path::absolute(path).map_err(|error| wrong(&error))?;
        if !is_replaceable(&path) {
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(|error| wrong(&error))?;
            return Ok(Self {
                part: path.clone(),
                path,
            });
        }
        let mut part = path.clone().into_os_string();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        File::create_new(&part).map_err(|error| wrong(&error))?;
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let _ = fs::remove_file(&part);
            return Err(wrong(&error).into());
        }
        Ok(Self { path, part })
    }

    pub(super) fn write(&self, totals: &Totals) -> Result<()> {
        let mut text = format!("{:#}", totals.to_json());
        text.push('\n');
        fs::write(&self.part, text)
            .and_then(|()| match self.part == self.path {
                true => Ok(()),
                false => fs::rename(&self.part, &self.path),
            })
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for StatsFile {
    fn drop(&mut self) {
        if self.part != self.path {
            // Gone already if it was written.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Whether the path names a plain file or nothing: /dev/stdout and pipes are written in place.
fn is_replaceable(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |meta| meta.is_file() || meta.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_file_goes_at_once_and_a_new_one_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        fs::write(&path, "old").unwrap();
        let file = StatsFile::new(&path).unwrap();
        assert!(!path.exists());
        file.write(&Totals::default()).unwrap();
        drop(file);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(Totals::parse(&text).unwrap(), Totals::default());
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "no part of a file is left");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_bad_input() {
        let error = StatsFile::new(Path::new("/nonexistent/stats.json")).unwrap_err();
        assert!(error.is::<Failure>());
        assert!(StatsFile::new(Path::new("/tmp")).is_err());
    }

    #[test]
    fn the_text_names_reasons_only_if_there_are_some() {
        let mut totals = Totals {
            declined: 2,
            ..Totals::default()
        };
        assert!(text(&totals).contains("2 declined\n"));
        totals.reasons.insert("young".to_owned(), 2);
        assert!(text(&totals).contains("2 declined (young 2)\n"));
        totals.programs = Some(0);
        assert!(text(&totals).contains("nothing to count"));
    }
}
