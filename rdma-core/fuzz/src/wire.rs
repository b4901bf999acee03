//! The parsers of the frames between hosts.

use rdma_core::wire::{Announce, HEADER_BYTES, Header, Hello, Kind, Operations};

/// Parses `data` as a frame. What parses survives being written and parsed again.
pub fn wire(data: &[u8]) {
    let (header, body) = match Header::parse(data) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let again = header.emit();
    assert_eq!(Header::parse(&again), Ok((header, &[][..])));
    match header.kind {
        Kind::Hello => {
            if let Ok((hello, _)) = Hello::parse(body) {
                let frame = hello.emit();
                assert_eq!(Hello::parse(&frame[HEADER_BYTES..]), Ok((hello, [0; 16])));
            }
        }
        Kind::Announce => {
            if let Ok(told) = Announce::parse(body) {
                let mut frame = Vec::new();
                Announce::emit(told.backend, told.epoch, told.addresses.iter(), &mut frame);
                let read = Announce::parse(&frame[HEADER_BYTES..]).expect("as it was written");
                assert!(read.addresses.iter().eq(told.addresses.iter()));
            }
        }
        Kind::Data => {
            let mut written = Vec::new();
            for operation in Operations::new(body).flatten() {
                operation.emit(&mut written);
            }
            let mut again = Vec::new();
            for operation in Operations::new(&written) {
                operation.expect("as it was written").emit(&mut again);
            }
            assert_eq!(written, again);
        }
        Kind::Reset => {}
    }
}
