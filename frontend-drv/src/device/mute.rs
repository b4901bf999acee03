//! A device whose interrupts are not used.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Device;

/// Another device, but nobody can interrupt us.
#[derive(Debug)]
pub(super) struct Mute(pub(super) Box<dyn Device>);

impl Device for Mute {
    fn memory(&self) -> &Arc<OwnedFd> {
        self.0.memory()
    }

    fn memory_start(&self) -> u64 {
        self.0.memory_start()
    }

    fn front(&self) -> Option<&Arc<OwnedFd>> {
        self.0.front()
    }

    fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes()
    }

    fn id(&self) -> u16 {
        self.0.id()
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn register(&self) -> Option<&Arc<OwnedFd>> {
        self.0.register()
    }

    fn ring(&self, target: u16, vector: u16) {
        self.0.ring(target, vector);
    }

    fn bind(&self, _vector: u16, _bell: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn keep(&self) -> Vec<(String, BorrowedFd<'_>)> {
        self.0.keep()
    }

    fn is_present(&self) -> bool {
        self.0.is_present()
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.0.news()
    }
}
