//! splice from a pipe into a socket: parts, ends, waits on either side.

use libc::{
    F_SETFL, O_NONBLOCK, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SA_RESTART, SHUT_WR,
    SIGPIPE, SPLICE_F_MORE, SPLICE_F_NONBLOCK,
};

use super::splice::{contents, fill, kept, let_it_sleep, pipe_of, with_alarm};
use super::{Case, Needs, blocking, case};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("splice_out_parts", Needs::Steps, splice_out_parts),
    blocking("splice_out_waits", Needs::Both, splice_out_waits),
    blocking(
        "splice_out_interrupted",
        Needs::Processes,
        splice_out_interrupted,
    ),
    case(
        "splice_out_after_end",
        Needs::Processes,
        splice_out_after_end,
    ),
    case(
        "splice_out_full_socket",
        Needs::Steps,
        splice_out_full_socket,
    ),
    case("splice_out_timeout", Needs::Steps, splice_out_timeout),
];

fn splice_out_parts(stage: &mut Stage) {
    stage.connect();
    stage.a("empty", |a| {
        let (read, _) = pipe_of(a);
        let by_flag = sys::splice(read, a.fd, 10, SPLICE_F_NONBLOCK);
        let _ = sys::fcntl(read, F_SETFL, O_NONBLOCK);
        let by_pipe = sys::splice(read, a.fd, 10, 0);
        let _ = sys::fcntl(read, F_SETFL, 0);
        format!("{} {}", show::ret(by_flag), show::ret(by_pipe))
    });
    stage.a("part", |a| {
        let (read, write) = kept(a);
        let _ = sys::write(write, b"0123456789");
        show::ret(sys::splice(read, a.fd, 4, 0))
    });
    stage.b("hear", |b| b.hear(4));
    stage.a("rest", |a| {
        show::ret(sys::splice(a.more[0], a.fd, 1 << 40, SPLICE_F_MORE))
    });
    stage.b("hear", |b| b.hear(6));
    stage.a("several writes", |a| {
        let (read, write) = kept(a);
        for text in [b"one ", b"two ", b"and "] {
            let _ = sys::write(write, text);
        }
        show::ret(sys::splice(read, a.fd, 100, 0))
    });
    stage.b("hear", |b| b.hear(12));
    stage.a("a full pipe", |a| {
        let (read, write) = kept(a);
        fill(write);
        show::ret(sys::splice(read, a.fd, 1 << 20, 0))
    });
    stage.b("hear", |b| b.hear(65_536));
    stage.a("no writer", |a| {
        let (read, write) = kept(a);
        let _ = sys::write(write, b"last");
        let _ = sys::close(write);
        let rets = [100, 100].map(|len| show::ret(sys::splice(read, a.fd, len, 0)));
        rets.join(" ")
    });
    stage.b("hear", |b| b.hear(4));
}

fn splice_out_waits(stage: &mut Stage) {
    stage.connect();
    stage.a("for a writer", |a| {
        let (read, write) = pipe_of(a);
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::write(write, b"hello")
        });
        let ret = sys::splice(read, a.fd, 10, 0);
        format!("{} {:?}", show::ret(ret), other.join().unwrap_or(Err(-1)))
    });
    stage.b("hear", |b| b.hear(5));
    stage.a("for no writer", |a| {
        let (read, write) = kept(a);
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::close(write)
        });
        let ret = sys::splice(read, a.fd, 10, 0);
        format!("{} {:?}", show::ret(ret), other.join().unwrap_or(Err(-1)))
    });
    let pattern = Pattern::new(67);
    const BYTES: usize = 24_000_000;
    stage.both(
        "for room",
        |a| {
            let (read, write) = pipe_of(a);
            let mut done = 0;
            while done < BYTES {
                let piece = pattern.at(done, (BYTES - done).min(60_000));
                let put = sys::write(write, piece);
                let sent = sys::splice(read, a.fd, 1 << 20, 0);
                if put != sent || put.is_err() {
                    return format!("{} {} at {done}", show::ret(put), show::ret(sent));
                }
                done += piece.len();
            }
            format!("{done}")
        },
        |b| {
            let_it_sleep();
            b.drink(&pattern, BYTES, 5)
        },
    );
}

fn splice_out_interrupted(stage: &mut Stage) {
    stage.connect();
    stage.a("waiting for a writer", |a| {
        let (read, _) = pipe_of(a);
        with_alarm(0, || show::ret(sys::splice(read, a.fd, 10, 0)))
    });
    stage.a("restarted", |a| {
        let (read, write) = kept(a);
        let other = std::thread::spawn(move || {
            std::thread::sleep(core::time::Duration::from_millis(150));
            sys::write(write, b"hello")
        });
        let shown = with_alarm(SA_RESTART, || show::ret(sys::splice(read, a.fd, 10, 0)));
        format!("{shown} {:?}", other.join().unwrap_or(Err(-1)))
    });
    stage.b("hear", |b| b.hear(5));
    stage.a("waiting for room", |a| {
        let (read, write) = kept(a);
        with_alarm(0, || {
            loop {
                let _ = sys::write(write, &[b'x'; 60_000]);
                match sys::splice(read, a.fd, 60_000, 0) {
                    Ok(60_000) => {}
                    Ok(_) => {
                        // A part; what is left in the pipe waits.
                        let rest = sys::splice(read, a.fd, 60_000, 0);
                        if rest.is_err() {
                            return show::ret(rest);
                        }
                    }
                    other => return show::ret(other),
                }
            }
        })
    });
}

fn splice_out_after_end(stage: &mut Stage) {
    stage.connect();
    stage.a("after shutdown", |a| {
        let _ = sys::catch(SIGPIPE, 0);
        let (read, write) = pipe_of(a);
        let _ = a.shutdown(SHUT_WR);
        let empty = sys::splice(read, a.fd, 10, SPLICE_F_NONBLOCK);
        let _ = sys::write(write, b"data");
        let ret = sys::splice(read, a.fd, 10, 0);
        format!(
            "{} {} {} {}",
            show::ret(empty),
            show::ret(ret),
            sys::caught(),
            contents(a)
        )
    });
    stage.a("no writer", |a| {
        let (read, write) = kept(a);
        let _ = sys::close(write);
        show::ret(sys::splice(read, a.fd, 10, 0))
    });
    stage.b("end", |b| b.hear(1));
    stage.a("close", End::close);
    stage.set_aside();
    stage.connect();
    stage.b("close", End::close);
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("to nobody", |a| {
        let (read, write) = pipe_of(a);
        let empty = sys::splice(read, a.fd, 10, SPLICE_F_NONBLOCK);
        let _ = sys::write(write, b"data");
        format!(
            "{} {}",
            show::ret(empty),
            show::ret(sys::splice(read, a.fd, 10, 0))
        )
    });
    stage.a("reset", |a| {
        a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR)
    });
    stage.a("again", |a| {
        let (read, write) = kept(a);
        let before = sys::caught();
        let empty = sys::splice(read, a.fd, 10, SPLICE_F_NONBLOCK);
        let _ = sys::write(write, b"data");
        let rets = [10, 10].map(|len| show::ret(sys::splice(read, a.fd, len, 0)));
        format!(
            "{} {} {} {}",
            show::ret(empty),
            rets.join(" "),
            sys::caught() - before,
            contents(a)
        )
    });
}

fn splice_out_full_socket(stage: &mut Stage) {
    stage.connect();
    let sent = stage.share(Side::A, |a| {
        let (read, write) = pipe_of(a);
        let _ = sys::set_nonblocking(a.fd, true);
        let (mut done, mut calm) = (0, 0);
        // The far end's kernel may take some more for a while.
        while calm < 20 {
            for len in [1 << 20, 1] {
                fill(write);
                match sys::splice(read, a.fd, len, 0) {
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
        let (read, write) = kept(a);
        let full = sys::splice(read, a.fd, 10, 0);
        let kept = contents(a);
        let empty = sys::splice(read, a.fd, 10, SPLICE_F_NONBLOCK);
        let _ = sys::close(write);
        let ended = sys::splice(read, a.fd, 10, 0);
        format!(
            "{} {} {} {}",
            show::ret(full),
            kept != "EAGAIN",
            show::ret(empty),
            show::ret(ended)
        )
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

fn splice_out_timeout(stage: &mut Stage) {
    stage.connect();
    stage.a("until timeout", |a| {
        let (read, write) = pipe_of(a);
        let _ = sys::set_timeout(a.fd, libc::SO_SNDTIMEO, 100);
        loop {
            fill(write);
            match sys::splice(read, a.fd, 1 << 20, 0) {
                Ok(sent) if sent > 0 => {}
                other => return show::ret(other),
            }
        }
    });
}
