//! The control protocol's parser.

use rdma_core::control::{MESSAGE_MAX, parse};

/// Parses `data` (after one byte that says how many descriptors came along). What parses survives
/// being written and parsed again.
pub fn control(data: &[u8]) {
    let Some((&fds, bytes)) = data.split_first() else {
        return;
    };
    match parse(bytes, usize::from(fds)) {
        Ok(message) => {
            let mut buffer = vec![0; MESSAGE_MAX];
            let length = message
                .emit(&mut buffer)
                .expect("what fitted once fits again");
            assert_eq!(length, bytes.len());
            assert_eq!(parse(&buffer[..length], usize::from(fds)), Ok(message));
            assert_eq!(message.emit(&mut buffer[..length - 1]), None);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
