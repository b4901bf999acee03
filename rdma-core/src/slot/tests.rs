//! Tests of slots, their locks and their states.

use super::*;
use crate::mem::HeapRegion;

#[test]
fn slots_fit_the_arena() {
    let heap = HeapRegion::new(ARENA_BYTES);
    let arena = ArenaView::new(heap.region()).unwrap();
    assert!(arena.slot(SLOTS - 1).is_some());
    assert!(arena.slot(SLOTS).is_none());
    assert!(ArenaView::new(heap.region().part(0, ARENA_BYTES - 1).unwrap()).is_none());
}

#[test]
fn the_lock_names_its_owner_and_its_sleepers() {
    let lock = DirectionLock::new();
    assert_eq!(lock.try_lock(5), Ok(()));
    assert_eq!(lock.try_lock(6), Err(5));
    let word = lock.contend().unwrap();
    assert_ne!(word, 5);
    assert_eq!(lock.try_lock(6), Err(5));
    assert!(lock.unlock());
    assert_eq!(lock.contend(), None);
    assert_eq!(lock.try_lock(6), Ok(()));
    assert!(!lock.unlock());
}

#[test]
fn a_lock_that_has_changed_hands_is_not_freed() {
    let lock = DirectionLock::new();
    assert_eq!(lock.try_lock(DirectionLock::DAEMON), Ok(()));
    assert!(!lock.unlock_by(DirectionLock::DAEMON));
    assert_eq!(lock.try_lock(6), Ok(()));
    assert!(!lock.unlock_by(DirectionLock::DAEMON));
    assert_eq!(lock.try_lock(DirectionLock::DAEMON), Err(6));
    lock.unlock();
    assert_eq!(lock.try_lock(DirectionLock::DAEMON), Ok(()));
    lock.contend();
    assert!(lock.unlock_by(DirectionLock::DAEMON), "there are sleepers");
    assert_eq!(lock.try_lock(6), Ok(()));
}

#[test]
fn unknown_words_read_as_the_safe_state() {
    assert_eq!(TxState::from_word(77), TxState::Kernel);
    assert_eq!(RxState::from_word(77), RxState::Kernel);
    assert_eq!(Stage::from_word(77), Stage::Free);
}

#[test]
fn a_reset_raises_the_generation_and_clears_the_rest() {
    let heap = HeapRegion::new(ARENA_BYTES);
    let slot = ArenaView::new(heap.region()).unwrap().slot(3).unwrap();
    slot.tx.set_state(TxState::Ring);
    slot.meta.holders.store(9, Ordering::Relaxed);
    slot.meta.far_addr[1].store(9, Ordering::Relaxed);
    slot.reset();
    assert_eq!(slot.meta.far_addr[1].load(Ordering::Relaxed), 0);
    assert_eq!(slot.tx.state(), TxState::Kernel);
    assert_eq!(slot.meta.holders.load(Ordering::Relaxed), 0);
    assert_eq!(slot.meta.generation.load(Ordering::Relaxed), 1);
}
