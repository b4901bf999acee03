//! Streams by splice: in, out, and through, as proxies do it.

use libc::{F_GETPIPE_SZ, F_SETPIPE_SZ, SHUT_WR, SPLICE_F_MORE, SPLICE_F_MOVE, SPLICE_F_NONBLOCK};

use super::splice::{let_it_sleep, pipe_of};
use super::{Case, Needs, case, in_all_forms};
use crate::end::End;
use crate::form::Form;
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    in_all_forms("splice_stream_in", Needs::Both, splice_stream_in),
    in_all_forms("splice_stream_out", Needs::Both, splice_stream_out),
    case("splice_proxy", Needs::Both, splice_proxy),
    case("splice_large_pipe", Needs::Both, splice_large_pipe),
    case("splice_shared_pipe", Needs::Both, splice_shared_pipe),
];

/// Splices what comes into a pipe and reads that, waiting in the form; A's stream, as B sees it.
fn drink_by_pipe(end: &mut End, pattern: &Pattern, bytes: usize) -> String {
    let (read, write) = sys::pipe();
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    while done < bytes {
        // Sometimes what is asked for is more than there can be, sometimes little.
        let most = if done % 3 == 0 { 1 << 20 } else { 1000 };
        let got = match sys::splice(end.fd, write, most, SPLICE_F_NONBLOCK) {
            Err(libc::EAGAIN) if end.form != Form::Blocking => {
                if end.wait(false) {
                    continue;
                }
                return format!("nothing is reported after {done}");
            }
            other => other,
        };
        let Ok(got) = got else {
            return format!("{done} then {}", show::ret(got));
        };
        if got == 0 {
            return format!("{done} then end");
        }
        let mut left = usize::try_from(got).unwrap_or(0);
        while left > 0 {
            let room = left.min(buffer.len());
            let read = sys::read(read, buffer.get_mut(..room).unwrap_or_default());
            let read = usize::try_from(read.unwrap_or(0)).unwrap_or(0);
            if read == 0 || buffer.get(..read) != Some(pattern.at(done, read)) {
                return format!("other bytes between {done} and {}", done + read);
            }
            done += read;
            left -= read;
        }
    }
    let _ = (sys::close(read), sys::close(write));
    format!("drank {done}")
}

fn splice_stream_in(stage: &mut Stage) {
    const BYTES: usize = 3_000_000;
    let pattern = Pattern::new(71);
    stage.connect();
    stage.both(
        "stream",
        |a| a.pour(&pattern, BYTES, 9),
        |b| drink_by_pipe(b, &pattern, BYTES),
    );
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// Puts a stream into a pipe and splices from there, waiting in the form.
fn pour_by_pipe(end: &mut End, pattern: &Pattern, bytes: usize) -> String {
    let (read, write) = sys::pipe();
    let mut sizes = crate::pattern::Sizes::new(10);
    let (mut put, mut sent) = (0, 0);
    while sent < bytes {
        if put == sent {
            let piece = pattern.at(put, sizes.next_size().min(bytes - put).min(65_536));
            match sys::write(write, piece) {
                Ok(len) => put += usize::try_from(len).unwrap_or(0),
                Err(error) => return format!("pipe: {}", show::errno(error)),
            }
        }
        match sys::splice(read, end.fd, 1 << 20, SPLICE_F_NONBLOCK | SPLICE_F_MOVE) {
            Ok(len) => sent += usize::try_from(len).unwrap_or(0),
            Err(libc::EAGAIN) if end.form != Form::Blocking => {
                if !end.wait(true) {
                    return format!("no room is reported after {sent}");
                }
            }
            Err(error) => return format!("{sent} then {}", show::errno(error)),
        }
    }
    let _ = (sys::close(read), sys::close(write));
    format!("poured {sent}")
}

fn splice_stream_out(stage: &mut Stage) {
    const BYTES: usize = 12_000_000;
    let pattern = Pattern::new(73);
    stage.connect();
    stage.both(
        "stream",
        |a| pour_by_pipe(a, &pattern, BYTES),
        |b| {
            let_it_sleep();
            b.drink(&pattern, BYTES, 11)
        },
    );
}

/// A pours and drinks the echo that B makes by splicing through a pipe.
fn splice_proxy(stage: &mut Stage) {
    const BYTES: usize = 6_000_000;
    let pattern = Pattern::new(79);
    stage.connect();
    stage.both(
        "echo",
        |a| {
            let echoed = a.duplex(&pattern, &pattern, BYTES, 12);
            format!("{echoed} {}", a.shutdown(SHUT_WR))
        },
        |b| {
            let (read, write) = pipe_of(b);
            let mut total = 0;
            loop {
                let splice = |fd| sys::splice(fd, write, 1 << 20, SPLICE_F_NONBLOCK);
                let got = b.patiently(false, splice);
                let mut left = match got {
                    Ok(0) => return format!("echoed {total}"),
                    Ok(got) => got,
                    Err(error) => return format!("{total} then {}", show::errno(error)),
                };
                total += left;
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(0);
                    match b.patiently(true, |fd| sys::splice(read, fd, most, SPLICE_F_MORE)) {
                        Ok(sent) if sent > 0 => left -= sent,
                        other => return format!("{total} then out {}", show::ret(other)),
                    }
                }
            }
        },
    );
    stage.b("close", End::close);
    stage.a("end", |a| a.hear(1));
}

/// A pipe that holds much more than a page, never quite emptied.
fn splice_large_pipe(stage: &mut Stage) {
    const BYTES: usize = 8_000_000;
    let pattern = Pattern::new(83);
    stage.connect();
    stage.both(
        "stream",
        |a| a.pour(&pattern, BYTES, 13),
        |b| {
            let (read, write) = pipe_of(b);
            let size = sys::fcntl(write, F_SETPIPE_SZ, 1 << 20);
            let mut buffer = vec![0; 300_001];
            let (mut put, mut done) = (0, 0);
            while done < BYTES {
                if put < BYTES {
                    match sys::splice(b.fd, write, 1 << 20, SPLICE_F_NONBLOCK) {
                        Ok(0) => return format!("end after {put}"),
                        Ok(got) => put += usize::try_from(got).unwrap_or(0),
                        Err(libc::EAGAIN) => {}
                        Err(error) => return format!("{put} then {}", show::errno(error)),
                    }
                }
                // Leaves a byte, while there is more to come.
                let take = (put - done).saturating_sub(usize::from(put < BYTES));
                let room = take.min(buffer.len());
                let got = sys::read(read, buffer.get_mut(..room).unwrap_or_default());
                let got = usize::try_from(got.unwrap_or(0)).unwrap_or(0);
                if buffer.get(..got)
                    != Some(pattern.at(done, got.min(200_000))).filter(|_| got <= 200_000)
                    && got <= 200_000
                {
                    return format!("other bytes between {done} and {}", done + got);
                }
                done += got;
            }
            format!(
                "{} {} {done}",
                show::ret(size),
                show::ret(sys::fcntl(write, F_GETPIPE_SZ, 0))
            )
        },
    );
}

/// Two threads splice from one connection into one pipe: together they get every byte once.
fn splice_shared_pipe(stage: &mut Stage) {
    const BYTES: usize = 4_000_000;
    stage.connect();
    stage.both(
        "stream",
        |a| {
            let chunk = vec![7; 50_000];
            let mut done = 0;
            while done < BYTES {
                // Also what was taken in part adds up to so many bytes.
                let some = chunk.len().min(BYTES - done);
                match a.send_some(&chunk[..some]) {
                    Ok(sent) => done += usize::try_from(sent).unwrap_or(0),
                    Err(error) => return show::errno(error),
                }
            }
            let sum = done % BYTES;
            format!("{sum} {}", a.close())
        },
        |b| {
            let (read, write) = pipe_of(b);
            let work = move |mut end: End| {
                let mut total = 0;
                let splice = |fd| sys::splice(fd, write, 30_000, 0);
                while let Ok(got) = end.patiently(false, splice) {
                    if got == 0 {
                        break;
                    }
                    total += got;
                }
                total
            };
            let reader = std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                let (mut sum, mut count) = (0u64, 0);
                while let Ok(got) = sys::read(read, &mut buffer) {
                    if got == 0 {
                        break;
                    }
                    let got = usize::try_from(got).unwrap_or(0);
                    count += got;
                    sum += buffer
                        .iter()
                        .take(got)
                        .map(|&byte| u64::from(byte))
                        .sum::<u64>();
                }
                (count, sum)
            });
            let ends = [b.another(), b.another()];
            let others = ends.map(|end| std::thread::spawn(move || work(end)));
            let moved: i64 = others.into_iter().map(|t| t.join().unwrap_or(-1)).sum();
            let _ = sys::close(write);
            let (count, sum) = reader.join().unwrap_or_default();
            format!("{moved} {count} {sum}")
        },
    );
}
