//! What a program did is counted once, however it ends.

use serde_json::Value;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::{Form, SESSION};

use crate::duo::{Duo, Way};

/// How the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It closes its connection first.
    Close,
    /// It just exits.
    Exit,
    /// It exits while a thread is blocked on its connection.
    ExitReading,
    Kill,
}

/// The totals once no program is there any more.
fn totals_of_gone(daemon: &Daemon) -> Value {
    retry("the programs are gone", || {
        let status = daemon.status();
        let programs = status["processes"].as_array().map(Vec::len);
        (programs == Some(0)).then_some(())
    });
    daemon.totals(SESSION)
}

#[test]
fn bytes_are_counted_once() {
    const COUNTS: [&str; 6] = [
        "ring_tx_bytes",
        "ring_rx_bytes",
        "tcp_tx_bytes",
        "tcp_rx_bytes",
        "upgraded",
        "declined",
    ];
    for end in [End::Close, End::Exit, End::ExitReading, End::Kill] {
        let daemon = Daemon::start();
        let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
        duo.stream(0, 3_000_000);
        let living = daemon.totals(SESSION);
        assert_eq!(living["ring_tx_bytes"], living["ring_rx_bytes"], "{end:?}");
        assert!(
            living["ring_tx_bytes"].as_u64() > Some(6_000_000),
            "{end:?}"
        );
        if end == End::Close {
            duo.client.ask("close 0");
            duo.server.ask("close 0");
        }
        if end == End::ExitReading {
            duo.client.tell("exit-reading 0");
        }
        match end {
            End::Kill => drop(duo),
            End::Close | End::Exit | End::ExitReading => {
                duo.client.dismiss();
                duo.server.dismiss();
            }
        }
        let gone = totals_of_gone(&daemon);
        for count in COUNTS {
            assert_eq!(
                gone[count], living[count],
                "{count}, {end:?}: {gone} {living}"
            );
        }
    }
}

/// Forked children send some of the bytes, and exit.
#[test]
fn bytes_of_children_are_counted_once() {
    let daemon = Daemon::start();
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    duo.both("bursts 0 30 7 8 1", "bursts 0 30 8 7 1");
    let living = daemon.totals(SESSION);
    duo.client.dismiss();
    duo.server.dismiss();
    let gone = totals_of_gone(&daemon);
    for ways in [
        ["ring_tx_bytes", "ring_rx_bytes"],
        ["tcp_tx_bytes", "tcp_rx_bytes"],
    ] {
        let [sent, received] = ways.map(|way| &gone[way]);
        assert_eq!(sent, received, "{ways:?}: {gone}");
        assert_eq!(gone[ways[0]], living[ways[0]], "{gone} {living}");
    }
}
