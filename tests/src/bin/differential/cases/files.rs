//! Files into sockets: sendfile.

use libc::{O_APPEND, O_PATH, O_RDONLY, O_WRONLY, SEEK_CUR, SHUT_WR, SIGPIPE};

use super::{Case, Needs, blocking, case};
use crate::end::End;
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("sendfile_small", Needs::Steps, sendfile_small),
    case("sendfile_large", Needs::Both, sendfile_large),
    case("sendfile_nonblocking", Needs::Both, sendfile_nonblocking),
    case("sendfile_bad", Needs::Steps, sendfile_bad),
    case("sendfile_odd_numbers", Needs::Steps, sendfile_odd_numbers),
    case("sendfile_devices", Needs::Steps, sendfile_devices),
    case("sendfile_to_a_pipe", Needs::Steps, sendfile_to_a_pipe),
    case("sendfile_after_end", Needs::Processes, sendfile_after_end),
    case("sendfile_truncated", Needs::Steps, sendfile_truncated),
    blocking("sendfile_cold", Needs::Both, sendfile_cold),
    case("sendfile_many_small", Needs::Both, sendfile_many_small),
    case("sendfile_timeout", Needs::Steps, sendfile_timeout),
    case(
        "sendfile_no_descriptors",
        Needs::Processes,
        sendfile_no_descriptors,
    ),
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
            let mut send = |fd| {
                let (sent, after) = sys::sendfile(fd, file, Some(offset), BYTES);
                offset = after.unwrap_or(offset);
                sent
            };
            while a.patiently(true, &mut send).is_ok_and(|sent| sent > 0) {}
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
        let with_offset = sys::sendfile(a.fd, read, Some(0), 4).0;
        let without = sys::sendfile(a.fd, read, None, 4).0;
        format!("{} {}", show::ret(with_offset), show::ret(without))
    });
    stage.a("from an empty pipe", |a| {
        let (read, _) = sys::pipe();
        show::ret(sys::sendfile(a.fd, read, None, 0).0)
    });
    stage.a("file that cannot be read", |a| {
        show::ret(sys::sendfile(a.fd, a.more[1], None, 4).0)
    });
    stage.a("closed file", |a| {
        show::ret(sys::sendfile(a.fd, 987, None, 4).0)
    });
    stage.a("from itself", |a| {
        let with_offset = sys::sendfile(a.fd, a.fd, Some(0), 4).0;
        let without = sys::sendfile(a.fd, a.fd, None, 4).0;
        format!("{} {}", show::ret(with_offset), show::ret(without))
    });
    for (label, path, flags) in [
        ("directory", "/etc", O_RDONLY),
        ("only for writing", "/dev/zero", O_WRONLY),
        ("only a path", "/etc/passwd", O_PATH),
    ] {
        stage.a(label, |a| {
            let file = sys::fd_of(sys::open(path, flags));
            let with_offset = sys::sendfile(a.fd, file, Some(0), 4).0;
            let without = sys::sendfile(a.fd, file, None, 4).0;
            let nothing = sys::sendfile(a.fd, file, None, 0).0;
            format!(
                "{} {} {}",
                show::ret(with_offset),
                show::ret(without),
                show::ret(nothing)
            )
        });
    }
    stage.a("from an epoll set", |a| {
        let set = sys::fd_of(sys::epoll_create());
        show::ret(sys::sendfile(a.fd, set, None, 4).0)
    });
    stage.a("append", |a| {
        let file = sys::file_with(b"data");
        let _ = sys::fcntl(a.fd, libc::F_SETFL, O_APPEND);
        let refused = sys::sendfile(a.fd, file, None, 4).0;
        let nothing = sys::sendfile(a.fd, file, None, 0).0;
        let _ = sys::fcntl(a.fd, libc::F_SETFL, 0);
        format!("{} {}", show::ret(refused), show::ret(nothing))
    });
    stage.a("say", |a| a.say("end"));
    stage.b("nothing else came", |b| b.hear(3));
}

fn sendfile_odd_numbers(stage: &mut Stage) {
    const HALF: usize = usize::MAX / 2;
    stage.connect();
    stage.a("file", |a| {
        a.more = vec![sys::file_with(b"data")];
        "made".to_owned()
    });
    let tries = [
        ("negative offset", Some(-5), 4),
        ("negative offset, nothing", Some(-5), 0),
        ("too much", Some(0), usize::MAX),
        ("a bit too much", Some(0), HALF + 1),
        ("too much from the position", None, HALF + 1),
        ("offset too large", Some(i64::MAX), 4),
        ("far offset", Some(1 << 62), 4),
        ("far offset, nothing", Some(1 << 62), 0),
        ("too much from an offset", Some(2), HALF),
    ];
    for (label, offset, count) in tries {
        stage.a(label, |a| {
            let (ret, after) = sys::sendfile(a.fd, a.more[0], offset, count);
            format!("{} {after:?}", show::ret(ret))
        });
    }
    for (label, at) in [("null page", 8), ("not canonical", 1 << 63)] {
        stage.a(label, |a| {
            let some = sys::sendfile_at(a.fd, a.more[0], at, 4);
            let nothing = sys::sendfile_at(a.fd, a.more[0], at, 0);
            format!("{} {}", show::ret(some), show::ret(nothing))
        });
    }
    stage.a("as much as possible", |a| {
        let (ret, after) = sys::sendfile(a.fd, a.more[0], Some(0), HALF);
        format!("{} {after:?}", show::ret(ret))
    });
    stage.a("position", |a| {
        show::ret(sys::lseek(a.more[0], 0, SEEK_CUR))
    });
    stage.a("say", |a| a.say("end"));
    stage.b("nothing else came", |b| b.hear(7));
}

/// Files that can be read and not sent, and files whose position is not what was read.
fn sendfile_devices(stage: &mut Stage) {
    stage.connect();
    for path in [
        "/dev/zero",
        "/dev/null",
        "/dev/full",
        "/proc/self/status",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ] {
        let sent = stage.share(crate::end::Side::A, |a| {
            let file = sys::fd_of(sys::open(path, O_RDONLY));
            a.more = vec![file];
            let (ret, _) = sys::sendfile(a.fd, file, None, 40_000);
            ret.map_or(0, i64::cast_unsigned)
        });
        stage.a(path, |a| {
            let position = show::ret(sys::lseek(a.more[0], 0, SEEK_CUR));
            let (ret, after) = sys::sendfile(a.fd, a.more[0], Some(0), 7);
            format!(
                "{sent} at {position}, with an offset {} {after:?}, at {}",
                show::ret(ret),
                show::ret(sys::lseek(a.more[0], 0, SEEK_CUR))
            )
        });
        stage.a("say", |a| a.say("end"));
        let sent = usize::try_from(sent).unwrap_or(0);
        stage.b("hear", |b| b.hear(if sent > 0 { sent + 7 + 3 } else { 3 }));
    }
}

/// From a socket into a pipe sendfile is a splice.
fn sendfile_to_a_pipe(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("to a pipe"));
    stage.a("arrived", |a| a.arrived(9));
    stage.a("some", |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        let some = sys::sendfile(write, a.fd, None, 4).0;
        let offset = sys::sendfile(write, a.fd, Some(0), 4).0;
        let too_much = sys::sendfile(write, a.fd, None, usize::MAX).0;
        let nothing = sys::sendfile(write, a.fd, None, 0).0;
        let rest = sys::sendfile(write, a.fd, None, 100).0;
        [some, offset, too_much, nothing, rest]
            .map(show::ret)
            .join(" ")
    });
    stage.a("pipe", |a| {
        let mut out = [0; 20];
        let got = sys::read(a.more[0], &mut out);
        show::got(got, &out)
    });
    stage.a("wrong end", |a| {
        show::ret(sys::sendfile(a.more[0], a.fd, None, 4).0)
    });
    stage.b("close", End::close);
    stage.a("end", |a| {
        let write = a.more[1];
        show::ret(a.patiently(false, |fd| sys::sendfile(write, fd, None, 4).0))
    });
}

fn sendfile_after_end(stage: &mut Stage) {
    stage.connect();
    stage.a("after shutdown", |a| {
        let _ = sys::catch(SIGPIPE, 0);
        let file = sys::file_with(b"data");
        let _ = a.shutdown(SHUT_WR);
        let (ret, after) = sys::sendfile(a.fd, file, Some(0), 4);
        let signals = sys::caught();
        let at_end = sys::sendfile(a.fd, file, Some(4), 4).0;
        let nothing = sys::sendfile(a.fd, file, None, 0).0;
        format!(
            "{} {after:?} {signals} {} {} {}",
            show::ret(ret),
            show::ret(at_end),
            show::ret(nothing),
            sys::caught()
        )
    });
    stage.b("end", |b| b.hear(5));
    stage.b("close", End::close);
    stage.set_aside();
    stage.connect();
    stage.b("close", End::close);
    stage.a("fin", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.a("to nobody", |a| {
        let file = sys::file_with(b"data");
        show::ret(sys::sendfile(a.fd, file, None, 4).0)
    });
    stage.a("reset", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR)
    });
    stage.a("again", |a| {
        let file = sys::file_with(b"data");
        let before = sys::caught();
        let again = sys::sendfile(a.fd, file, None, 4).0;
        let once_more = sys::sendfile(a.fd, file, None, 4).0;
        format!(
            "{} {} {}",
            show::ret(again),
            show::ret(once_more),
            sys::caught() - before
        )
    });
}

/// A file that shrinks while it is sent: its end comes before a full socket.
fn sendfile_truncated(stage: &mut Stage) {
    const BYTES: usize = 24 << 20;
    stage.connect();
    let sent = stage.share(crate::end::Side::A, |a| {
        let file = sys::file_with(&vec![b't'; BYTES]);
        a.more = vec![file];
        let _ = sys::set_nonblocking(a.fd, true);
        let (mut done, mut calm) = (0, 0);
        // The far end's kernel may take some more for a while.
        while calm < 20 {
            for count in [BYTES, 1] {
                match sys::sendfile(a.fd, file, None, count).0 {
                    Ok(sent) => {
                        done += sent;
                        calm = 0;
                    }
                    Err(_) => calm += 1,
                }
            }
            std::thread::sleep(core::time::Duration::from_millis(10));
        }
        done.cast_unsigned()
    });
    stage.a("full", |a| {
        let less = i64::try_from(BYTES).is_ok_and(|all| sent.cast_signed() < all);
        format!(
            "{less} {}",
            show::ret(sys::sendfile(a.fd, a.more[0], None, BYTES).0)
        )
    });
    stage.a("truncated", |a| {
        let _ = sys::truncate(a.more[0], sent.cast_signed());
        show::ret(sys::sendfile(a.fd, a.more[0], None, BYTES).0)
    });
    stage.a("shorter than that", |a| {
        let _ = sys::truncate(a.more[0], 10);
        let ret = sys::sendfile(a.fd, a.more[0], None, BYTES).0;
        let position = sys::lseek(a.more[0], 0, SEEK_CUR) == Ok(sent.cast_signed());
        format!("{} {position}", show::ret(ret))
    });
    stage.a("close", End::close);
    stage.b("drain", |b| {
        let mut left = usize::try_from(sent).unwrap_or(0);
        let mut buffer = vec![0; 1 << 20];
        while let Ok(got) = b.recv_some(&mut buffer) {
            if got == 0 {
                break;
            }
            left = left.wrapping_sub(usize::try_from(got).unwrap_or(0));
        }
        format!("{left} left")
    });
}

/// A file that must come from the disk.
fn sendfile_cold(stage: &mut Stage) {
    const BYTES: usize = 5_000_000;
    let pattern = Pattern::new(59);
    stage.connect();
    stage.both(
        "sendfile",
        |a| {
            let mut data = Vec::with_capacity(BYTES);
            while data.len() < BYTES {
                data.extend_from_slice(pattern.at(data.len(), (BYTES - data.len()).min(100_000)));
            }
            let file = sys::cold_file_with(&data);
            let first = sys::sendfile(a.fd, file, None, 1_000_001).0;
            let second = sys::sendfile(a.fd, file, Some(1_000_001), BYTES);
            format!(
                "{} {} {:?} at {}",
                show::ret(first),
                show::ret(second.0),
                second.1,
                show::ret(sys::lseek(file, 0, SEEK_CUR))
            )
        },
        |b| b.drink(&pattern, BYTES, 6),
    );
}

/// Pieces of a file, as a web server sends them behind a head of its own.
fn sendfile_many_small(stage: &mut Stage) {
    const BYTES: usize = 299_540;
    let pattern = Pattern::new(61);
    stage.connect();
    stage.both(
        "sendfile",
        |a| {
            let file = sys::cold_file_with(pattern.first(300_000));
            let mut done = 0;
            for piece in 1..700 {
                let head = pattern.at(done, piece);
                let said = a.send_all(head);
                done += piece;
                let offset = i64::try_from(done).unwrap_or(0);
                let (ret, after) = sys::sendfile(a.fd, file, Some(offset), 100);
                let expected = i64::try_from(done + 100).ok();
                if said.is_err() || ret != Ok(100) || after != expected {
                    return format!("{said:?} {} {after:?} at {done}", show::ret(ret));
                }
                done += 100;
                if done + 1000 > 300_000 {
                    break;
                }
            }
            format!("{done}")
        },
        |b| b.drink(&pattern, BYTES, 8),
    );
}

fn sendfile_timeout(stage: &mut Stage) {
    const BYTES: usize = 24 << 20;
    stage.connect();
    stage.a("set", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_SNDTIMEO, 120))
    });
    stage.a("until timeout", |a| {
        let file = sys::file_with(&vec![b't'; BYTES]);
        let mut part = 0;
        loop {
            match sys::sendfile(a.fd, file, None, BYTES).0 {
                Ok(sent) if sent > 0 => part += sent,
                other => {
                    let moved = sys::lseek(file, 0, SEEK_CUR) == Ok(part);
                    return format!("{} {} {moved}", show::ret(other), part > 0);
                }
            }
        }
    });
}

/// A process that may open nothing more, and a file that no disk holds.
fn sendfile_no_descriptors(stage: &mut Stage) {
    const BYTES: usize = 1_000_000;
    let pattern = Pattern::new(101);
    stage.connect();
    stage.both(
        "sendfile",
        |a| {
            let mut data = Vec::with_capacity(BYTES);
            while data.len() < BYTES {
                data.extend_from_slice(pattern.at(data.len(), (BYTES - data.len()).min(100_000)));
            }
            let file = sys::file_with(&data);
            let limited = sys::no_more_descriptors();
            let other = sys::dup(0);
            let sent = sys::sendfile(a.fd, file, None, BYTES).0;
            [limited, other, sent].map(show::ret).join(" ")
        },
        |b| b.drink(&pattern, BYTES, 15),
    );
}
