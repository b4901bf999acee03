//! Connections that are passed over a Unix socket to a program without the library, at whatever moment.

use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP};

use super::descriptors::child;
use super::{Case, Needs, case, in_all_forms};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::{Family, Stage};
use crate::stranger::{self, Stranger};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    in_all_forms("stranger_later", Needs::Steps, |stage| {
        taken_over(stage, false);
    }),
    in_all_forms("stranger_fresh", Needs::Steps, |stage| {
        taken_over(stage, true);
    }),
    case("stranger_started_later", Needs::Steps, started_later),
    in_all_forms("stranger_with_unread", Needs::Steps, with_unread),
    in_all_forms("stranger_under_way", Needs::Both, under_way),
    case(
        "stranger_behind_a_full_ring",
        Needs::Both,
        behind_a_full_ring,
    ),
    case(
        "stranger_ahead_of_the_reader",
        Needs::Steps,
        ahead_of_the_reader,
    ),
    case("stranger_both_ways", Needs::Both, both_ways),
    case("stranger_beside", Needs::Steps, beside),
    case("stranger_beside_a_waiter", Needs::Both, beside_a_waiter),
    case("stranger_beside_a_child", Needs::Processes, beside_a_child),
    case("strangers_at_both_ends", Needs::Steps, at_both_ends),
    case("stranger_gives_back", Needs::Steps, gives_back),
    case("stranger_after_the_end", Needs::Steps, after_the_end),
    case("stranger_is_killed", Needs::Steps, is_killed),
    case("passed_to_nobody", Needs::Steps, to_nobody),
    case("passed_by_number", Needs::Steps, |stage| {
        passed_by(stage, sys::raw_send_fd);
    }),
    case("passed_in_a_batch", Needs::Steps, |stage| {
        passed_by(stage, sys::send_fd_in_a_batch);
    }),
];

const FIN: i16 = POLLIN | POLLOUT | POLLRDHUP;

/// What every case has of its stranger: it is there at end A only.
#[derive(Default)]
pub(super) struct Strange(Option<Stranger>);

impl Strange {
    pub(super) fn at(&self) -> &Stranger {
        self.0.as_ref().expect("the end that started it")
    }

    pub(super) fn leaves(&mut self) -> String {
        self.0.take().map_or_else(String::new, Stranger::leaves)
    }
}

pub(super) fn start(stage: &mut Stage, side: Side) -> Strange {
    let mut strange = Strange::default();
    stage.share(side, |_| {
        strange.0 = Some(Stranger::start());
        0
    });
    strange
}

/// Passes the connection of end A on.
fn pass(stage: &mut Stage, strange: &Strange) {
    stage.a("pass", |a| strange.at().give(a));
    stage.a("close", End::close);
}

/// A few exchanges between the stranger and end B.
pub(super) fn talk(stage: &mut Stage, strange: &Strange) {
    for round in 0..4 {
        let text = format!("say round {round}");
        stage.a("says", |_| strange.at().does(&text));
        stage.b("hear", |b| b.hear(7));
        stage.b("say", |b| b.say("and back"));
        stage.a("hears", |_| strange.at().does("hear 8"));
    }
}

/// Both ends of the stream, in order.
pub(super) fn end(stage: &mut Stage, mut strange: Strange) {
    stage.a("shuts", |_| strange.at().does("shut"));
    stage.b("end", |b| b.hear(1));
    stage.b("say", |b| b.say("last words"));
    stage.a("hears", |_| strange.at().does("hear 10"));
    stage.b("close", End::close);
    stage.a("end", |_| strange.at().does("hear 1"));
    stage.a("leaves", |_| strange.leaves());
}

fn taken_over(stage: &mut Stage, fresh: bool) {
    let strange = start(stage, Side::A);
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    pass(stage, &strange);
    talk(stage, &strange);
    end(stage, strange);
}

/// The other program is started beside the connection, as by a server that hands on what it has accepted.
fn started_later(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("for whom? "));
    stage.a("arrived", |a| a.arrived(10));
    let strange = start(stage, Side::A);
    pass(stage, &strange);
    stage.a("hears", |_| strange.at().does("hear 10"));
    talk(stage, &strange);
    end(stage, strange);
}

/// A part of what has arrived is read before the connection is passed on, the rest after that.
fn with_unread(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.b("say", |b| b.say("unread when it was passed on"));
    stage.a("arrived", |a| a.arrived(28));
    stage.a("a part", |a| a.hear(7));
    pass(stage, &strange);
    stage.a("the rest", |_| strange.at().does("hear 21"));
    talk(stage, &strange);
    end(stage, strange);
}

/// The far end sends all the while.
fn under_way(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.both(
        "stream",
        |a| {
            let first = stranger::drink(a, 71, 0, 1_000_000);
            let passed = strange.at().give(a);
            let closed = a.close();
            let rest = strange.at().does("drink 71 1000000 6000000");
            format!("{first} {passed} {closed} {rest}")
        },
        |b| stranger::pour(b, 71, 0, 6_000_000),
    );
    talk(stage, &strange);
    end(stage, strange);
}

/// More lies unread than the kernel takes at once, and its sender waits for room.
fn behind_a_full_ring(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.both(
        "stream",
        |a| {
            std::thread::sleep(core::time::Duration::from_millis(100));
            let passed = strange.at().give(a);
            let closed = a.close();
            let read = strange.at().does("drink 72 0 12000000");
            format!("{passed} {closed} {read}")
        },
        |b| stranger::pour(b, 72, 0, 12_000_000),
    );
    talk(stage, &strange);
    end(stage, strange);
}

/// What was sent before is read only after the other program has sent more.
fn ahead_of_the_reader(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.a("stream", |a| stranger::pour(a, 73, 0, 100_000));
    pass(stage, &strange);
    stage.a("goes on", |_| strange.at().does("pour 73 100000 120000"));
    stage.b("all", |b| stranger::drink(b, 73, 0, 120_000));
    talk(stage, &strange);
    end(stage, strange);
}

/// Streams in both directions go on in the other program.
fn both_ways(stage: &mut Stage) {
    const BYTES: usize = 3_000_000;
    let (out, home) = (Pattern::new(74), Pattern::new(75));
    let strange = start(stage, Side::A);
    stage.connect();
    stage.both(
        "streams",
        |a| {
            let first = a.duplex(&out, &home, 500_000, 5);
            let passed = strange.at().give(a);
            let closed = a.close();
            let poured = strange.at().does("pour 74 500000 3000000");
            let drunk = strange.at().does("drink 75 500000 3000000");
            format!("{first} {passed} {closed} {poured} {drunk}")
        },
        |b| b.duplex(&home, &out, BYTES, 7),
    );
    talk(stage, &strange);
    end(stage, strange);
}

/// Who passes the connection on goes on with it as well.
fn beside(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.a("pass", |a| strange.at().give(a));
    for _ in 0..3 {
        stage.a("first", |a| a.hear(5));
        stage.a("second", |_| strange.at().does("hear 5"));
        stage.a("say", |a| a.say("one "));
        stage.a("says", |_| strange.at().does("say two "));
        stage.a("say", |a| a.say("three"));
        stage.b("hear", |b| b.hear(13));
        stage.b("say", |b| b.say("0123456789"));
        stage.a("arrived", |a| a.arrived(10));
    }
    stage.a("hears", |_| strange.at().does("hear 10"));
    stage.a("close", End::close);
    stage.b("no end", |b| b.ready(POLLOUT));
    talk(stage, &strange);
    end(stage, strange);
}

/// Another thread of the passer waits for bytes, and gets the next.
fn beside_a_waiter(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.both(
        "waits",
        |a| {
            let (fd, form) = (a.fd, a.form);
            std::thread::scope(|scope| {
                let strange = &strange;
                let passer = scope.spawn(move || {
                    std::thread::sleep(core::time::Duration::from_millis(40));
                    strange.at().hand_over(fd, form)
                });
                let heard = a.hear(4);
                format!("{heard} {}", passer.join().unwrap_or_default())
            })
        },
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(120));
            b.say("late")
        },
    );
    stage.a("close", End::close);
    talk(stage, &strange);
    end(stage, strange);
}

/// The connection is shared with a forked child, which goes on with it.
fn beside_a_child(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.both(
        "child",
        |a| {
            let (go, tell) = sys::pipe();
            let pid = child(|| {
                let _ = sys::read(go, &mut [0]);
                (0..10).all(|_| a.say("child") == "sent 5" && a.hear(5) == "\"child\"")
            });
            let passed = strange.at().give(a);
            let said = strange.at().does("say first");
            let heard = strange.at().does("hear 5");
            let _ = sys::write(tell, b"x");
            format!("{passed} {said} {heard} {}", sys::wait_for(pid))
        },
        |b| {
            let echoed = (0..11).filter(|_| {
                let (bytes, _) = b.recv_all(5);
                b.send_all(&bytes).is_ok() && bytes.len() == 5
            });
            echoed.count().to_string()
        },
    );
    stage.a("close", End::close);
    talk(stage, &strange);
    end(stage, strange);
}

/// Nobody with the library is left. (Bytes that lie in a ring when both have left it are lost, openly.)
fn at_both_ends(stage: &mut Stage) {
    let mut here = start(stage, Side::A);
    let mut there = start(stage, Side::B);
    stage.connect();
    pass(stage, &here);
    stage.b("pass", |b| there.at().give(b));
    stage.b("close", End::close);
    for _ in 0..3 {
        stage.a("says", |_| here.at().does("say one way"));
        stage.b("hears", |_| there.at().does("hear 7"));
        stage.b("says", |_| there.at().does("say and back"));
        stage.a("hears", |_| here.at().does("hear 8"));
    }
    stage.a("leaves", |_| here.leaves());
    stage.b("end", |_| there.at().does("hear 1"));
    stage.b("leaves", |_| there.leaves());
}

/// The connection comes back to the one that passed it on.
fn gives_back(stage: &mut Stage) {
    let mut strange = start(stage, Side::A);
    stage.connect();
    pass(stage, &strange);
    talk(stage, &strange);
    stage.b("say", |b| b.say("for whom?"));
    stage.a("back", |a| {
        let fd = strange.at().gives_back();
        a.take(fd);
        (fd >= 0).to_string()
    });
    stage.a("hear", |a| a.hear(9));
    for _ in 0..40 {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("hear", |a| a.hear(5));
    }
    stage.a("leaves", |_| strange.leaves());
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// The far end has sent its last bytes, which the passer has read, and ended its stream.
fn after_the_end(stage: &mut Stage) {
    let mut strange = start(stage, Side::A);
    stage.connect();
    stage.b("say", |b| b.say("all of it"));
    stage.b("shut", |b| b.shutdown(libc::SHUT_WR));
    stage.a("hear", |a| a.hear(9));
    pass(stage, &strange);
    stage.a("end", |_| strange.at().does("hear 1"));
    stage.a("says", |_| strange.at().does("say one-sided"));
    stage.b("hear", |b| b.hear(9));
    stage.a("leaves", |_| strange.leaves());
    stage.b("end", |b| b.hear(1));
}

/// The other program is killed with bytes unread.
fn is_killed(stage: &mut Stage) {
    let mut strange = start(stage, Side::A);
    stage.connect();
    stage.b("say", |b| b.say("never read"));
    stage.a("arrived", |a| a.arrived(10));
    pass(stage, &strange);
    stage.a("arrived", |_| strange.at().does("arrived 10"));
    stage.a("killed", |_| {
        strange.0.take().map_or_else(String::new, Stranger::dies)
    });
    stage.b("reset", |b| b.ready(FIN | POLLERR | POLLHUP));
    stage.b("hear", |b| b.hear(1));
    stage.b("say", |b| b.say("to nobody"));
}

/// The message is never received: the connection ends with the Unix socket that it is in.
fn to_nobody(stage: &mut Stage) {
    stage.connect();
    stage.a("pass", |a| {
        let (here, there) = sys::socketpair();
        a.more = vec![here, there];
        show::ret(sys::send_fds(here, b"x", &[a.fd]))
    });
    stage.a("close", End::close);
    stage.b("no end", |b| b.ready(POLLOUT));
    stage.a("close pair", |a| {
        let [here, there] = [a.more[0], a.more[1]];
        format!(
            "{} {}",
            show::ret(sys::close(here)),
            show::ret(sys::close(there))
        )
    });
    stage.b("end", |b| b.ready(FIN));
    stage.b("hear", |b| b.hear(1));
}

/// Passed by another call than sendmsg.
fn passed_by(stage: &mut Stage, send: fn(i32, &[u8], i32) -> sys::Ret) {
    let strange = start(stage, Side::A);
    stage.connect();
    stage.b("say", |b| b.say("unread, "));
    stage.a("arrived", |a| a.arrived(8));
    stage.a("pass", |a| strange.at().give_by(a, send));
    stage.a("close", End::close);
    stage.a("hears", |_| strange.at().does("hear 8"));
    talk(stage, &strange);
    end(stage, strange);
}
