//! The ring: a list of operations, some of them hostile.

use super::model::{CAPACITY, Model, Operation};

/// Most operations of one run.
const OPERATIONS_MAX: usize = 128;

/// Reads `data` as operations and runs them.
pub fn ring(mut data: &[u8]) {
    let mut model = Model::new();
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = take_operation(&mut data) else {
            return;
        };
        model.apply(operation);
    }
}

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*taken)
}

/// A length: an interesting one, or any.
fn take_length(data: &mut &[u8]) -> Option<usize> {
    const LENGTHS: [usize; 12] = [
        0,
        1,
        31,
        32,
        33,
        63,
        64,
        65,
        CAPACITY / 2,
        CAPACITY - 1,
        CAPACITY,
        CAPACITY + 1,
    ];
    let [kind] = take(data)?;
    match LENGTHS.get(usize::from(kind)) {
        Some(length) => Some(*length),
        None => Some(usize::from(u16::from_le_bytes(take(data)?))),
    }
}

fn take_operation(data: &mut &[u8]) -> Option<Operation> {
    let [kind] = take(data)?;
    Some(match kind % 16 {
        0 | 1 => Operation::Write(take_length(data)?),
        2 => Operation::Fill(take_length(data)?),
        3 | 4 => Operation::Publish,
        5 => Operation::RefreshProducer,
        6 => Operation::Hint,
        7 | 8 => Operation::Read(take_length(data)?),
        9 => Operation::Peek(take_length(data)?, take_length(data)?),
        10 => Operation::Discard(take_length(data)?),
        11 => Operation::RefreshConsumer,
        12 | 13 => Operation::Release,
        14 => Operation::Poke(take::<1>(data)?[0], u64::from_le_bytes(take(data)?)),
        _ => Operation::Nudge(take::<1>(data)?[0], i32::from_le_bytes(take(data)?)),
    })
}
