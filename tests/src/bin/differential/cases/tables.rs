//! Threads with descriptor tables of their own.

use std::thread;
use std::time::Duration;

use super::descriptors::child;
use super::{Case, Needs, case};
use crate::end::End;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("own_table", Needs::Processes, |stage| {
        own_table(stage, leave_by_unshare, false);
    }),
    case("own_table_meanwhile", Needs::Processes, |stage| {
        own_table(stage, leave_by_unshare, true);
    }),
    case("own_table_by_range", Needs::Processes, |stage| {
        own_table(stage, leave_by_range, false);
    }),
    case("own_table_by_range_meanwhile", Needs::Processes, |stage| {
        own_table(stage, leave_by_range, true);
    }),
    case("own_table_alone", Needs::Processes, own_table_alone),
    case("range_on_exec", Needs::Steps, range_on_exec),
    case("range_errors", Needs::Steps, range_errors),
];

const ROUNDS: usize = 20;

/// Takes a table of its own and closes the connection in it; whether that could be done.
fn leave_by_unshare(fd: i32) -> bool {
    sys::unshare_descriptors().is_ok() && sys::close(fd).is_ok() && sys::close(fd).is_err()
}

/// The same with one call, for all descriptors.
fn leave_by_range(fd: i32) -> bool {
    let flags = libc::CLOSE_RANGE_UNSHARE;
    sys::close_range(3, u32::MAX, flags).is_ok() && sys::close(fd).is_err()
}

/// A thread leaves the connection; the others of the process keep it, also one that waits for bytes `meanwhile`.
fn own_table(stage: &mut Stage, leave: fn(i32) -> bool, meanwhile: bool) {
    stage.connect();
    stage.both(
        "talk",
        |a| {
            let mut good = 0;
            for round in 0..2 * ROUNDS {
                if meanwhile && round == ROUNDS {
                    thread::sleep(Duration::from_millis(60));
                }
                good += usize::from(a.say("hello") == "sent 5" && a.hear(5) == "\"world\"");
            }
            good.to_string()
        },
        |b| {
            let pid = child(|| {
                let fd = b.fd;
                let mut serve = |count: usize| {
                    (0..count)
                        .filter(|_| b.hear(5) == "\"hello\"" && b.say("world") == "sent 5")
                        .count()
                };
                if serve(ROUNDS) != ROUNDS {
                    return false;
                }
                let pause = Duration::from_millis(if meanwhile { 30 } else { 0 });
                let leaver = thread::spawn(move || {
                    thread::sleep(pause);
                    leave(fd)
                });
                if meanwhile {
                    let served = serve(ROUNDS);
                    leaver.join().unwrap_or(false) && served == ROUNDS
                } else {
                    leaver.join().unwrap_or(false) && serve(ROUNDS) == ROUNDS
                }
            });
            sys::wait_for(pid)
        },
    );
    stage.a("shutdown", |a| a.shutdown(libc::SHUT_WR));
    stage.b("end", |b| b.hear(1));
    stage.b("close", End::close);
    stage.a("end", |a| a.hear(1));
}

/// Without other threads it is the same table as before.
fn own_table_alone(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "talk",
        |a| {
            let good =
                (0..ROUNDS).filter(|_| a.say("hello") == "sent 5" && a.hear(5) == "\"world\"");
            good.count().to_string()
        },
        |b| {
            let pid = child(|| {
                let mut serve = |count: usize| {
                    (0..count)
                        .filter(|_| b.hear(5) == "\"hello\"" && b.say("world") == "sent 5")
                        .count()
                };
                serve(ROUNDS / 2) == ROUNDS / 2
                    && sys::unshare_descriptors().is_ok()
                    && serve(ROUNDS / 2) == ROUNDS / 2
            });
            sys::wait_for(pid)
        },
    );
}

/// close_range(2) that closes nothing yet.
fn range_on_exec(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        let fd = a.fd.cast_unsigned();
        let ret = sys::close_range(fd, fd, libc::CLOSE_RANGE_CLOEXEC);
        let flags = sys::fcntl(a.fd, libc::F_GETFD, 0);
        format!("{} {}", show::ret(ret), show::ret(flags))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
    stage.b("say", |b| b.say("world"));
    stage.a("hear", |a| a.hear(5));
}

/// What close_range(2) does not do closes nothing.
fn range_errors(stage: &mut Stage) {
    stage.connect();
    stage.a("unknown flag", |a| {
        let fd = a.fd.cast_unsigned();
        show::ret(sys::close_range(fd, fd, 64))
    });
    stage.a("last before first", |a| {
        let fd = a.fd.cast_unsigned();
        show::ret(sys::close_range(fd + 1, fd, 0))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}
