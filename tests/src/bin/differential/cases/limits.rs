//! Programs with little: few descriptors allowed, small stacks.

use libc::{POLLIN, SO_RCVTIMEO};

use super::{Case, Needs, blocking, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    blocking("waits_with_few_entries", Needs::Processes, |stage| {
        waits_with_few_entries(stage, 1);
    }),
    blocking("waits_with_full_array", Needs::Processes, |stage| {
        waits_with_few_entries(stage, 64);
    }),
    case(
        "dup_beyond_the_limit",
        Needs::Processes,
        dup_beyond_the_limit,
    ),
    blocking("small_stack", Needs::Processes, small_stack),
];

/// The kernel lets no more entries into a poll than a process may have descriptors. Those of the library do not count.
fn waits_with_few_entries(stage: &mut Stage, limit: u64) {
    stage.connect();
    let later = |b: &mut End| {
        std::thread::sleep(core::time::Duration::from_millis(50));
        b.say("x")
    };
    stage.a("lower", |_| show::ret(sys::limit_descriptors(limit)));
    stage.both("recv", |a| a.recv(1, 0), later);
    stage.both(
        "poll",
        |a| {
            let mut asked = vec![(-1, POLLIN); usize::try_from(limit).unwrap_or(1)];
            asked[0].0 = a.fd;
            show::ret(sys::poll(&asked, patience()).0)
        },
        later,
    );
    stage.a("recv", |a| a.recv(1, 0));
    stage.both(
        "select",
        |a| {
            let patience = Some(i64::from(patience()));
            show::ret(sys::select(&[a.fd], &[], &[], patience, None).ret)
        },
        later,
    );
    stage.a("recv", |a| a.recv(1, 0));
    stage.a("timeout", |a| {
        let set = sys::set_timeout(a.fd, SO_RCVTIMEO, 60);
        format!("{} {}", show::ret(set), a.recv(1, 0))
    });
    stage.a("raise", |_| show::ret(sys::limit_descriptors(0)));
}

/// dup2 that fails closes nothing.
fn dup_beyond_the_limit(stage: &mut Stage) {
    stage.connect();
    stage.a("move", |a| {
        let moved = fd_of(sys::dup2(a.fd, 700));
        let closed = show::ret(sys::close(a.fd));
        a.hold(moved);
        format!("{moved} {closed}")
    });
    stage.b("say", |b| b.say("unread"));
    stage.a("over it", |a| {
        let other = fd_of(sys::epoll_create());
        let results = [
            sys::limit_descriptors(100),
            sys::dup2(other, a.fd),
            sys::dup3(other, a.fd, 0),
            sys::limit_descriptors(0),
            sys::dup3(other, a.fd, 77),
            sys::close(other),
        ];
        results.map(show::ret).join(" ")
    });
    stage.a("hear", |a| a.hear(6));
    stage.a("say", |a| a.say("still here"));
    stage.b("hear", |b| b.hear(10));
}

/// sendfile and splice in threads with the smallest stack that there is.
fn small_stack(stage: &mut Stage) {
    let on_little = |work: fn(i32) -> String, fd: i32| {
        let thread = std::thread::Builder::new().stack_size(16 * 1024);
        let joined = thread.spawn(move || work(fd)).map(|running| running.join());
        joined.map_or_else(|_| "none".to_owned(), Result::unwrap_or_default)
    };
    stage.connect();
    stage.a("sendfile", |a| {
        on_little(
            |fd| {
                let file = sys::file_with(b"0123456789");
                show::ret(sys::sendfile(fd, file, None, 10).0)
            },
            a.fd,
        )
    });
    stage.b("splice", |b| {
        let _ = b.arrived(10);
        on_little(
            |fd| {
                let (read, write) = sys::pipe();
                let moved = show::ret(sys::splice(fd, write, 10, 0));
                let closed = [read, write].map(|end| show::ret(sys::close(end)));
                format!("{moved} {closed:?}")
            },
            b.fd,
        )
    });
    stage.a("end", |a| a.shutdown(libc::SHUT_WR));
    stage.b("end", |b| {
        on_little(
            |fd| {
                let (_, write) = sys::pipe();
                show::ret(sys::splice(fd, write, 10, 0))
            },
            b.fd,
        )
    });
}
