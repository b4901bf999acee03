//! Resource limits of the daemon and of programs.

use rustix::process::Resource;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::Form;

use crate::duo::{Duo, Way, skipped};

const MIB: usize = 1 << 20;

#[test]
fn a_daemon_that_cannot_make_memory() {
    let mut daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut before = Duo::connected(&form, Way::Ring);
    daemon.limit(Resource::Fsize, Some(0));
    // Programs that it knows, programs that it does not, and both until its arenas are full.
    for index in 1..4 {
        before.connect(index);
        before.warm_up(index, Way::Any);
        before.stream(index, MIB);
    }
    let mut during = Duo::connected(&form, Way::Kernel);
    during.stream(0, MIB);
    assert!(daemon.is_alive(), "the daemon lives on");
    daemon.limit(Resource::Fsize, None);
    let mut after = Duo::connected(&form, Way::Ring);
    after.stream(0, MIB);
    before.stream(0, MIB);
    assert!(daemon.is_alive(), "the daemon lives on");
}

#[test]
fn a_daemon_whose_log_has_no_space() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let Ok(full) = full else {
        return skipped("no /dev/full");
    };
    let mut daemon = Daemon::logging_to(full);
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    duo.stream(0, MIB);
    assert!(daemon.is_alive(), "the daemon lives on");
}

#[test]
fn a_program_with_few_descriptors() {
    limited("limit nofile 64");
}

#[test]
fn a_program_with_hardly_any_descriptors() {
    limited("limit nofile 12");
}

#[test]
fn a_program_with_little_address_space() {
    limited(&format!("limit as {}", 256 * MIB));
}

/// The limited program is the client once and the server once.
fn limited(line: &str) {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    for limited_client in [true, false] {
        let mut duo = Duo::new(&form);
        let one = if limited_client {
            &mut duo.client
        } else {
            &mut duo.server
        };
        assert_eq!(one.ask(line), "ok");
        for index in 0..3 {
            duo.connect(index);
            duo.warm_up(index, Way::Any);
            duo.stream(index, 4 * MIB);
        }
        duo.client.dismiss();
        duo.server.dismiss();
    }
}
