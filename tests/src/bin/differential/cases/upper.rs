//! TCP_ULP: another protocol on top of TCP in the kernel. Whether the kernel has one or not, the connection goes on.

use libc::IPPROTO_TCP;

use super::descriptors::dialogue;
use super::{Case, Needs, case, end_in_turn, in_all_forms};
use crate::end::End;
use crate::pattern::Pattern;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    in_all_forms("ulp_later", Needs::Both, |stage| {
        stage.connect();
        asked_for(stage);
    }),
    in_all_forms("ulp_fresh", Needs::Both, |stage| {
        stage.connect_cold(Family::V4);
        asked_for(stage);
    }),
    case("ulp_under_load", Needs::Both, under_load),
    case("ulp_before_connect", Needs::Both, before_connect),
];

const TCP_ULP: i32 = 31;

/// Asks for a protocol of this name, of which the kernel is told `len` bytes.
fn ask(fd: i32, name: &str, len: usize) -> String {
    let at = name.as_ptr().expose_provenance();
    let len = u32::try_from(len).unwrap_or(0);
    show::ret(sys::setsockopt_at(fd, IPPROTO_TCP, TCP_ULP, at, len))
}

/// What the kernel says that the socket has.
fn has(fd: i32) -> String {
    let (mut name, mut len) = ([0u8; 16], 16u32);
    let at = name.as_mut_ptr().expose_provenance();
    let len_at = (&raw mut len).expose_provenance();
    let got = sys::getsockopt_at(fd, IPPROTO_TCP, TCP_ULP, at, len_at);
    let name = sys::bytes_at(at, name.len());
    let len = usize::try_from(len).unwrap_or(0);
    format!(
        "{} {}",
        show::ret(got),
        show::data(name.get(..len).unwrap_or_default())
    )
}

/// With bytes unread in both directions; what cannot be asked for comes first.
fn asked_for(stage: &mut Stage) {
    stage.a("say", |a| a.say("there "));
    stage.b("say", |b| b.say("and back"));
    stage.a("arrived", |a| a.arrived(8));
    stage.a("no name", |a| ask(a.fd, "tls", 0));
    stage.a("no memory", |a| {
        show::ret(sys::setsockopt_at(a.fd, IPPROTO_TCP, TCP_ULP, 0, 3))
    });
    stage.a("unknown", |a| ask(a.fd, "nonsense", 8));
    stage.a("has", |a| has(a.fd));
    stage.a("hear", |a| a.hear(8));
    stage.b("hear", |b| b.hear(6));
    dialogue(stage);
    stage.b("say", |b| b.say("more"));
    stage.a("arrived", |a| a.arrived(4));
    stage.a("tls", |a| ask(a.fd, "tls", 3));
    stage.a("has", |a| has(a.fd));
    stage.a("hear", |a| a.hear(4));
    dialogue(stage);
    stage.b("tls", |b| ask(b.fd, "tls", 3));
    dialogue(stage);
    end_in_turn(stage);
}

/// In the middle of streams.
fn under_load(stage: &mut Stage) {
    const BYTES: usize = 2_000_000;
    let (out, home) = (Pattern::new(81), Pattern::new(82));
    stage.connect();
    stage.both(
        "streams",
        |a| {
            let fd = a.fd;
            std::thread::scope(|scope| {
                let asker = scope.spawn(move || {
                    std::thread::sleep(core::time::Duration::from_millis(1));
                    ask(fd, "tls", 3)
                });
                let done = a.duplex(&out, &home, BYTES, 5);
                format!("{done} {}", asker.join().unwrap_or_default())
            })
        },
        |b| b.duplex(&home, &out, BYTES, 7),
    );
    dialogue(stage);
}

/// A socket that is no connection yet has nothing to put it on.
fn before_connect(stage: &mut Stage) {
    let listener = stage.listen(crate::end::Side::B);
    stage.a("tls", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        ask(a.fd, "tls", 3)
    });
    stage.a("connect", |a| {
        let connected = sys::connect(a.fd, listener.address);
        let fd = a.fd;
        a.take(fd);
        show::ret(connected)
    });
    stage.b("accept", |b| {
        b.take(fd_of(sys::accept4(listener.fd, 0)));
        show::ret(sys::close(listener.fd))
    });
    stage.warm_up();
    stage.a("tls", |a| ask(a.fd, "tls", 3));
    dialogue(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}
