//! Programs that begin with several threads at once.

use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::Form;

use crate::duo::Duo;

/// What the library makes at the first connection is made once; no other connection is lost for it.
#[test]
fn first_connections_in_the_same_moment() {
    const COUNT: usize = 16;
    let daemon = Daemon::start();
    for _ in 0..5 {
        let mut duo = Duo::new(&Form::accelerated(daemon.socket()));
        let port = duo.server.ask("listen");
        let line = format!("connect-all {COUNT} {port}");
        assert_eq!(duo.client.ask(&line), "ok");
        let client = duo.client.pid().as_raw_nonzero().get();
        retry("every connection is registered", || {
            let status = daemon.status();
            let connections = status["connections"].as_array()?;
            let known = |entry: &&serde_json::Value| entry["pid"] == client;
            (connections.iter().filter(known).count() == COUNT).then_some(())
        });
        duo.client.dismiss();
        duo.server.dismiss();
    }
}
