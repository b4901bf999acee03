//! A process that shares a connection by fork is killed while it holds a direction's lock.

use viaduct_tests::rig::daemon::Daemon;

use crate::duo::{Duo, forms};

const ROUNDS: usize = 60;

#[test]
fn in_the_middle_of_a_send() {
    let daemon = Daemon::start();
    for (form, way) in forms(&daemon) {
        let mut duo = Duo::connected(&form, way);
        duo.server.tell("census 0");
        assert_eq!(duo.client.ask(&format!("orphan 0 {ROUNDS}")), "ok");
        assert_eq!(duo.client.ask("close 0"), "ok");
        let counted = duo.server.answer();
        assert_eq!(counted, format!("ret 1 {ROUNDS} 0"), "{way:?}");
    }
}
