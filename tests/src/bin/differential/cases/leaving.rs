//! Every way to leave a process and to become another program; and programs that take descriptors which they never
//! opened.

use std::collections::BTreeSet;

use super::descriptors::{child, dialogue, talk_to_cat};
use super::{Case, Needs, blocking, case};
use crate::end::{End, Side};
use crate::stage::Stage;
use crate::stranger::{drink, pour};
use viaduct_tests::show;
use viaduct_tests::sys::{self, Becoming, Leaving, fd_of};

pub(super) const CASES: &[Case] = &[
    blocking("left_in_each_way", Needs::Processes, left),
    blocking("became_in_each_way", Needs::Processes, became),
    case("numbers_of_others_closed", Needs::Processes, |stage| {
        numbers_of_others(stage, |fd, _| {
            let _ = sys::close(fd);
        });
    }),
    case("numbers_of_others_taken", Needs::Processes, |stage| {
        numbers_of_others(stage, |fd, file| {
            let _ = sys::dup2(file, fd);
        });
    }),
    case(
        "numbers_of_others_taken_for_good",
        Needs::Processes,
        |stage| {
            numbers_of_others(stage, |fd, file| {
                let _ = sys::dup3(file, fd, libc::O_CLOEXEC);
                let _ = sys::close(file);
            });
        },
    ),
];

/// What was sent before is read to its end.
fn left(stage: &mut Stage) {
    const BYTES: usize = 300_000;
    for (label, how) in [
        ("exit", Leaving::Exit),
        ("quick_exit", Leaving::Quick),
        ("_exit", Leaving::AtOnce),
        ("exit_group", Leaving::ByNumber),
        ("abort", Leaving::Abort),
    ] {
        stage.connect();
        stage.both(
            label,
            |a| {
                let pid = child(|| {
                    let _ = pour(a, 91, 0, BYTES);
                    sys::leave_by(how)
                });
                format!("{} {}", a.close(), sys::wait_for(pid))
            },
            |b| format!("{} {}", drink(b, 91, 0, BYTES), b.hear(1)),
        );
        stage.b("close", End::close);
    }
}

/// The connection is standard input and output of what a child becomes.
fn became(stage: &mut Stage) {
    for (label, how) in [
        ("execl", Becoming::List),
        ("execlp", Becoming::ListByPath),
        ("execle", Becoming::ListWithEnvironment),
        ("execve", Becoming::Vector),
        ("execvp", Becoming::VectorByPath),
        ("execvpe", Becoming::VectorByPathWithEnvironment),
        ("fexecve", Becoming::Descriptor),
        ("by number", Becoming::ByNumber),
    ] {
        stage.connect();
        stage.both(label, talk_to_cat, |b| {
            let fd = b.fd;
            let _ = sys::set_nonblocking(fd, false);
            let pid = child(|| {
                sys::become_cat_by(how, fd);
                false
            });
            format!("{} {}", b.close(), sys::wait_for(pid))
        });
        stage.a("close", End::close);
    }
}

/// The numbers of all descriptors that are open.
fn open_numbers() -> BTreeSet<i32> {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else {
        return BTreeSet::new();
    };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    all.flatten().filter_map(number).collect()
}

/// The program uses numbers as its own that something in its process has opened: where nothing has, nothing happens.
fn numbers_of_others(stage: &mut Stage, take: fn(i32, i32)) {
    let mut before = [BTreeSet::new(), BTreeSet::new()];
    stage.share(Side::A, |_| {
        before[0] = open_numbers();
        0
    });
    stage.share(Side::B, |_| {
        before[1] = open_numbers();
        0
    });
    stage.connect();
    dialogue(stage);
    for (side, known) in [Side::A, Side::B].into_iter().zip(before) {
        stage.one(side, "take", |end| {
            let (read, write) = sys::pipe();
            let own = [end.fd, end.set, read, write];
            for fd in open_numbers() {
                if !known.contains(&fd) && !own.contains(&fd) {
                    take(fd, fd_of(sys::dup(write)));
                }
            }
            show::ret(sys::write(write, b"x"))
        });
        dialogue(stage);
        dialogue(stage);
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
    let listener = stage.listen(Side::B);
    stage.b("close", End::close);
    stage.a("connect", |a| {
        a.take(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
        let _ = sys::set_nonblocking(a.fd, false);
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("accept", |b| {
        b.take(fd_of(sys::accept4(listener.fd, 0)));
        show::ret(sys::close(listener.fd))
    });
    dialogue(stage);
    stage.b("close", End::close);
    stage.a("end", |a| a.hear(1));
}
