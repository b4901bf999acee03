//! Processes that give up rights or leave what they know: another user, another root directory, another user
//! namespace; and programs that no library is loaded into.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::descriptors::{child, dialogue, talk_to_cat};
use super::{Case, Needs, blocking, case};
use crate::end::{End, Side};
use crate::stage::{Family, Stage};
use viaduct_tests::rig::compiler;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("user_changed_later", Needs::Processes, |stage| {
        stage.connect();
        confined(stage, sys::become_nobody);
    }),
    case("user_changed_fresh", Needs::Processes, |stage| {
        stage.connect_cold(Family::V4);
        confined(stage, sys::become_nobody);
    }),
    case("root_changed_later", Needs::Processes, |stage| {
        stage.connect();
        confined(stage, || sys::confine(c"/usr/share"));
    }),
    case("root_changed_fresh", Needs::Processes, |stage| {
        stage.connect_cold(Family::V4);
        confined(stage, || sys::confine(c"/usr/share"));
    }),
    case("user_namespace_later", Needs::Processes, |stage| {
        stage.connect();
        confined(stage, || sys::unshare(libc::CLONE_NEWUSER));
    }),
    case("user_namespace_fresh", Needs::Processes, |stage| {
        stage.connect_cold(Family::V4);
        confined(stage, || sys::unshare(libc::CLONE_NEWUSER));
    }),
    case("worker_of_another_user", Needs::Processes, worker),
    blocking("set_user_id_program", Needs::Processes, |stage| {
        without_library(stage, set_user_id_cat);
    }),
    blocking("static_program", Needs::Processes, |stage| {
        without_library(stage, static_cat);
    }),
];

/// One end gives something up, then the other; the connection goes on, and so do new ones.
fn confined(stage: &mut Stage, confine: fn() -> sys::Ret) {
    dialogue(stage);
    stage.a("give up", |_| show::ret(confine()));
    dialogue(stage);
    another(stage);
    stage.b("give up", |_| show::ret(confine()));
    dialogue(stage);
    another(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// A connection more, for a while.
fn another(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.set_aside();
    stage.a("connect", |a| {
        a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("accept", |b| {
        b.hold(fd_of(sys::accept4(listener.fd, 0)));
        show::ok(sys::close(listener.fd))
    });
    dialogue(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
    stage.b("close", End::close);
    stage.a("back", |a| {
        let kept = a.more.pop().unwrap_or(-1);
        a.hold(kept);
        (a.fd >= 0).to_string()
    });
    stage.b("back", |b| {
        let kept = b.more.pop().unwrap_or(-1);
        b.hold(kept);
        (b.fd >= 0).to_string()
    });
}

/// A server that listens with all rights and serves with few: a child changes its user and accepts.
fn worker(stage: &mut Stage) {
    stage.connect();
    let listener = stage.listen(Side::B);
    stage.both(
        "serve",
        |a| {
            let mut shown = String::new();
            for _ in 0..3 {
                a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
                let connected = sys::connect(a.fd, listener.address);
                let good =
                    (0..30).filter(|_| a.say("hello") == "sent 5" && a.hear(5) == "\"hello\"");
                shown += &format!("{} {} ", show::ret(connected), good.count());
                shown += &a.close();
            }
            shown
        },
        |b| {
            let pid = child(|| {
                let changed = sys::become_nobody();
                let mut served = 0;
                for _ in 0..3 {
                    b.hold(fd_of(sys::accept4(listener.fd, 0)));
                    while b.hear(5) == "\"hello\"" && b.say("hello") == "sent 5" {
                        served += 1;
                    }
                    let _ = b.close();
                }
                served == 90 && (changed.is_ok() || changed == Err(libc::EPERM))
            });
            sys::wait_for(pid)
        },
    );
}

/// The connection becomes standard input and output of a program that the library is not loaded into.
fn without_library(stage: &mut Stage, make: fn(&Path) -> Option<CString>) {
    stage.connect();
    stage.both("program", talk_to_cat, |b| {
        let directory = std::env::temp_dir().join(format!("cat-{}", std::process::id()));
        let _ = std::fs::create_dir(&directory);
        let _ = std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755));
        // The test says where no such program can be made.
        let cat = make(&directory).unwrap_or_else(|| c"/bin/cat".to_owned());
        let fd = b.fd;
        let pid = child(|| sys::exec_on(&cat, fd));
        let closed = b.close();
        let left = sys::wait_for(pid);
        let _ = std::fs::remove_dir_all(&directory);
        format!("{closed} {left}")
    });
}

/// A copy of `cat` that runs as another user, if we are root; if not, an ordinary one.
fn set_user_id_cat(directory: &Path) -> Option<CString> {
    let cat = directory.join("cat");
    std::fs::copy("/bin/cat", &cat).ok()?;
    std::os::unix::fs::chown(&cat, Some(65_534), Some(65_534)).ok()?;
    std::fs::set_permissions(&cat, PermissionsExt::from_mode(0o4755)).ok()?;
    CString::new(cat.as_os_str().as_bytes()).ok()
}

/// `cat` without a dynamic loader, if there is a compiler.
fn static_cat(directory: &Path) -> Option<CString> {
    const CAT: &str = "#include <unistd.h>
        int main(void) {
            char buffer[4096];
            for (;;) {
                ssize_t got = read(0, buffer, sizeof buffer), put = 0;
                if (got <= 0) return got != 0;
                while (put < got) {
                    ssize_t done = write(1, buffer + put, got - put);
                    if (done < 0) return 2;
                    put += done;
                }
            }
        }";
    let (_kept, program) = compiler::compile(CAT, &["-O1", "-static"])?;
    let cat = directory.join("cat");
    std::fs::copy(program, &cat).ok()?;
    CString::new(cat.as_os_str().as_bytes()).ok()
}
