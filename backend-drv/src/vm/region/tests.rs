use super::*;
use crate::vm::lease::ENDLESS;

#[test]
fn memory_comes_back_as_zeros() {
    let mut region = Region::create(1, 64 << 20).unwrap();
    let free = region.free();
    let couple = Couple::of(Process(1), Process(2));
    let (place, arena) = region.place(couple, 16).unwrap();
    assert!(is_in_region(place.arena));
    arena.prepare(place.offset, 16, 9).unwrap();
    arena.clear(place.offset, 16).unwrap();
    region.release(&place, true);
    region.leave(Process(1));
    assert_eq!(region.free(), free);
    let (at, events) = region.events().unwrap();
    events.context(3).unwrap().post(7);
    region.give_back_events(at);
    let (again, events) = region.events().unwrap();
    assert_eq!(again, at);
    assert!(!events.context(3).unwrap().has_pending());
}

#[test]
fn the_next_machine_finds_nothing_of_the_one_before() {
    use std::os::unix::fs::FileExt;
    let mut region = Region::create(4, 64 << 20).unwrap();
    let file = std::fs::File::from(region.memory().try_clone().unwrap());
    let (memory, _) = region.lend();
    let written: Vec<u64> = (0..64).map(|number| (number << 20) + 8192).collect();
    for at in &written {
        file.write_all_at(b"of a machine that left", *at).unwrap();
    }
    drop(memory);
    region.reset();
    for at in written {
        let mut word = [1; 32];
        file.read_exact_at(&mut word, at).unwrap();
        assert_eq!(word, [0; 32], "{at}");
    }
}

#[test]
fn what_was_for_events_stays_that_until_nobody_is_left() {
    let mut region = Region::create(2, 64 << 20).unwrap();
    let free = region.free();
    let heap = region.take_heap(32 << 20).unwrap();
    let (memory, lease) = region.lend();
    region.give_back_heap(heap);
    assert_eq!(region.free(), free);
    assert_eq!(region.take(32 << 20), None, "for connections");
    assert_eq!(region.take_heap(32 << 20), Some(heap));
    region.give_back_heap(heap);
    region.reset();
    assert!(region.is_lent(lease) && region.take(32 << 20).is_none());
    drop(memory);
    region.reset();
    assert!(!region.is_lent(lease) && region.take(32 << 20).is_some());
}

#[test]
fn a_region_that_an_older_daemon_has_lent_is_not_emptied() {
    for lease in [ENDLESS, Lease::default()] {
        let memory = Region::create(3, 64 << 20).unwrap().memory().try_clone();
        let mark = Mark {
            used_to: HEAP_START + EVENT_BYTES as u64,
            last_arena: 0,
        };
        let mut region = Region::restore(3, memory.unwrap(), 64 << 20, mark).unwrap();
        assert!(region.may_be_reset() && !region.is_endless());
        region.note_lease(lease);
        assert!(region.is_endless() && !region.may_be_reset());
        region
            .events_at(HEAP_START)
            .unwrap()
            .context(3)
            .unwrap()
            .post(7);
        region.reset();
        let events = region.events_at(HEAP_START).unwrap();
        assert!(events.context(3).unwrap().has_pending());
    }
}

#[test]
fn a_full_region_has_no_place() {
    let mut region = Region::create(0, 64 << 20).unwrap();
    let couple = Couple::of(Process(1), Process(2));
    let mut count = 0;
    while region.place(couple, 22).is_some() {
        count += 1;
    }
    assert!(count >= 2, "{count}");
    assert!(region.place(couple, 16).is_some(), "a smaller one fits");
}
