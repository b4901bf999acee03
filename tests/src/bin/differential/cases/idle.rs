//! One end gives its socket to somebody who does not see rings, while the other end is idle in a call that
//! has nothing to do with the connection: what the idle end sent before comes all the same.

use super::{Case, Needs, blocking, case};
use crate::end::{End, Side, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("stdio_beside_idle", Needs::Steps, stdio),
    case("stdio_beside_idle_much", Needs::Steps, stdio_much),
    blocking("exec_beside_idle", Needs::Processes, exec),
    case("pass_beside_idle", Needs::Processes, pass),
];

/// Two lines, of which the program has read the first words itself.
fn stdio(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("by hand, first line\nsecond line\n"));
    stage.a("arrived", |a| a.arrived(32));
    stage.a("by hand", |a| a.hear(9));
    stage.a("streams", |a| {
        let input = sys::Stream::open(a.fd);
        let output = sys::Stream::open(fd_of(sys::dup(a.fd)));
        let mut shown = Vec::new();
        for round in 0..2 {
            shown.push(format!("{:?}", input.line()));
            shown.push(show::ok(output.put(&format!("answer {round}\n"))));
        }
        shown.push(show::ret(output.close()));
        shown.push(show::ret(input.close()));
        shown.join(" ")
    });
    stage.b("hear", |b| b.hear(18));
    stage.b("end", |b| b.hear(1));
}

/// As much as fits under way unread.
fn stdio_much(stage: &mut Stage) {
    const LINES: usize = 4000;
    let line = |number: usize| format!("line {number} {}\n", "of the stream ".repeat(4));
    stage.connect();
    stage.b("say", |b| {
        let text: String = (0..LINES).map(line).collect();
        b.say(&text)
    });
    stage.a("arrived", |a| a.recv(4, libc::MSG_PEEK));
    stage.a("stream", |a| {
        let input = sys::Stream::open(a.fd);
        let good = (0..LINES).take_while(|&number| input.line() == Some(line(number)));
        let good = good.count();
        format!("{good} {}", show::ret(input.close()))
    });
    stage.b("end", |b| b.hear(1));
}

/// Reads what another program writes into a pipe, until it has `want` bytes.
fn from_pipe(read: i32, want: usize) -> String {
    let mut all = Vec::new();
    while all.len() < want {
        if sys::poll(&[(read, libc::POLLIN)], patience()).0 != Ok(1) {
            break;
        }
        let mut part = [0; 100];
        match sys::read(read, &mut part).map(usize::try_from) {
            Ok(Ok(got @ 1..)) => all.extend_from_slice(&part[..got]),
            _ => break,
        }
    }
    show::data(&all)
}

/// The connection becomes the standard input of another program, which passes on what it reads.
fn exec(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("unread when cat began"));
    stage.b("arrived", |b| b.arrived(21));
    let (mut pid, mut output) = (Err(-1), -1);
    stage.b("cat", |b| {
        let fd = b.fd;
        let (read, write) = sys::pipe();
        let (go, tell) = sys::pipe();
        pid = sys::fork();
        if pid == Ok(0) {
            let _ = (sys::close(read), sys::close(tell));
            let _ = sys::read(go, &mut [0]);
            let _ = (sys::dup2(fd, 0), sys::dup2(write, 1));
            // Or else cat would hold the connection twice, and its end would not come.
            let _ = sys::close(fd);
            sys::exec(c"/bin/cat", c"-");
            sys::exit_now(1);
        }
        output = read;
        let closed = format!("{} {}", b.close(), show::ok(sys::close(write)));
        let _ = sys::write(tell, b"x");
        format!("{closed} {}", from_pipe(output, 21))
    });
    stage.a("more", |a| a.say(", and later"));
    stage.b("more", |_| from_pipe(output, 11));
    stage.a("close", End::close);
    stage.b("left", |_| sys::wait_for(pid));
}

/// The socket is passed to another process.
fn pass(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("unread when it was passed"));
    stage.a("arrived", |a| a.arrived(25));
    stage.a("pass", |a| {
        let (here, there) = sys::socketpair();
        let fd = a.fd;
        let pid = sys::fork();
        if pid == Ok(0) {
            let _ = sys::close(fd);
            let _ = sys::write(there, b"x");
            a.hold(sys::recv_fd(there));
            let heard = a.hear(25) == "\"unread when it was passed\"";
            let said = a.say("heard") == "sent 5";
            sys::exit_now(i32::from(!heard) + 2 * i32::from(!said));
        }
        let _ = sys::read(here, &mut [0]);
        let passed = sys::send_fds(here, b"x", &[fd]);
        let closed = a.close();
        format!("{} {closed} {}", show::ret(passed), sys::wait_for(pid))
    });
    stage.b("hear", |b| b.hear(5));
    stage.b("end", |b| b.hear(1));
    stage.share(Side::A, |_| 0);
}
