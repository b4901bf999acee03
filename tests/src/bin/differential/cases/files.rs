//! Files and pipes into sockets: sendfile and splice.

use libc::{POLLIN, SEEK_CUR};

use super::{Case, Needs, once};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    once("sendfile_small", Needs::Steps, sendfile_small),
    once("sendfile_large", Needs::Both, sendfile_large),
    once("sendfile_nonblocking", Needs::Both, sendfile_nonblocking),
    once("sendfile_bad", Needs::Steps, sendfile_bad),
    once("splice_fresh", Needs::Steps, |stage| splice(stage, true)),
    once("splice_later", Needs::Steps, |stage| splice(stage, false)),
];

fn sendfile_small(stage: &mut Stage) {
    stage.connect();
    stage.a("file", |a| {
        a.more = vec![sys::file_with(b"0123456789")];
        "made".to_owned()
    });
    let position = |a: &End| show::ret(sys::lseek(a.more[0], 0, SEEK_CUR));
    let tries = [
        ("from the start", None, 4),
        ("from the position", None, 3),
        ("from an offset", Some(2), 5),
        ("beyond the end", Some(8), 5),
        ("at the end", Some(10), 5),
        ("far beyond", Some(1000), 5),
        ("nothing", None, 0),
        ("the rest", None, 100),
        ("after the rest", None, 100),
    ];
    let mut sent = [4, 3, 5, 2, 0, 0, 0, 3, 0].into_iter();
    for (label, offset, count) in tries {
        stage.a(label, |a| {
            let (ret, after) = sys::sendfile(a.fd, a.more[0], offset, count);
            format!("{} {after:?} at {}", show::ret(ret), position(a))
        });
        let expected = sent.next().unwrap_or(0);
        stage.b("hear", |b| b.hear(expected));
    }
}

fn sendfile_large(stage: &mut Stage) {
    const BYTES: usize = 9_000_000;
    let pattern = Pattern::new(47);
    stage.connect();
    stage.both(
        "sendfile",
        |a| {
            let mut data = Vec::with_capacity(BYTES);
            while data.len() < BYTES {
                data.extend_from_slice(pattern.at(data.len(), (BYTES - data.len()).min(100_000)));
            }
            let file = sys::file_with(&data);
            let mut offset = 0;
            while let (Ok(sent), Some(after)) = sys::sendfile(a.fd, file, Some(offset), BYTES) {
                if sent == 0 {
                    break;
                }
                offset = after;
            }
            format!("{offset} {}", a.close())
        },
        |b| format!("{} {}", b.drink(&pattern, BYTES, 3), b.hear(1)),
    );
}

fn sendfile_nonblocking(stage: &mut Stage) {
    const BYTES: usize = 12_000_000;
    let pattern = Pattern::new(53);
    stage.connect();
    stage.both(
        "sendfile",
        |a| {
            let mut data = Vec::with_capacity(BYTES);
            while data.len() < BYTES {
                data.extend_from_slice(pattern.at(data.len(), (BYTES - data.len()).min(100_000)));
            }
            let file = sys::file_with(&data);
            let _ = sys::set_nonblocking(a.fd, true);
            let mut done = 0;
            loop {
                match sys::sendfile(a.fd, file, None, BYTES).0 {
                    Ok(0) => break,
                    Ok(sent) => done += sent,
                    Err(libc::EAGAIN) => {
                        let _ = sys::poll(&[(a.fd, libc::POLLOUT)], crate::end::patience());
                    }
                    Err(error) => return show::errno(error),
                }
            }
            format!("{done} at {}", show::ret(sys::lseek(file, 0, SEEK_CUR)))
        },
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(60));
            b.drink(&pattern, BYTES, 4)
        },
    );
}

fn sendfile_bad(stage: &mut Stage) {
    stage.connect();
    stage.a("from a pipe", |a| {
        let (read, write) = sys::pipe();
        let _ = sys::write(write, b"pipe");
        a.more = vec![read, write];
        show::ret(sys::sendfile(a.fd, read, Some(0), 4).0)
    });
    stage.a("negative offset", |a| {
        let file = sys::file_with(b"data");
        show::ret(sys::sendfile(a.fd, file, Some(-5), 4).0)
    });
    stage.a("closed file", |a| {
        show::ret(sys::sendfile(a.fd, 987, None, 4).0)
    });
    stage.a("file that cannot be read", |a| {
        show::ret(sys::sendfile(a.fd, a.more[1], None, 4).0)
    });
    stage.a("after shutdown", |a| {
        let file = sys::file_with(b"data");
        let _ = sys::uncatch(libc::SIGPIPE, true);
        let _ = a.shutdown(libc::SHUT_WR);
        show::ret(sys::sendfile(a.fd, file, None, 4).0)
    });
    stage.b("end", |b| b.hear(5));
}

/// Socket to pipe to socket, as proxies do it.
fn splice(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.b("say", |b| b.say("through a pipe"));
    stage.a("arrived", |a| {
        let _ = sys::poll(&[(a.fd, POLLIN)], crate::end::patience());
        a.arrived(14)
    });
    let moved = stage.share(Side::A, |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
        sys::splice(a.fd, write, 100, flags).map_or(0, i64::cast_unsigned)
    });
    stage.a("to the pipe", |_| moved.to_string());
    if moved != 14 {
        return;
    }
    stage.a("nothing more", |a| {
        // The flag is for the pipe; the socket has its own.
        let _ = sys::set_nonblocking(a.fd, true);
        let nothing = sys::splice(a.fd, a.more[1], 100, libc::SPLICE_F_NONBLOCK);
        let _ = sys::set_nonblocking(a.fd, false);
        show::ret(nothing)
    });
    stage.a("from the pipe", |a| {
        show::ret(sys::splice(a.more[0], a.fd, 100, libc::SPLICE_F_MOVE))
    });
    stage.b("hear", |b| b.hear(14));
    stage.a("say", |a| a.say("after"));
    stage.b("hear", |b| b.hear(5));
    stage.b("close", End::close);
    stage.a("end", |a| show::ret(sys::splice(a.fd, a.more[1], 100, 0)));
}
