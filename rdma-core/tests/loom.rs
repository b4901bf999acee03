//! Interleavings and weak memory: what runs side by side in this crate, explored by loom.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p viaduct-rdma-core --release --test loom --target-dir target/loom
//! ```
//!
//! takes a quarter of a minute. Every model has its own bound on preemptions, 2 or 3;
//! LOOM_MAX_PREEMPTIONS=4 looks further and takes minutes. In a model payload bytes are loom's cells:
//! two uses of a byte, one of them a write, that nothing orders are an error even if the bytes come
//! out right. loom reads accesses with `SeqCst` as acquire-release, but knows the fence.
//!
//! Do the models see anything? Each line of this table was changed, one at a time, and the named
//! models failed (of several, the smallest are named):
//!
//! | change | fails |
//! |---|---|
//! | `Producer::publish`: tail relaxed; `Consumer::refresh` relaxed | `wake::a_receiver_never_sleeps_on_a_byte`, 14 more |
//! | `Producer::publish`: ack relaxed; `Consumer::ack` relaxed | `restart::an_acknowledgement_*` |
//! | `Consumer::published` relaxed | `restart::an_acknowledgement_by_another_thread_frees_the_bytes` |
//! | `Consumer::publish`, `Producer::refresh` relaxed | `restart::a_ring_wraps_under_its_reader`, 9 more |
//! | restart of a ring with one unread byte | `restart::an_empty_ring_restarts_under_its_reader`, 8 more |
//! | restart: base stored after the tail | `restart::an_empty_ring_restarts_under_its_reader`, 4 more |
//! | caller: no barrier after publish | `wake::a_receiver_never_sleeps_on_a_byte`, 8 more |
//! | `prepare_sleep`: no barrier | `wake::a_receiver_never_sleeps_on_a_byte`, 16 more |
//! | `EndWaits::enter`: no barrier, or counted before entered | `wake::an_epoll_set_*` |
//! | `post`: no barrier, or summary before bit | `wake::an_epoll_set_*` |
//! | `take_pending`: no barrier | `wake::an_epoll_set_sees_a_byte_whose_bit_was_pending_already` |
//! | `Inside::enter`, `Inside::nobody`: no barrier | `switch::a_switch_counts_*`, `switch::an_end_does_not_arm_*` |
//! | `switch`: no barrier | `switch::a_switch_alone_wakes_the_receiver` |
//! | `switch`, `accept` relaxed | `switch::a_stream_is_switched_at_an_exact_byte` |
//! | `end`: no barrier | `close::a_receiver_hears_a_half_close` |
//! | `end`, `ended_at` relaxed | `close::a_receiver_hears_a_half_close`, `close::a_receiver_hears_a_close` |
//! | `leave`: no barrier | `close::a_writer_hears_that_its_reader_left`, `close::two_ends_*` |
//! | `retract`: no barrier | `close::a_writer_hears_that_its_reader_left_the_ring` |
//! | `break_with`: no barrier | `close::a_receiver_hears_a_break`, `close::a_writer_hears_a_break` |
//! | caller: no barrier after a withdrawal, or its sender not roused | `withdraw::a_sender_that_waits_for_space_is_woken` |
//! | `stop_receiving`: off the ring with bytes unread | `withdraw::a_stream_is_taken_back_wherever_it_is` |
//! | caller: sender not looked at again after a withdrawal | `withdraw::an_idle_sender_is_not_needed` |
//! | lock: `try_lock` or `unlock` relaxed, no mark, mark ignored | both of `lock` |
//! | caller: one sleeper woken instead of all | `lock::three_threads_all_get_the_lock` |
//! | caller: uncounted before `finish_sleep`; no kick for work left | `wake::two_threads_of_one_epoll_set_share_the_work` |
//!
//! Not needed by anything here: the barrier in `arm` (the far end answers by a switch, which wakes)
//! and the look at the summary before `post` skips a bit that is set (whoever set the bit goes on to
//! set the summary; it helps if he dies in between).

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "all of it is tests")]

#[path = "loom/close.rs"]
mod close;
#[path = "loom/downgrade.rs"]
mod downgrade;
#[path = "loom/lock.rs"]
mod lock;
#[path = "loom/restart.rs"]
mod restart;
#[path = "loom/rig.rs"]
mod rig;
#[path = "loom/switch.rs"]
mod switch;
#[path = "loom/wake.rs"]
mod wake;
#[path = "loom/withdraw.rs"]
mod withdraw;
