use super::*;

use crate::link::time::MILLISECOND;

const FRAME: u64 = 1500;
/// How long frame and acknowledgement are on their way if nothing is in it.
const WAY: u64 = 20 * MICROSECOND;

fn congestion() -> (Congestion, Rtt) {
    let mut rtt = Rtt::new();
    rtt.sample(Time(1), MILLISECOND, 0);
    let limits = Limits {
        window_max: 1 << 24,
        queue_delay: MILLISECOND,
    };
    (Congestion::new(FRAME, limits), rtt)
}

/// A round: the window is filled, and of every `loss` frames one is lost (0: none).
fn round(c: &mut Congestion, rtt: &Rtt, now: &mut Time, loss: u64) {
    round_of(c, rtt, now, loss, WAY);
}

/// The same, in which frames and acknowledgements are on their way for so long.
fn round_of(c: &mut Congestion, rtt: &Rtt, now: &mut Time, loss: u64, way: u64) {
    let start = *now;
    let mut frames = 0;
    while c.has_room() {
        c.on_sent(FRAME);
        frames += 1;
    }
    c.on_limited(usize::try_from(c.waiting.max(1)).unwrap());
    *now = now.plus(MILLISECOND);
    let mut newest_lost = None;
    for frame in 1..=frames {
        if loss > 0 && frame % loss == 0 {
            c.on_lost(FRAME);
            newest_lost = Some(start.plus(1));
        } else {
            c.on_acked(FRAME, start.plus(1));
        }
    }
    assert_eq!(c.in_flight(), 0);
    c.on_answer(*now, rtt.latest, way);
    c.settle(*now, rtt, Some(start.plus(1)), newest_lost);
}

/// The same after twelve rounds without a queue or a loss.
fn grown() -> (Congestion, Rtt, Time) {
    let (mut c, rtt) = congestion();
    let mut now = Time(1);
    for _ in 0..12 {
        round(&mut c, &rtt, &mut now, 0);
    }
    (c, rtt, now)
}

#[test]
fn doubles_then_stops_at_the_limit() {
    let (mut c, rtt) = congestion();
    let mut now = Time(1);
    let first = c.window();
    round(&mut c, &rtt, &mut now, 0);
    assert!(c.window() >= 2 * first - FRAME);
    for _ in 0..30 {
        round(&mut c, &rtt, &mut now, 0);
    }
    assert_eq!(c.window(), 1 << 24);
}

#[test]
fn heavy_loss_cuts_and_it_grows_again() {
    let (mut c, rtt) = congestion();
    let mut now = Time(1);
    for _ in 0..6 {
        round(&mut c, &rtt, &mut now, 0);
    }
    let before = c.window();
    round(&mut c, &rtt, &mut now, 10);
    assert!(c.window() < before * 7 / 10 + FRAME && c.cuts == 1);
    let low = c.window();
    for _ in 0..50 {
        round(&mut c, &rtt, &mut now, 0);
    }
    assert!(c.window() > low + 40 * FRAME);
    for _ in 0..200 {
        round(&mut c, &rtt, &mut now, 2);
    }
    assert!(c.window() <= 2 * FRAMES_MIN * FRAME);
}

#[test]
fn one_in_a_hundred_is_tolerated() {
    let (mut c, rtt) = congestion();
    let mut now = Time(1);
    for _ in 0..100 {
        round(&mut c, &rtt, &mut now, 100);
    }
    assert_eq!(c.cuts, 0);
    assert!(c.window() > 200 * FRAME, "{}", c.window());
}

#[test]
fn an_idle_program_and_a_long_queue_do_not_grow_it() {
    let (mut c, mut rtt) = congestion();
    let window = c.window();
    c.on_sent(FRAME);
    c.on_acked(FRAME, Time(5));
    c.settle(Time(6), &rtt, Some(Time(5)), None);
    assert_eq!(c.window(), window);
    let mut now = Time(10);
    for _ in 0..20 {
        rtt.sample(now, 5 * MILLISECOND, 0);
        round(&mut c, &rtt, &mut now, 0);
    }
    assert!((QUEUE_MIN..2 * QUEUE_MIN).contains(&c.window()));
    let all = QUEUE_MIN_STREAMS / QUEUE_MIN_STREAM;
    for (streams, floor) in [
        (all / 2, QUEUE_MIN_STREAMS / 2),
        (2 * all, QUEUE_MIN_STREAMS),
        (1, QUEUE_MIN),
    ] {
        c.waiting = streams;
        c.window = 2 * QUEUE_MIN_STREAMS;
        for _ in 0..30 {
            round(&mut c, &rtt, &mut now, 0);
        }
        assert_eq!(c.window(), floor, "{streams} streams");
    }
    c.waiting = all;
    c.company_mut().on_sent(1, now);
    c.company_mut().on_sent(2, now);
    for _ in 0..20 {
        round(&mut c, &rtt, &mut now, 0);
    }
    assert_eq!(c.window(), QUEUE_MIN_SHARED);
    rtt.sample(now, MILLISECOND, 0);
    for _ in 0..400 {
        round(&mut c, &rtt, &mut now, 0);
    }
    assert!(c.window() > QUEUE_MIN, "{}", c.window());
    c.collapse();
    assert_eq!(c.window(), FRAMES_MIN * FRAME);
}

#[test]
fn callers_wait_behind_little_if_that_helps() {
    let (mut c, mut rtt, mut now) = grown();
    // A window of 24 MiB takes a second.
    let answer = |c: &Congestion| MILLISECOND + c.window() * 40;
    let mut rounds =
        |c: &mut Congestion, count: u64, call: bool, answer: &dyn Fn(&Congestion) -> u64| {
            for _ in 0..count {
                if call {
                    c.company_mut().on_more(1, now);
                    c.company_mut().on_all(2, 1, now);
                }
                rtt.sample(now, answer(c), 0);
                round(c, &rtt, &mut now, 0);
            }
            c.window()
        };
    let before = rounds(&mut c, 60, false, &answer);
    assert!(before >= QUEUE_MIN, "{before}");
    assert_eq!(rounds(&mut c, 80, true, &answer), QUEUE_MIN_CALLERS);
    let after = rounds(&mut c, 80, false, &answer);
    assert!(after >= before, "{after} of {before}");
    // Whoever looks late looks no earlier for less.
    let late = |_: &Congestion| 40 * MILLISECOND;
    let sum: u64 = (0..200).map(|_| rounds(&mut c, 1, true, &late)).sum();
    assert!(sum / 200 > before * 3 / 4, "{} of {before}", sum / 200);
}

#[test]
fn a_queue_on_the_way_shrinks_it_as_far_as_it_takes() {
    let (mut c, rtt, mut now) = grown();
    let long = WAY + 2 * MILLISECOND;
    // One round of many is no queue.
    let before = c.window();
    for late in [long, WAY, long, long, WAY] {
        round_of(&mut c, &rtt, &mut now, 0, late);
    }
    assert!(c.window() >= before, "{} of {before}", c.window());
    let own = |c: &Congestion| WAY + 50 * MILLISECOND * c.window() / before;
    for _ in 0..6 {
        let late = own(&c);
        round_of(&mut c, &rtt, &mut now, 0, late);
    }
    assert!(c.window() < before * 7 / 8, "{} of {before}", c.window());
    for _ in 0..100 {
        let late = own(&c);
        round_of(&mut c, &rtt, &mut now, 0, late);
    }
    assert!(c.window() >= QUEUE_LEAST && c.window() < before / 8);
    for _ in 0..100 {
        // A clock that was set says nothing.
        round_of(&mut c, &rtt, &mut now, 0, 0);
        round(&mut c, &rtt, &mut now, 0);
    }
    assert!(c.window() > QUEUE_LEAST + 10 * FRAME, "{}", c.window());
}

#[test]
fn a_queue_of_others_is_left_alone() {
    let (mut c, rtt, mut now) = grown();
    // However small the window, the queue stays.
    let (long, before) = (WAY + 5 * MILLISECOND, c.window());
    let mut least = before;
    for _ in 0..40 {
        round_of(&mut c, &rtt, &mut now, 0, long);
        least = least.min(c.window());
    }
    assert!(least < before && least > before / 3, "{least} of {before}");
    assert!(c.window() >= before, "{} of {before}", c.window());
    // So does one that grows.
    c.way_trial.stop_resting();
    let mut sum = 0;
    for number in 0..400 {
        let late = WAY + 4 * MILLISECOND + number * MICROSECOND;
        round_of(&mut c, &rtt, &mut now, 0, late);
        sum += c.window();
    }
    assert!(sum / 400 > before / 2, "{} of {before}", sum / 400);
}

#[test]
fn what_losses_have_cut_stays_cut() {
    let (mut c, rtt, mut now) = grown();
    let long = WAY + 5 * MILLISECOND;
    while !c.way_trial.is_on() {
        round_of(&mut c, &rtt, &mut now, 0, long);
    }
    let before = c.window();
    round_of(&mut c, &rtt, &mut now, 5, long);
    assert_eq!(c.cuts, 1);
    for _ in 0..12 {
        round_of(&mut c, &rtt, &mut now, 0, long);
        assert!(c.window() < before, "{} of {before}", c.window());
    }
    c.collapse();
    assert_eq!(c.window(), FRAMES_MIN * FRAME);
    // The floor of a queue is no reason to grow to it.
    c.on_answer(now, rtt.latest, long);
    now = now.plus(MILLISECOND);
    c.settle(now, &rtt, Some(now), None);
    assert_eq!(c.window(), FRAMES_MIN * FRAME);
}
