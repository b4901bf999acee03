//! The life of a connection: registered, paired, used, let go of.

use backend_drv::memory::Mapping;
use rdma_core::control::Query;
use rdma_core::layout::{CONN_MAGIC, ConnHeader, End};
use rdma_core::sync::Ordering;

use crate::client::{Couple, Daemon};

#[test]
fn two_ends_get_one_memory() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    let (first, second) = couple.paired;
    assert_eq!((first.end, second.end), (0, 1));
    assert_eq!(first.conn_id, second.conn_id);
    assert_eq!((first.arena, first.offset), (second.arena, second.offset));
    let memory = Mapping::of_sealed(&couple.arena, first.arena_bytes as usize).unwrap();
    let header: &ConnHeader = memory.get(first.offset as usize).unwrap();
    assert_eq!(header.magic.load(Ordering::SeqCst), CONN_MAGIC);
    assert_ne!(End::Zero, End::One);
    println!("{:#}", daemon.report(Query::STATUS, 0));
    println!("{:#}", daemon.report(Query::TOTALS, 0));
    println!("{:#}", daemon.report(Query::LIMITS, 0));
}
