//! Two mirrors back to back.

use super::*;
use crate::handshake::Route;
use crate::layout::{End, RING_LOG2_MIN, conn_bytes};
use crate::mem::{HeapRegion, RingBytes};
use crate::reason::Reason;
use crate::ring::{OutOfRing, Producer};

const WAITS: WaitRef = WaitRef {
    process: 9,
    context: 0,
    bit: Some(1),
};

/// A program and its backend.
struct Host {
    heap: HeapRegion,
    program: ConnView,
    mirror: Mirror,
    tx: TxCursor,
    rx: RxCursor,
}

impl Host {
    fn new() -> Self {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_MIN));
        let view = |end| ConnView::new(&heap.region(), end, RING_LOG2_MIN).expect("fits");
        let (program, backend) = (view(End::Zero), view(End::One));
        Self {
            mirror: Mirror::new(backend, WAITS).expect("fresh memory"),
            program,
            tx: TxCursor::default(),
            rx: RxCursor::default(),
            heap,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let ring = Producer::of(&self.program);
        assert_eq!(ring.write_slice(&mut self.tx, bytes), Ok(bytes.len()));
        ring.publish(&self.tx, 0, 0);
    }

    fn receive(&mut self, most: usize) -> Vec<u8> {
        let ring = Consumer::of(&self.program);
        let mut bytes = vec![0; most];
        let got = ring.read_slice(&mut self.rx, &mut bytes).expect("sound");
        ring.publish(&self.rx);
        bytes.truncate(got);
        bytes
    }

    fn state(&self) -> &'static EndState {
        &self.program.mine.state
    }

    fn backend(&self) -> &'static EndState {
        &self.program.theirs.state
    }
}

#[expect(unsafe_code, reason = "reads a ring, as a system call would")]
fn bytes_of((data, index): (&RingBytes, usize), len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    // SAFETY: `len` bytes of our own, and no more than the ring holds.
    unsafe { data.copy_out(index, all.as_mut_ptr(), len) };
    all
}

/// Carries everything that `from` has to say and to send to `to`.
fn carry(from: &mut Host, to: &mut Host) {
    let look = from.mirror.look().expect("sound");
    to.mirror.hear(from.mirror.said()).expect("sound");
    let (_, placed) = to.mirror.positions();
    if look.produced > placed && !look.up_over {
        let len = usize::try_from(look.produced - placed).expect("a ring");
        let bytes = bytes_of(from.mirror.up_data(placed), len);
        // Out of order on purpose.
        let half = len / 2;
        let middle = placed + half as u64;
        to.mirror.place(middle, &bytes[half..]).expect("free");
        to.mirror.place(placed, &bytes[..half]).expect("free");
        to.mirror.arrived(look.produced);
    }
    let read = to.mirror.look().expect("sound").consumed;
    from.mirror.consumed(read);
}

fn switched() -> (Host, Host) {
    let (mut a, mut b) = (Host::new(), Host::new());
    b.state().arm();
    carry(&mut b, &mut a);
    assert!(a.backend().is_armed());
    assert!(a.state().switch(77));
    a.send(b"hello");
    carry(&mut a, &mut b);
    assert_eq!(b.backend().accept(), Some(77));
    assert_eq!(b.receive(2), b"he");
    carry(&mut a, &mut b);
    (a, b)
}

#[test]
fn bytes_and_ends_cross() {
    let (mut a, mut b) = switched();
    assert_eq!(a.mirror.positions().0, 2, "what was read is given back");
    a.send(b"!");
    a.state().end(6);
    a.state().leave();
    let early = {
        a.mirror.look().expect("sound");
        a.mirror.said()
    };
    b.mirror.hear(early).expect("sound");
    assert_eq!(b.backend().ended_at(), None, "bytes are missing");
    carry(&mut a, &mut b);
    assert_eq!(b.backend().ended_at(), Some(6));
    assert_eq!(b.receive(9), b"llo!");
    b.state().leave();
    carry(&mut b, &mut a);
    assert!(a.mirror.is_over() && b.mirror.is_over());
}

#[test]
fn a_sender_that_asks_is_told_where_the_reader_leaves() {
    let (mut a, mut b) = switched();
    a.send(b"lost on the way");
    assert!(!a.state().give_back(a.tx.tail), "never accepted here");
    assert!(a.state().cancel() && !a.backend().is_granted());
    // Only what it says crosses, not the bytes.
    a.mirror.look().expect("sound");
    b.mirror.hear(a.mirror.said()).expect("sound");
    assert_eq!(b.backend().returned_at(), Some(5));
    carry(&mut b, &mut a);
    assert!(a.backend().is_granted());
    assert_eq!(a.state().retracted_at(a.backend()), Some(5));
    // What comes late is dropped.
    b.mirror.place(5, b"lost").expect("nobody minds");
    assert!(!b.mirror.arrived(9));
    assert_eq!(b.receive(9), b"llo");
}

#[test]
fn a_reader_that_leaves_is_faster_than_a_sender_that_asks() {
    let (mut a, mut b) = switched();
    assert_eq!(b.state().retract(b.backend(), 2), Ok(()));
    assert!(a.state().cancel());
    a.mirror.look().expect("sound");
    b.mirror.hear(a.mirror.said()).expect("sound");
    carry(&mut b, &mut a);
    assert_eq!(a.state().retracted_at(a.backend()), Some(2));
    assert!(a.backend().is_granted() && a.backend().is_reader_gone());
    assert!(!b.mirror.said().has(Snapshot::GONE));
    b.state().leave();
    carry(&mut b, &mut a);
    assert!(b.mirror.said().has(Snapshot::GONE) && a.backend().is_closed());
}

/// A reader leaves while its sender's last bytes are under way.
fn leave_behind(finishes: bool, more: &[u8]) -> (Host, Host) {
    let (mut a, mut b) = switched();
    a.send(more);
    if finishes {
        a.state().end(a.tx.tail);
        assert!(a.state().finish());
    }
    assert_eq!(b.state().retract(b.backend(), b.rx.head), Ok(()));
    // Only words cross.
    b.mirror.look().expect("sound");
    a.mirror.look().expect("sound");
    a.mirror.hear(b.mirror.said()).expect("sound");
    assert!(!b.backend().is_confirmed());
    b.mirror.hear(a.mirror.said()).expect("sound");
    (a, b)
}

#[test]
fn a_reader_that_leaves_is_told_that_its_sender_sends_again() {
    let (a, b) = leave_behind(false, b"more");
    assert!(b.backend().is_confirmed());
    assert_eq!(b.backend().broken(), None);
    // The sender sees it before it is gone.
    a.state().end(9);
    assert!(!a.state().finish());
    assert_eq!(a.state().retracted_at(a.backend()), Some(2));
}

#[test]
fn a_reader_that_leaves_behind_what_nobody_sends_again_is_told() {
    let (a, b) = leave_behind(true, b"more");
    assert!(!b.backend().is_confirmed());
    assert_eq!(b.backend().broken(), Some(Reason::FarEnd));
    assert_eq!(a.backend().broken(), Some(Reason::FarEnd));
    assert!(!a.backend().is_granted());
}

#[test]
fn a_reader_that_leaves_after_the_last_byte_has_all() {
    let (mut a, mut b) = switched();
    a.state().end(5);
    assert!(a.state().finish());
    assert_eq!(b.receive(9), b"llo");
    assert_eq!(b.state().retract(b.backend(), 5), Ok(()));
    carry(&mut b, &mut a);
    carry(&mut a, &mut b);
    assert!(b.backend().is_confirmed());
    assert_eq!((a.backend().broken(), b.backend().broken()), (None, None));
}

#[test]
fn nothing_is_confirmed_for_a_sender_that_has_vanished() {
    let (mut a, mut b) = switched();
    a.mirror.depart();
    assert_eq!(b.state().retract(b.backend(), 2), Ok(()));
    carry(&mut b, &mut a);
    carry(&mut a, &mut b);
    assert!(!b.backend().is_confirmed() && b.backend().broken().is_some());
}

#[test]
fn what_was_confirmed_is_said_again_after_a_restart() {
    let (mut a, mut b) = leave_behind(false, b"more");
    restart(&mut a);
    restart(&mut b);
    a.mirror.look().expect("sound");
    assert!(a.mirror.said().has(Snapshot::CONFIRMED));
    assert!(b.backend().is_confirmed());
}

#[test]
fn backends_take_both_directions_off() {
    let (mut a, mut b) = switched();
    a.mirror.ask_to_leave();
    for _ in 0..2 {
        carry(&mut a, &mut b);
        carry(&mut b, &mut a);
    }
    assert_eq!(b.backend().returned_at(), Some(5));
    assert_eq!(a.state().retracted_at(a.backend()), Some(5));
    assert!(a.backend().is_granted() && a.mirror.is_off() && b.mirror.is_off());
    // From now on nobody needs the backends.
    a.mirror.break_with(Reason::LinkReset);
    carry(&mut a, &mut b);
    assert_eq!((a.backend().broken(), b.backend().broken()), (None, None));
    assert!(a.mirror.is_over() && b.mirror.is_over());
    // The other direction was never switched, and never will be.
    assert!(!b.state().switch(1) && !a.state().is_switched());
}

#[test]
fn a_program_that_goes_on_without_the_rings_says_no_end() {
    let (mut a, mut b) = switched();
    a.mirror.ask_to_leave();
    for _ in 0..2 {
        carry(&mut a, &mut b);
        carry(&mut b, &mut a);
    }
    for swap in [false, true] {
        let (one, other) = if swap {
            (&mut b, &mut a)
        } else {
            (&mut a, &mut b)
        };
        one.mirror.let_go();
        carry(one, other);
        // The far program may have yet to read its ring up to where it was left.
        assert_eq!(other.backend().ended_at(), None);
        assert!(!other.backend().is_closed());
    }
    carry(&mut a, &mut b);
    assert!(a.mirror.is_over() && b.mirror.is_over());
    let (mut a, mut b) = switched();
    a.mirror.let_go();
    carry(&mut a, &mut b);
    assert!(b.backend().is_closed(), "it was still on the rings");
}

#[test]
fn what_a_sender_left_behind_when_it_ended_is_read_from_the_ring() {
    for asked_at_the_reader in [false, true] {
        let (mut a, mut b) = switched();
        a.send(b"last");
        a.state().end(9);
        a.state().leave();
        let asked = if asked_at_the_reader { &mut b } else { &mut a };
        asked.mirror.ask_to_leave();
        // Only words cross at first.
        for _ in 0..2 {
            a.mirror.look().expect("sound");
            b.mirror.look().expect("sound");
            a.mirror.hear(b.mirror.said()).expect("sound");
            b.mirror.hear(a.mirror.said()).expect("sound");
        }
        assert_eq!(b.backend().returned_at(), None, "nobody sends the rest");
        assert!(!b.mirror.is_off());
        carry(&mut a, &mut b);
        assert_eq!(b.backend().ended_at(), Some(9));
        assert_eq!(b.receive(9), b"llolast");
        carry(&mut b, &mut a);
        carry(&mut a, &mut b);
        assert!(a.mirror.is_off() && b.mirror.is_off());
    }
}

#[test]
fn a_sender_that_was_made_to_ask_knows_it_when_it_ends() {
    let (mut a, mut b) = switched();
    b.mirror.ask_to_leave();
    carry(&mut b, &mut a);
    assert_eq!(a.state().route(), Route::Retracted);
    assert!(!a.backend().is_granted());
}

#[test]
fn a_sender_may_write_and_end_before_it_sees_that_nothing_is_wanted() {
    let (mut a, mut b) = switched();
    assert_eq!(b.state().retract(b.backend(), 2), Ok(()));
    carry(&mut b, &mut a);
    a.send(b"unseen");
    a.state().end(11);
    carry(&mut a, &mut b);
    assert!(a.mirror.said().has(Snapshot::ENDED));
    assert!(b.backend().ended_at().is_some());
}

#[test]
fn what_was_not_used_can_be_done_without() {
    let (mut a, mut b) = (Host::new(), Host::new());
    b.state().arm();
    assert!(a.mirror.is_unused() && b.mirror.is_unused());
    carry(&mut b, &mut a);
    assert!(!a.mirror.is_unused(), "the program may send now");
    assert!(b.mirror.is_unused());
    let (a, b) = switched();
    assert!(!a.mirror.is_unused() && !b.mirror.is_unused());
}

#[test]
fn a_vanished_program_has_ended() {
    let (mut a, mut b) = switched();
    a.send(b"last");
    a.mirror.depart();
    carry(&mut a, &mut b);
    assert_eq!(b.backend().ended_at(), Some(9));
    assert!(b.backend().is_closed());
}

#[test]
fn a_program_that_vanished_with_bytes_unread_is_told_from_one_that_had_read_all() {
    for unread in [false, true] {
        let (mut a, mut b) = switched();
        b.receive(if unread { 2 } else { 5 });
        b.mirror.depart();
        b.mirror.depart();
        carry(&mut b, &mut a);
        assert!(a.backend().is_closed());
        assert_eq!(a.backend().has_left_unread(), unread);
    }
    // One that has closed has told the kernel itself.
    let (mut a, mut b) = switched();
    b.state().leave();
    b.mirror.depart();
    carry(&mut b, &mut a);
    assert!(a.backend().is_closed() && !a.backend().has_left_unread());
}

#[test]
fn a_doubt_is_about_a_program_that_has_not_ended() {
    let (mut a, mut b) = switched();
    b.state().doubt();
    carry(&mut b, &mut a);
    assert!(a.mirror.is_doubted() && !b.mirror.is_doubted());
    restart(&mut a);
    restart(&mut b);
    carry(&mut b, &mut a);
    assert!(a.mirror.is_doubted());
    a.state().end(5);
    a.mirror.look().expect("sound");
    assert!(!a.mirror.is_doubted());
}

/// A program has shut its socket down before it knew of its memory: the far one has armed, and hears of the end by TCP
/// only once the kernel is all it listens to.
#[test]
fn an_end_that_is_never_said_by_ring_takes_both_off() {
    let (mut a, mut b) = pair();
    b.state().arm();
    carry(&mut b, &mut a);
    b.state().doubt();
    carry(&mut b, &mut a);
    assert!(a.mirror.is_doubted());
    a.mirror.ask_to_leave();
    carry(&mut a, &mut b);
    assert_eq!(b.backend().accept(), None);
    assert_eq!(b.backend().route(), Route::Retracted, "it never switches");
    assert_eq!(a.state().route(), Route::Retracted);
    carry(&mut b, &mut a);
    assert_eq!(b.state().route(), Route::Retracted);
    assert_eq!(a.backend().route(), Route::Retracted);
    assert!(a.backend().broken().or(b.backend().broken()).is_none());
    assert!(!a.state().switch(5), "too late");
}

/// The backend of `host` is started anew.
fn restart(host: &mut Host) {
    let view = ConnView::new(&host.heap.region(), End::One, RING_LOG2_MIN).expect("fits");
    host.mirror = Mirror::resumed(view, WAITS).expect("sound");
}

#[test]
fn a_restarted_backend_goes_on() {
    let (mut a, mut b) = switched();
    a.send(b" world");
    restart(&mut a);
    restart(&mut b);
    assert_eq!(b.mirror.taken(), (5, 2));
    a.mirror.look().expect("sound");
    assert!(a.mirror.may_have_sent(5, 2) && a.mirror.may_have_sent(11, 11));
    for (received, consumed) in [(12, 2), (5, 1), (5, 6)] {
        assert!(!a.mirror.may_have_sent(received, consumed));
    }
    carry(&mut a, &mut b);
    carry(&mut b, &mut a);
    assert_eq!(b.receive(99), b"llo world");
}

#[test]
fn a_switch_that_is_taken_back_after_a_restart_repeats_nothing() {
    let (mut a, mut b) = switched();
    assert!(a.state().cancel());
    restart(&mut a);
    a.mirror.look().expect("sound");
    assert!(!a.backend().is_granted(), "some of it was read");
    carry(&mut a, &mut b);
    // What the reader's backend has answered is told again, too.
    restart(&mut b);
    carry(&mut b, &mut a);
    assert_eq!(a.state().retracted_at(a.backend()), Some(5));
}

#[test]
fn nonsense_is_not_believed() {
    let (mut a, _) = switched();
    let said = |flags, at| Snapshot {
        flags,
        left_at: at,
        ..Snapshot::default()
    };
    assert!(a.mirror.hear(said(Snapshot::LEFT, 6)).is_err(), "not sent");
    assert!(a.mirror.hear(said(Snapshot::LEFT, 1)).is_err(), "was read");
    assert!(!a.mirror.consumed(6));
    a.state().end(99);
    assert!(a.mirror.look().is_err(), "an end beyond the tail");
    let (_, mut b) = switched();
    let capacity = b.mirror.capacity();
    assert_eq!(b.mirror.place(capacity + 2, b"x"), Err(OutOfRing));
    assert_eq!(b.mirror.place(u64::MAX, b"xy"), Err(OutOfRing));
    assert_eq!(b.mirror.place(4, b"x"), Err(OutOfRing));
    assert_eq!(b.mirror.place(capacity + 1, b"x"), Ok(()));
}

/// Two programs of one host.
fn pair() -> (Host, Host) {
    (Host::new(), Host::new())
}

#[test]
fn bytes_cross_over_directly_as_far_as_there_is_room() {
    let (mut a, mut b) = pair();
    let capacity = a.mirror.capacity();
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..400u64 {
        let free = Producer::of(&a.program).refresh(&mut a.tx).expect("sound");
        let len = (round * 997 % 9000).min(free);
        let bytes: Vec<u8> = (0..len)
            .map(|i| u8::try_from((round * 31 + i) % 251).expect("small"))
            .collect();
        a.send(&bytes);
        sent.extend(bytes);
        a.mirror.look().expect("sound");
        let most = 1 + round * 7 % 5000;
        while let Ok(carried) = a.mirror.carry_to(&mut b.mirror, most) {
            assert!(carried.bytes <= most);
            if !carried.more {
                break;
            }
        }
        if round % 3 == 0 {
            got.extend(b.receive(usize::try_from(capacity).expect("a ring")));
        }
        let look = b.mirror.look().expect("sound");
        a.mirror.consumed(look.consumed);
    }
    while let Ok(carried) = a.mirror.carry_to(&mut b.mirror, u64::MAX)
        && carried.bytes > 0
    {
        got.extend(b.receive(usize::try_from(capacity).expect("a ring")));
    }
    got.extend(b.receive(usize::try_from(capacity).expect("a ring")));
    assert!(sent.len() as u64 > 10 * capacity);
    assert!(got == sent, "{} {}", got.len(), sent.len());
}

/// A program begins anew while it is told of memory for what it asked before.
#[test]
fn memory_that_one_program_never_took_is_left_by_both() {
    for armed in [false, true] {
        let (mut a, mut b) = (Host::new(), Host::new());
        if armed {
            a.state().arm();
        }
        carry(&mut a, &mut b);
        b.mirror.let_go();
        for _ in 0..3 {
            carry(&mut b, &mut a);
            carry(&mut a, &mut b);
        }
        assert!(a.mirror.is_off() && b.mirror.is_off());
        let far = a.backend();
        assert!(far.ended_at().is_none() && !far.is_closed() && far.broken().is_none());
        assert_eq!(far.route(), Route::Retracted, "nothing will come by ring");
        assert_eq!(a.state().route(), Route::Retracted, "nothing will go");
        a.mirror.let_go();
        carry(&mut a, &mut b);
        assert!(a.mirror.is_over() && b.mirror.is_over());
    }
}

#[test]
fn a_full_ring_is_left_full_and_filled_when_it_is_read() {
    let (mut a, mut b) = pair();
    let capacity = a.mirror.capacity();
    a.send(&vec![1; usize::try_from(capacity).expect("a ring")]);
    let carried = |bytes, more| Ok(Carried { bytes, more });
    assert_eq!(
        a.mirror.carry_to(&mut b.mirror, capacity / 2),
        carried(capacity / 2, true)
    );
    assert_eq!(
        a.mirror.carry_to(&mut b.mirror, u64::MAX),
        carried(capacity / 2, false)
    );
    // The far program has not read it, so the near one keeps it.
    assert_eq!(Producer::of(&a.program).refresh(&mut a.tx), Ok(0));
    assert_eq!(b.receive(10), [1; 10]);
    let look = b.mirror.look().expect("sound");
    assert!(!a.mirror.consumed(look.consumed), "not at the first byte");
    assert_eq!(Producer::of(&a.program).refresh(&mut a.tx), Ok(10));
    a.send(&[2; 20][..10]);
    assert_eq!(a.mirror.carry_to(&mut b.mirror, 4), carried(4, true));
    assert_eq!(a.mirror.carry_to(&mut b.mirror, 100), carried(6, false));
    assert_eq!(a.mirror.carry_to(&mut b.mirror, 100), carried(0, false));
}

#[test]
fn nothing_crosses_to_a_reader_that_has_left() {
    let (mut a, mut b) = pair();
    a.send(&[1; 10]);
    assert!(b.backend().switch(0));
    assert_eq!(b.state().retract(b.backend(), 0), Ok(()));
    b.mirror.look().expect("sound");
    assert!(b.mirror.said().has(Snapshot::LEFT));
    assert_eq!(
        a.mirror.carry_to(&mut b.mirror, 100),
        Ok(Carried::default())
    );
    a.mirror.look().expect("sound");
    a.mirror.hear(b.mirror.said()).expect("sound");
    assert_eq!(
        a.mirror.carry_to(&mut b.mirror, 100),
        Ok(Carried::default())
    );
}

#[test]
fn words_that_make_no_sense_carry_nothing() {
    let (mut a, mut b) = pair();
    a.send(&[1; 10]);
    let words = Producer::of(&a.program);
    words.words().base.store(1 << 40, Ordering::Relaxed);
    assert!(a.mirror.carry_to(&mut b.mirror, 100).is_err());
    words.words().base.store(0, Ordering::Relaxed);
    words.words().tail.store(u64::MAX, Ordering::Relaxed);
    assert!(a.mirror.carry_to(&mut b.mirror, 100).is_err());

    let (mut a, mut b) = pair();
    a.send(&[1; 10]);
    assert!(a.mirror.carry_to(&mut b.mirror, 5).is_ok());
    b.program.mine.consumer.head.store(6, Ordering::Relaxed);
    assert!(a.mirror.carry_to(&mut b.mirror, 5).is_err());
    assert_eq!(b.mirror.taken(), (5, 0));
}

/// A backend that is killed may leave an entry that is not counted, or count one that is not there.
#[test]
fn a_program_wakes_the_backend_after_whatever_restarts() {
    for (entered, counted) in [(false, 0), (false, 1), (true, 0), (true, 1), (true, 2)] {
        let host = Host::new();
        let view = || ConnView::new(&host.heap.region(), End::One, RING_LOG2_MIN).expect("fits");
        let waits = &view().mine.waits;
        waits.clear();
        if entered {
            waits.enter(WaitFor::Data, WAITS);
            waits.enter(WaitFor::Space, WAITS);
        }
        waits.rx_waiters.store(counted, Ordering::Relaxed);
        waits.tx_waiters.store(counted, Ordering::Relaxed);
        for _ in 0..3 {
            assert!(Mirror::resumed(view(), WAITS).is_ok());
            let mut found = Vec::new();
            waits.each(WaitFor::Data, |who| found.push(who));
            assert_eq!(found, [WAITS]);
            assert_eq!(waits.rx_waiters.load(Ordering::Relaxed), 1);
            assert!(!waits.any(WaitFor::Space));
            waits.each(WaitFor::Space, |_| panic!("nobody waits for space"));
        }
    }
}

#[test]
fn a_ring_is_kept_empty_only_while_it_is() {
    let (mut a, mut b) = pair();
    a.send(&[7; 10]);
    assert!(a.mirror.carry_to(&mut b.mirror, 6).is_ok());
    assert!(!b.mirror.keep_empty(), "six bytes lie there");
    assert_eq!(b.receive(6), [7; 6]);
    assert!(b.mirror.keep_empty());
    assert!(!a.mirror.has_for(&b.mirror));
    let nothing = Ok(Carried::default());
    assert_eq!(a.mirror.carry_to(&mut b.mirror, 100), nothing);
    b.mirror.may_fill();
    assert!(a.mirror.has_for(&b.mirror));
    assert!(a.mirror.carry_to(&mut b.mirror, 100).is_ok());
    assert_eq!(b.receive(100), [7; 4]);

    // Placed out of order, and not shown yet.
    b.mirror.place(15, &[8; 5]).expect("free");
    assert!(!b.mirror.keep_empty());
    b.mirror.place(10, &[8; 5]).expect("free");
    assert!(b.mirror.arrived(20));
    assert!(!b.mirror.keep_empty());
    assert_eq!(b.receive(10), [8; 10]);
    assert!(b.mirror.keep_empty());
}
