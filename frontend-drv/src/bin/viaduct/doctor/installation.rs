//! Checks of what belongs to us: the library, a daemon, the environment.

use std::env;
use std::path::Path;

use rdma_core::control::DEFAULT_SOCKET;
use rdma_core::layout::{RING_LOG2_MAX, RING_LOG2_MIN};

use super::Findings;
use crate::daemon::{self, Daemon};
use crate::locate;
use crate::peers::PeerList;
use crate::program::Image;

/// Finds the library and looks whether it is ours.
pub(super) fn check_library(findings: &mut Findings, option: Option<&Path>) -> Option<Image> {
    let path = match locate::library(option) {
        Ok(path) => path,
        Err(error) => {
            findings.problem(format!("library: {error:#}"));
            return None;
        }
    };
    let name = path.display();
    let image = match Image::open(&path) {
        Ok(image) => image,
        Err(error) => {
            findings.problem(format!("library: {name}: {error:#}: install it again"));
            return None;
        }
    };
    let version = image.version.as_deref();
    if image.sockets_defined == 0 {
        findings.problem(format!(
            "library: {name} defines no socket function, so it is not Viaduct's: install it again"
        ));
    } else if version.is_some_and(|version| version != OWN_VERSION) {
        findings.note(format!(
            "library: {name} is version {}, this tool is {OWN_VERSION}: install them together",
            version.unwrap_or_default()
        ));
    } else {
        let version = version.map_or(String::new(), |version| format!(" {version}"));
        findings.ok(format!("library{version}: {name}, {}", image.machine()));
    }
    Some(image)
}

/// Whether a daemon answers, or one can be started.
pub(super) fn check_daemon(findings: &mut Findings, option: Option<&Path>) {
    if let Some(socket) = daemon::named(option) {
        match Daemon::reach(&socket) {
            Ok(daemon) => describe(findings, &daemon),
            Err(error) => findings.problem(format!(
                "daemon: none to use at {}: {error}: start viaductd there, or unset VIADUCT_SOCKET",
                socket.display()
            )),
        }
        return;
    }
    let mut why = String::new();
    for socket in daemon::candidates(None) {
        match Daemon::reach(&socket) {
            Ok(daemon) => return describe(findings, &daemon),
            Err(error) if error.is_absent() => {}
            Err(error) => why = format!(" ({}: {error})", socket.display()),
        }
    }
    match locate::daemon_program() {
        Ok(program) => findings.ok(format!(
            "daemon: none runs{why}; viaduct run starts {} for as long as it is needed",
            program.display()
        )),
        Err(error) => findings.problem(format!(
            "daemon: none answers at {DEFAULT_SOCKET}{why}; {error:#}"
        )),
    }
}

fn describe(findings: &mut Findings, daemon: &Daemon) {
    let limits = daemon.info.limits.iter();
    let limits: Vec<String> = limits
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let mut line = format!(
        "daemon {}: {}",
        daemon.info.version,
        daemon.socket.display()
    );
    if !limits.is_empty() {
        line = format!("{line}; {}", limits.join(", "));
    }
    findings.ok(line);
}

/// The variables that the library reads, as it reads them.
pub(super) fn check_environment(findings: &mut Findings) {
    match PeerList::resolve(None) {
        Ok(list) if list.policy.is_empty() => {
            findings.note("peers: the list names nobody, every connection stays plain TCP");
        }
        Ok(list) => findings.ok(format!("peers: {}", list.text)),
        Err(error) => findings.problem(format!("{error:#}")),
    }
    for (name, value) in env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if !name.starts_with("VIADUCT_") {
            continue;
        }
        match verdict(&name, &value) {
            Setting::Good if name == "VIADUCT_PEERS" => {}
            Setting::Good => findings.ok(format!("{name}={value}")),
            Setting::Noteworthy(why) => findings.note(format!("{name}={value}: {why}")),
            Setting::Bad(form) => findings.problem(format!("{name}: \"{value}\" is not {form}")),
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Setting {
    Good,
    Noteworthy(&'static str),
    Bad(&'static str),
}

fn verdict(name: &str, value: &str) -> Setting {
    let require = |good: bool, form| {
        if good {
            Setting::Good
        } else {
            Setting::Bad(form)
        }
    };
    let ring = 1u64 << RING_LOG2_MIN..=1u64 << RING_LOG2_MAX;
    let is_on = !value.is_empty() && value != "0";
    match name {
        "VIADUCT_UPGRADE_AFTER" => {
            require(is_upgrade_after(value), "CALLS[,BYTES], as in 16,16384")
        }
        "VIADUCT_RING_BYTES" => require(
            value.parse().is_ok_and(|bytes: u64| ring.contains(&bytes)),
            "a number of bytes from 65536 to 1073741824",
        ),
        "VIADUCT_SPIN_US" => require(
            value.parse().is_ok_and(|us: u32| us <= 1_000_000),
            "a number of microseconds from 0 to 1000000",
        ),
        "VIADUCT_SESSION" => require(
            u64::from_str_radix(value, 16).is_ok(),
            "a hexadecimal number",
        ),
        "VIADUCT_DISABLE" if is_on => Setting::Noteworthy("nothing is accelerated"),
        "VIADUCT_STRICT" if is_on => Setting::Noteworthy("declining a peer is an error"),
        // Checked where they are used.
        "VIADUCT_PEERS" | "VIADUCT_SOCKET" | "VIADUCT_LIBRARY" => Setting::Good,
        "VIADUCT_DISABLE" | "VIADUCT_STRICT" | "VIADUCT_LOG" | "VIADUCT_LOG_FILE" => Setting::Good,
        _ => Setting::Noteworthy("nothing reads a variable of this name"),
    }
}

fn is_upgrade_after(value: &str) -> bool {
    let (calls, bytes) = value.split_once(',').unwrap_or((value, "0"));
    calls.trim().parse::<u32>().is_ok() && bytes.trim().parse::<u64>().is_ok()
}

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_judged_as_the_library_does() {
        for (name, value) in [
            ("VIADUCT_UPGRADE_AFTER", "16,16384"),
            ("VIADUCT_UPGRADE_AFTER", "0"),
            ("VIADUCT_RING_BYTES", "65536"),
            ("VIADUCT_SPIN_US", "0"),
            ("VIADUCT_SESSION", "00ff"),
            ("VIADUCT_DISABLE", "0"),
        ] {
            assert_eq!(verdict(name, value), Setting::Good, "{name}={value}");
        }
        for (name, value) in [
            ("VIADUCT_UPGRADE_AFTER", "x"),
            ("VIADUCT_RING_BYTES", "4m"),
            ("VIADUCT_SPIN_US", "-1"),
            ("VIADUCT_SESSION", "xyz"),
        ] {
            assert!(
                matches!(verdict(name, value), Setting::Bad(_)),
                "{name}={value}"
            );
        }
        for (name, value) in [("VIADUCT_DISABLE", "1"), ("VIADUCT_PEER", "::1")] {
            let found = verdict(name, value);
            assert!(matches!(found, Setting::Noteworthy(_)), "{name}={value}");
        }
    }
}
