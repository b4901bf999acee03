//! Threads of both ends share one connection for as long as it takes: records both ways, by every call,
//! while other threads look at the socket and duplicate it.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use libc::{MSG_NOSIGNAL, MSG_WAITALL, POLLIN, POLLOUT};

use super::{Case, Needs, case};
use crate::end::End;
use crate::pattern::Random;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Ret, fd_of};

pub(super) const CASES: &[Case] = &[
    case("records_of_threads", Needs::Both, |stage| {
        records(stage, false);
    }),
    case("records_while_duplicated", Needs::Both, |stage| {
        records(stage, true);
    }),
];

/// Threads that write, and threads that read, at each end.
const WRITERS: u32 = 2;
const READERS: u32 = 2;

/// Records of one writer; more if `VIADUCT_LONG` asks for it.
fn records_each() -> u32 {
    let long = std::env::var("VIADUCT_LONG").ok();
    let times: u32 = long.map_or(1, |seconds| seconds.parse().unwrap_or(20));
    1500 * times.max(1)
}

/// What stands before each record: writer, number, length, checksum of what follows.
const HEADER: usize = 16;

/// Longest record.
const LONGEST: usize = 60_000;

/// What is common to the threads of one end.
struct Shared {
    /// Held for one record, so that records are not mixed. That is the program's business.
    writing: Mutex<()>,
    reading: Mutex<Read>,
}

/// How far the far end's writers are.
#[derive(Default)]
struct Read {
    numbers: [u32; WRITERS as usize],
    sums: [u64; WRITERS as usize],
    wrong: Option<String>,
    ended: bool,
}

fn records(stage: &mut Stage, duplicated: bool) {
    stage.connect();
    let play = |end: &mut End| play(end, duplicated);
    stage.both("records", play, play);
    stage.a("close", End::close);
    stage.b("close", End::close);
}

/// All threads of one end.
fn play(end: &mut End, duplicated: bool) -> String {
    let fd = end.fd;
    // As many sets as threads then, which is what a connection on rings can be in.
    end.leave_set();
    let shared = Shared {
        writing: Mutex::default(),
        reading: Mutex::default(),
    };
    let done = AtomicBool::new(false);
    let written: Vec<u64> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|which| {
                let (shared, mut end) = (&shared, end.another());
                scope.spawn(move || while read_one(shared, &mut end, which) {})
            })
            .collect();
        if duplicated {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    disturb(fd);
                }
            });
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|which| {
                let (shared, mut end) = (&shared, end.another());
                scope.spawn(move || write_all(shared, &mut end, which))
            })
            .collect();
        let sums = writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or(0))
            .collect();
        let _ = sys::shutdown(fd, libc::SHUT_WR);
        for reader in readers {
            let _ = reader.join();
        }
        done.store(true, Ordering::Relaxed);
        sums
    });
    let read = shared.reading.into_inner().unwrap_or_default();
    let (numbers, sums, wrong) = (read.numbers, read.sums, read.wrong);
    format!("wrote {written:x?} read {numbers:?} {sums:x?} {wrong:?}")
}

/// Sends the records of one writer; their checksums, added up.
fn write_all(shared: &Shared, end: &mut End, which: u32) -> u64 {
    let mut random = Random(u64::from(which) + 77);
    let mut sum = 0_u64;
    for number in 0..records_each() {
        let mut dice = || usize::try_from(random.next() >> 33).unwrap_or(0);
        let limit = [20, 600, 6000, LONGEST][dice() % 4];
        let byte = u8::try_from(dice() % 251).unwrap_or(0);
        let body = vec![byte; 1 + dice() % limit];
        let check = show::hash(&body) ^ u64::from(number);
        sum = sum.wrapping_add(check);
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&u16::try_from(which).unwrap_or(0).to_le_bytes());
        let len = u32::try_from(body.len()).unwrap_or(0);
        header[2..4].copy_from_slice(&u16::try_from(number % 65_536).unwrap_or(0).to_le_bytes());
        header[4..8].copy_from_slice(&len.to_le_bytes());
        header[8..].copy_from_slice(&check.to_le_bytes());
        let _one_at_a_time = shared.writing.lock();
        if !send_record(end, &header, &body, number) {
            break;
        }
    }
    sum
}

/// Sends one record, by a call of several kinds; the rest of one that was cut short by plain sends.
fn send_record(end: &mut End, header: &[u8], body: &[u8], number: u32) -> bool {
    let ret = end.patiently(true, |fd| match number % 4 {
        0 => sys::sendmsg(fd, &[header, body], MSG_NOSIGNAL),
        1 => sys::writev(fd, &[header, body]),
        2 => sys::send(fd, header, MSG_NOSIGNAL),
        _ => sys::write(fd, header),
    });
    let Some(mut done) = moved(ret) else {
        return false;
    };
    while done < header.len() + body.len() {
        let rest = match header.get(done..).filter(|rest| !rest.is_empty()) {
            Some(rest) => rest,
            None => body.get(done - header.len()..).unwrap_or_default(),
        };
        match moved(end.send_some(rest)) {
            Some(more) => done += more,
            None => return false,
        }
    }
    true
}

/// Receives one record; false if there are no more.
fn read_one(shared: &Shared, end: &mut End, which: u32) -> bool {
    let Ok(mut read) = shared.reading.lock() else {
        return false;
    };
    if read.ended || read.wrong.is_some() {
        return false;
    }
    let mut header = [0; HEADER];
    match receive(end, &mut header, which) {
        HEADER => {}
        0 => {
            read.ended = true;
            return false;
        }
        cut => {
            read.wrong = Some(format!("{cut} bytes of a header"));
            return false;
        }
    }
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (writer, number) = (usize::from(word(0)), word(2));
    let len = usize::from(word(4)) + (usize::from(word(6)) << 16);
    let check = header[8..]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let mut body = vec![0; len.min(LONGEST)];
    let got = receive(end, &mut body, which + 1);
    let expected = read.numbers.get(writer).copied().unwrap_or(0);
    let is_good = got == len
        && u32::from(number) == expected % 65_536
        && show::hash(&body) ^ u64::from(expected) == check;
    if !is_good {
        read.wrong = Some(format!(
            "writer {writer} record {number}, {expected} expected, {got} of {len}"
        ));
        return false;
    }
    read.numbers[writer] += 1;
    read.sums[writer] = read.sums[writer].wrapping_add(check);
    true
}

/// Receives until the buffer is full, by a call of several kinds; how much came before the end.
fn receive(end: &mut End, out: &mut [u8], which: u32) -> usize {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let ret = end.patiently(false, |fd| match which % 3 {
            0 => sys::recv(fd, rest, MSG_WAITALL),
            1 => sys::read(fd, rest),
            _ => {
                let (first, second) = rest.split_at_mut(rest.len() / 2);
                sys::readv(fd, &mut [first, second])
            }
        });
        match moved(ret) {
            Some(got) if got > 0 => done += got,
            _ => break,
        }
    }
    done
}

/// Duplicates the descriptor, looks at the socket through the duplicate, and closes it.
fn disturb(fd: i32) {
    let copy = fd_of(sys::dup(fd));
    let _ = sys::poll(&[(copy, POLLIN | POLLOUT)], 0);
    let _ = sys::ioctl(copy, sys::FIONREAD, 0);
    let _ = sys::recv(copy, &mut [0; 8], libc::MSG_PEEK | libc::MSG_DONTWAIT);
    let other = fd_of(sys::dup2(copy, 600));
    let _ = (sys::close(copy), sys::close(other));
    std::thread::sleep(core::time::Duration::from_micros(200));
}

fn moved(ret: Ret) -> Option<usize> {
    ret.ok().and_then(|count| usize::try_from(count).ok())
}
