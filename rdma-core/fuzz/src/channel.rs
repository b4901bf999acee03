//! The channel between a guest and its host: its parsers, and its ring under a writer that writes what it likes.

use rdma_core::channel::{
    CONTROL_AREA_BYTES, ControlRing, Direction, Down, MESSAGE_BYTES, Up, control_offset,
};
use rdma_core::layout::ProducerWords;
use rdma_core::mem::HeapRegion;
use rdma_core::sync::Ordering;

/// The words of the writer stand directly before the data, which begin with the second page.
const WORDS: usize = 4096 - size_of::<ProducerWords>();

/// Parses `data` as a message each way: what parses survives being written and parsed again. Then reads a ring whose
/// words are taken from `data`, until that ends or is found out.
pub fn channel(data: &[u8]) {
    let mut bytes = [0; MESSAGE_BYTES];
    if let Ok(message) = Up::parse(data) {
        let length = message.emit(&mut bytes);
        assert_eq!(Up::parse(&bytes[..length]), Ok(message));
    }
    if let Ok(message) = Down::parse(data) {
        let length = message.emit(&mut bytes);
        assert_eq!(Down::parse(&bytes[..length]), Ok(message));
    }
    let Some((words, steps)) = data.split_at_checked(24) else {
        return;
    };
    let heap = HeapRegion::new(4096 + CONTROL_AREA_BYTES);
    let region = heap.region();
    let at = control_offset(1).expect("member 1 has one");
    let written: &ProducerWords = region.get(at + WORDS).expect("it fits");
    let mut ring = ControlRing::new(&region, 1, Direction::Down).expect("it fits");
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    written.tail.store(number(&words[..8]), Ordering::SeqCst);
    written.base.store(number(&words[8..16]), Ordering::SeqCst);
    written.reserved.store(
        u32::from_le_bytes([words[16], words[17], 0, 0]),
        Ordering::SeqCst,
    );
    for step in steps.chunks(2).take(64) {
        // Whoever writes may do so at any moment.
        let more = u64::from(step[0]);
        written.tail.fetch_add(more, Ordering::SeqCst);
        if step.len() > 1 && step[1] == 0 {
            written.reserved.fetch_add(1, Ordering::SeqCst);
        }
        match ring.next(&mut bytes) {
            Ok(Some(length)) => assert!(length <= MESSAGE_BYTES),
            Ok(None) => {}
            Err(fault) => assert!(!fault.to_string().is_empty()),
        }
    }
}
