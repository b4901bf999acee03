//! The ring against a queue, with a correct far end and with a hostile one.

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../fuzz/src/model.rs"]
mod model;

use model::{CAPACITY, Model, Operation};

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop_oneof![Just(0), Just(1), 31..=33usize, 63..=65usize],
        2 => 0..5_000usize,
        1 => CAPACITY - 1..=CAPACITY + 1,
        1 => 0..=CAPACITY,
    ]
}

/// What the producer does, what the consumer does, and in which order.
fn correct() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => length().prop_map(Operation::Write),
        1 => length().prop_map(Operation::Fill),
        4 => Just(Operation::Publish),
        1 => Just(Operation::RefreshProducer),
        2 => Just(Operation::Hint),
        4 => length().prop_map(Operation::Read),
        1 => (length(), length()).prop_map(|(skip, len)| Operation::Peek(skip, len)),
        1 => length().prop_map(Operation::Discard),
        1 => Just(Operation::RefreshConsumer),
        4 => Just(Operation::Release),
    ]
}

fn hostile() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => correct(),
        1 => (any::<u8>(), any::<u64>()).prop_map(|(word, value)| Operation::Poke(word, value)),
        1 => (any::<u8>(), -70_000..70_000).prop_map(|(word, by)| Operation::Nudge(word, by)),
    ]
}

proptest! {
    #[test]
    fn a_ring_is_a_queue(operations in vec(correct(), 0..200)) {
        let mut model = Model::new();
        for operation in operations {
            model.apply(operation);
        }
    }

    #[test]
    fn a_lying_far_end_does_no_harm(operations in vec(hostile(), 0..200)) {
        let mut model = Model::new();
        for operation in operations {
            model.apply(operation);
        }
    }

    #[test]
    fn garbage_in_every_word_does_no_harm(
        before in vec(correct(), 0..20),
        garbage in vec(prop_oneof![any::<u64>(), 0..200_000u64], 1..64),
        after in vec(correct(), 0..60),
    ) {
        let mut model = Model::new();
        for operation in before {
            model.apply(operation);
        }
        for (word, value) in (0..=u8::MAX).zip(garbage.iter().cycle()) {
            model.apply(Operation::Poke(word, *value));
        }
        for operation in after {
            model.apply(operation);
        }
    }
}

/// The sizes at the edges, every one after every other, at every state of the ring between.
#[test]
fn sizes_at_the_edges_follow_each_other() {
    let sizes = [
        0,
        1,
        31,
        32,
        33,
        63,
        64,
        65,
        CAPACITY - 1,
        CAPACITY,
        CAPACITY + 1,
    ];
    for first in sizes {
        for second in sizes {
            let mut model = Model::new();
            for (write, read) in [(first, second), (second, first), (first, first)] {
                model.apply(Operation::Write(write));
                model.apply(Operation::Publish);
                model.apply(Operation::Peek(1, read));
                model.apply(Operation::Read(read));
                model.apply(Operation::Release);
                model.apply(Operation::Hint);
            }
        }
    }
}
