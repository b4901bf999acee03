//! Random operations: mostly sends and receives, and enough of everything else.

use libc::{
    EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, MSG_DONTWAIT, MSG_MORE,
    MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use viaduct_tests::random::operation::{
    Call, DupBy, ExitBy, Fact, GoesOn, How, Knob, Operation, PLACES, PollBy, RecvBy, SETS, SendBy,
    Side,
};

/// Sequences of up to `longest` operations. `edges`: edge-triggered registrations among them.
pub(crate) fn sequences(longest: usize, edges: bool) -> impl Strategy<Value = Vec<Operation>> {
    vec(operation(edges), 1..=longest)
}

fn operation(edges: bool) -> impl Strategy<Value = Operation> {
    (select(Side::ALL), call(edges)).prop_map(|(side, call)| Operation { side, call })
}

fn call(edges: bool) -> impl Strategy<Value = Call> {
    prop_oneof![
        24 => send(),
        24 => recv(),
        4 => (place(), select(&[200_000, 700_000][..])).prop_map(|(at, len)| Call::Pour { at, len }),
        1 => place().prop_map(|at| Call::Fill { at }),
        16 => waits(edges),
        2 => (place(), select(How::ALL)).prop_map(|(at, how)| Call::Shutdown { at, how }),
        3 => place().prop_map(|at| Call::Close { at }),
        4 => (place(), place(), select(DupBy::ALL))
            .prop_map(|(at, to, by)| Call::Dup { at, to, by }),
        6 => knob(),
        8 => (place(), select(Fact::ALL)).prop_map(|(at, fact)| Call::Get { at, fact }),
        1 => select(GoesOn::ALL).prop_map(|goes_on| Call::Fork { goes_on }),
        2 => select(ExitBy::ALL).prop_map(|by| Call::Exit { by }),
        1 => prop_oneof![3 => Just(Call::Reconnect), 1 => Just(Call::Revoke)],
    ]
}

/// Nearly always the first: the others are there only after a dup.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![6 => Just(0), 1 => 0..PLACES]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => select(&[17, 1, 0, 4096, 65_537][..]),
        2 => 0..5000_usize,
        1 => 0..100_000_usize,
    ]
}

/// Each flag with a chance of one in `odds`.
fn flags(odds: u32, all: &'static [i32]) -> impl Strategy<Value = i32> {
    vec(0..odds, all.len()).prop_map(move |dice| {
        let chosen = all
            .iter()
            .zip(dice)
            .filter(move |(_, die)| *die == odds - 1);
        chosen.fold(0, |bits, (bit, _)| bits | bit)
    })
}

fn send() -> impl Strategy<Value = Call> {
    // Rarely MSG_MORE: the kernel holds the bytes back for 200 ms.
    let flags = prop_oneof![
        9 => flags(3, &[MSG_DONTWAIT, MSG_NOSIGNAL]),
        1 => flags(2, &[MSG_MORE, MSG_DONTWAIT, MSG_NOSIGNAL]),
    ];
    (place(), select(SendBy::ALL), length(), flags).prop_map(|(at, by, len, flags)| Call::Send {
        at,
        by,
        len,
        flags,
    })
}

fn recv() -> impl Strategy<Value = Call> {
    let flags = flags(4, &[MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, MSG_TRUNC]);
    (place(), select(RecvBy::ALL), length(), flags).prop_map(|(at, by, len, flags)| Call::Recv {
        at,
        by,
        len,
        flags,
    })
}

fn waits(edges: bool) -> impl Strategy<Value = Call> {
    let polled = flags(2, &[EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLPRI]);
    prop_oneof![
        4 => (select(PollBy::ALL), polled).prop_map(|(by, events)| Call::Poll { by, events }),
        3 => (0..SETS, place(), watched(edges))
            .prop_map(|(set, at, events)| Call::EpollAdd { set, at, events }),
        2 => (0..SETS, place(), watched(edges))
            .prop_map(|(set, at, events)| Call::EpollMod { set, at, events }),
        1 => (0..SETS, place()).prop_map(|(set, at)| Call::EpollDel { set, at }),
        8 => (0..SETS).prop_map(|set| Call::EpollWait { set }),
        1 => (0..SETS).prop_map(|set| Call::EpollClose { set }),
    ]
}

fn watched(edges: bool) -> impl Strategy<Value = i32> {
    let levels = flags(2, &[EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLPRI]);
    let style = if edges {
        vec![0, EPOLLET, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT]
    } else {
        vec![0, EPOLLONESHOT]
    };
    (levels, select(style)).prop_map(|(levels, style)| levels | style)
}

fn knob() -> impl Strategy<Value = Call> {
    let turned = prop_oneof![
        4 => (select(&[Knob::Nonblock, Knob::Fionbio][..]), 0..2),
        2 => (Just(Knob::Lowat), select(&[1, 2, 20, 5000][..])),
        1 => (Just(Knob::Timeout), select(&[0, 20][..])),
        1 => (Just(Knob::Linger), 0..2),
        1 => (Just(Knob::Nodelay), 0..2),
        1 => (Just(Knob::Cork), 0..2),
    ];
    (place(), turned).prop_map(|(at, (knob, value))| Call::Set { at, knob, value })
}
