//! What a program did is counted once, however it ends.

use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::{Form, SESSION};

use crate::duo::{Duo, Way};

/// How the program ends: it closes its connection first, just exits, or is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Close,
    Exit,
    Kill,
}

#[test]
fn bytes_are_counted_once() {
    for end in [End::Close, End::Exit, End::Kill] {
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
        let agents = [duo.client, duo.server];
        match end {
            End::Kill => drop(agents),
            End::Close | End::Exit => agents.into_iter().for_each(|agent| agent.dismiss()),
        }
        retry("the programs are gone", || {
            let status = daemon.status();
            let programs = status["processes"].as_array().map(Vec::len);
            (programs == Some(0)).then_some(())
        });
        let gone = daemon.totals(SESSION);
        for count in [
            "ring_tx_bytes",
            "ring_rx_bytes",
            "tcp_tx_bytes",
            "tcp_rx_bytes",
            "upgraded",
            "declined",
        ] {
            assert_eq!(
                gone[count], living[count],
                "{count}, {end:?}: {gone} {living}"
            );
        }
    }
}
