//! Waits that change the signal mask for their time (ppoll, pselect, epoll_pwait, epoll_pwait2): a signal is pending, or
//! comes meanwhile, or something is ready; with all kinds of timeouts.

use libc::{EPOLL_CTL_ADD, EPOLLIN, SIGALRM};

use super::{Case, Needs, case};
use crate::end::{End, patience};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, Waiting, sigset_t};

pub(super) const CASES: &[Case] = &[
    case("masks_later", Needs::Processes, |stage| {
        stage.connect();
        masks(stage);
    }),
    case("masks_fresh", Needs::Processes, |stage| {
        stage.connect_cold(Family::V4);
        masks(stage);
    }),
    case("masks_and_others", Needs::Processes, masks_and_others),
    case("times_that_are_none", Needs::Steps, times_that_are_none),
    case("times_are_not_early", Needs::Steps, times_are_not_early),
];

const ALL: [(&str, Waiting); 4] = [
    ("ppoll", Waiting::Poll),
    ("pselect", Waiting::Select),
    ("epoll_pwait", Waiting::Set),
    ("epoll_pwait2", Waiting::SetInNs),
];

/// Times of a wait, in nanoseconds: none at all, those that end while the wait looks around, and one that sleeps.
const TIMES: [i64; 7] = [0, 1, 1_500, 4_000, 10_000, 30_000, 20_000_000];

fn set(stage: &mut Stage) {
    stage.a("set", |a| {
        // For calls by milliseconds and not: one set, whatever the form has.
        a.more = vec![sys::fd_of(sys::epoll_create())];
        let added = sys::epoll_ctl(a.more[0], EPOLL_CTL_ADD, a.fd, EPOLLIN, 1);
        let _ = sys::catch(SIGALRM, 0);
        show::ret(added)
    });
}

/// What the wait said, how many signals were caught before and in it, and whether the mask is what it was.
fn shown(a: &End, what: Waiting, ns: Option<i64>, mask: Option<&sigset_t>) -> String {
    let before = sys::caught();
    let said = sys::wait_masked(what, a.fd, a.more[0], ns, mask);
    let after = sys::caught();
    let blocked = sys::is_masked(SIGALRM);
    format!(
        "{} caught {} blocked {blocked}",
        show::ret(said),
        after - before
    )
}

/// With SIGALRM blocked and pending.
fn pending(a: &End, what: Waiting, ns: Option<i64>, mask: Option<&sigset_t>) -> String {
    sys::mask(SIGALRM, true);
    sys::alarm(1, 0);
    while !sys::is_pending(SIGALRM) {
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    let shown = shown(a, what, ns, mask);
    sys::mask(SIGALRM, false);
    shown
}

fn masks(stage: &mut Stage) {
    set(stage);
    let open = sys::signal_set(None);
    let closed = sys::signal_set(Some(SIGALRM));
    for (name, what) in ALL {
        for ns in TIMES {
            stage.a(&format!("{name}, {ns} ns, let in"), |a| {
                pending(a, what, Some(ns), Some(&open))
            });
        }
        stage.a(&format!("{name}, for ever, let in"), |a| {
            pending(a, what, None, Some(&open))
        });
        stage.a(&format!("{name}, still blocked"), |a| {
            pending(a, what, Some(20_000_000), Some(&closed))
        });
        stage.a(&format!("{name}, no mask"), |a| {
            pending(a, what, Some(20_000_000), None)
        });
        // It comes while it is kept out, and is there when the wait is over.
        stage.a(&format!("{name}, kept out"), |a| {
            sys::alarm(10, 0);
            shown(a, what, Some(60_000_000), Some(&closed))
        });
        stage.a(&format!("{name}, comes"), |a| {
            sys::mask(SIGALRM, true);
            sys::alarm(20, 0);
            let shown = shown(a, what, None, Some(&open));
            sys::mask(SIGALRM, false);
            shown
        });
        stage.b("say", |b| b.say("hello"));
        stage.a("arrived", |a| a.arrived(5));
        for ns in TIMES {
            stage.a(&format!("{name}, {ns} ns, ready"), |a| {
                pending(a, what, Some(ns), Some(&open))
            });
        }
        stage.a(&format!("{name}, for ever, ready"), |a| {
            pending(a, what, None, Some(&open))
        });
        stage.a("hear", |a| a.hear(5));
    }
}

/// A pipe beside the connection is ready, or nothing is and another thread's wait has another mask.
fn masks_and_others(stage: &mut Stage) {
    stage.connect();
    set(stage);
    let open = sys::signal_set(None);
    stage.a("pipe", |a| {
        let (read, write) = sys::pipe();
        a.more.extend([read, write]);
        show::ret(sys::epoll_ctl(a.more[0], EPOLL_CTL_ADD, read, EPOLLIN, 2))
    });
    for (name, what) in [ALL[2], ALL[3]] {
        stage.a("write", |a| show::ret(sys::write(a.more[2], b"x")));
        stage.a(&format!("{name}, pipe"), |a| {
            pending(a, what, None, Some(&open))
        });
        stage.b("say", |b| b.say("hello"));
        stage.a("arrived", |a| a.arrived(5));
        stage.a(&format!("{name}, both"), |a| {
            pending(a, what, None, Some(&open))
        });
        stage.a("read", |a| show::ret(sys::read(a.more[1], &mut [0; 4])));
        stage.a(&format!("{name}, connection"), |a| {
            pending(a, what, None, Some(&open))
        });
        stage.a("hear", |a| a.hear(5));
        stage.a(&format!("{name}, nothing"), |a| {
            pending(a, what, None, Some(&open))
        });
    }
    stage.both(
        "woken with a mask",
        |a| {
            let closed = sys::signal_set(Some(SIGALRM));
            let patience = i64::from(patience()) * 1_000_000;
            let mut all = Vec::new();
            for (_, what) in ALL {
                all.push(shown(a, what, Some(patience), Some(&closed)));
                all.push(a.hear(5));
                all.push(a.say("next"));
            }
            all.join(" ")
        },
        |b| {
            let mut all = Vec::new();
            for _ in ALL {
                std::thread::sleep(core::time::Duration::from_millis(20));
                all.push(b.say("hello"));
                all.push(b.hear(4));
            }
            all.join(" ")
        },
    );
}

/// Times that the kernel refuses, whatever is ready.
fn times_that_are_none(stage: &mut Stage) {
    stage.connect();
    set(stage);
    let refused = |stage: &mut Stage| {
        for (name, what) in [ALL[0], ALL[1], ALL[3]] {
            for (seconds, ns) in [(0, 1_000_000_000), (0, -1), (-1, 0), (-1, 999_999_999)] {
                stage.a(&format!("{name}, {seconds} s {ns} ns"), |a| {
                    show::ret(sys::wait_for_time(what, a.fd, a.more[0], seconds, ns))
                });
            }
        }
    };
    refused(stage);
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    refused(stage);
    for (name, what) in [ALL[0], ALL[1], ALL[3]] {
        stage.a(&format!("{name}, nearly for ever"), |a| {
            show::ret(sys::wait_for_time(
                what,
                a.fd,
                a.more[0],
                i64::MAX,
                999_999_999,
            ))
        });
    }
    stage.a("hear", |a| a.hear(5));
}

/// No wait is over before its time, to the nanosecond.
fn times_are_not_early(stage: &mut Stage) {
    stage.connect();
    set(stage);
    for (name, what) in [ALL[0], ALL[1], ALL[3]] {
        stage.a(name, |a| {
            let mut all = Vec::new();
            for ns in [
                1, 999, 40_000, 51_234, 100_001, 700_000, 1_000_001, 2_345_678,
            ] {
                let began = std::time::Instant::now();
                let said = sys::wait_masked(what, a.fd, a.more[0], Some(ns), None);
                let full = began.elapsed().as_nanos() >= u128::from(ns.unsigned_abs());
                all.push(format!("{} {full}", show::ret(said)));
            }
            all.join(" ")
        });
    }
}
