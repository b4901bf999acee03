//! Handlers that are installed by the old functions: which of them interrupt a wait and which let it go on.

use std::time::Duration;

use libc::SIGALRM;

use super::{Case, Needs, blocking};
use crate::end::End;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, Catching};

pub(super) const CASES: &[Case] = &[
    blocking("handlers_of_each_kind", Needs::Processes, |stage| {
        stage.connect();
        each_kind(stage);
    }),
    blocking("handlers_of_each_kind_fresh", Needs::Processes, |stage| {
        stage.connect_cold(Family::V4);
        each_kind(stage);
    }),
    blocking("handlers_told", Needs::Processes, told),
];

/// One signal while a receive sleeps, and bytes after that.
fn received(stage: &mut Stage, label: &str, prepare: impl FnOnce() -> String) {
    stage.both(
        label,
        |a| {
            let prepared = prepare();
            sys::mask(SIGALRM, false);
            let _ = sys::set_nonblocking(a.fd, false);
            let before = sys::caught();
            let (fd, thread, number) = (a.fd, sys::this_thread(), sys::thread_number());
            let first = std::thread::scope(|scope| {
                scope.spawn(move || {
                    let mut calm = 0;
                    while calm < 5 {
                        std::thread::sleep(PAUSE);
                        calm = if sys::is_asleep(number) { calm + 1 } else { 0 };
                    }
                    sys::signal_thread(thread, SIGALRM);
                    std::thread::sleep(20 * PAUSE);
                    sys::send(fd, b"go", 0)
                });
                a.recv(5, 0)
            });
            let caught = sys::caught() - before;
            // What was interrupted is asked for again.
            let again = if first.contains("hello") {
                String::new()
            } else {
                a.recv(5, libc::MSG_WAITALL)
            };
            format!("{prepared}: {first} {again} caught {caught}")
        },
        |b| {
            let heard = b.hear(2);
            format!("{heard} {}", b.say("hello"))
        },
    );
}

const PAUSE: Duration = Duration::from_millis(1);

fn each_kind(stage: &mut Stage) {
    let by = |how| sys::catch_by(how, SIGALRM);
    let interrupt = |on| show::ret(sys::interrupt(SIGALRM, on));
    received(stage, "signal", || by(Catching::Signal));
    received(stage, "interrupts", || interrupt(true));
    received(stage, "and those that follow", || by(Catching::Signal));
    received(stage, "no more", || interrupt(false));
    received(stage, "nor those that follow", || by(Catching::Signal));
    received(stage, "sigset", || by(Catching::Set));
    received(stage, "goes on", || interrupt(false));
    received(stage, "once", || by(Catching::Old));
    received(stage, "sigaction", || {
        let caught = sys::catch(SIGALRM, libc::SA_RESTART);
        format!("{} {}", show::ret(caught), interrupt(true))
    });
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// What each function says was there before.
fn told(stage: &mut Stage) {
    stage.connect();
    stage.a("told", |_| {
        let by = |how| sys::catch_by(how, SIGALRM);
        let all = [
            by(Catching::Set),
            by(Catching::Signal),
            sys::hold(SIGALRM),
            sys::hold(SIGALRM),
            sys::is_masked(SIGALRM).to_string(),
            by(Catching::Set),
            sys::is_masked(SIGALRM).to_string(),
            by(Catching::Old),
            sys::is_caught(SIGALRM, libc::SA_RESETHAND | libc::SA_NODEFER).to_string(),
            sys::catch_by(Catching::Set, 0),
            sys::catch_by(Catching::Set, 999),
            sys::catch_by(Catching::Set, libc::SIGKILL),
            sys::hold(999),
            show::ret(sys::interrupt(999, true)),
            show::ret(sys::interrupt(libc::SIGKILL, true)),
        ];
        all.join(" ")
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}
