//! What the daemon's messages do.

use core::sync::atomic::Ordering;

use frontend_drv::client::Fds;
use frontend_drv::descriptor::lift;
use frontend_drv::memory;
use rdma_core::Reason;
use rdma_core::control::{Message, Paired, SlotRef};
use rdma_core::event::EVENT_BYTES;
use rdma_core::layout::{ConnView, End, conn_bytes};
use rdma_core::mem::Region;
use rdma_core::slot::{Slot, Stage};

use super::tables::{self, Session};
use super::{arena, owned};
use crate::conn::{Conn, conn};
use crate::contexts;
use crate::forsaken;
use crate::registers;
use crate::trace::{self, Level};
use crate::wait;

/// Works one message off.
pub(super) fn handle(session: &'static Session, message: &Message<'_>, mut fds: Fds) {
    match *message {
        Message::Welcome(body) => {
            if let Some(fd) = owned(&mut fds)
                && let Ok(region) = memory::map(&fd, body.at, EVENT_BYTES)
            {
                wait::set_machine(body.machine);
                session.events.set_from(&region, &fd);
                session.process.store(body.process, Ordering::Release);
                if body.machine != 0 {
                    forsaken::note_guest(session);
                }
                // Nobody is paired yet: what exists now reaches every later peer in time.
                for number in 0..contexts::made() {
                    mark_known(session, number);
                }
            }
        }
        Message::Peer(body) => {
            if let Some(fd) = owned(&mut fds) {
                tables::add_peer(session.index(), &body, &fd);
            }
        }
        Message::PeerContext(body) => {
            if let Some(fd) = owned(&mut fds)
                && let Some((_, peer)) = tables::peer_of_process(session.index(), body.process)
                && let Ok(fd) = lift(fd)
            {
                peer.set_bell(body.context, fd);
            }
        }
        Message::PeerRegister(body) => {
            if let Some(fd) = owned(&mut fds)
                && let Some((_, peer)) = tables::peer_of_process(session.index(), body.process)
                && registers::map_once(session.index(), &fd)
            {
                peer.set_register(body.context, body.value);
            }
        }
        Message::PeerGone(body) => {
            if let Some((_, peer)) = tables::peer_of_process(session.index(), body.process) {
                peer.leave();
            }
            tables::abandon_arenas(session.index(), body.process, super::monotonic_ns());
        }
        Message::ContextKnown(body) => mark_known(session, body.context),
        Message::Paired(body) => {
            if let Err(reason) = attach(session, &body, &mut fds) {
                refuse(body.slot, body.generation, reason);
                let gone = SlotRef {
                    slot: body.slot,
                    generation: body.generation,
                };
                session.send(&Message::Unregister(gone), &[]);
            }
        }
        Message::Refused(body) => {
            let reason = Reason::from_code(body.reason).unwrap_or(Reason::NoDaemon);
            refuse(body.slot, body.generation, reason);
        }
        Message::Failure(..) => session.end(),
        // Not for programs.
        Message::Hello(_)
        | Message::Context(_)
        | Message::Register(_)
        | Message::Unregister(_)
        | Message::Kick(_)
        | Message::Query(_)
        | Message::Retracted(_)
        | Message::Revoke(_)
        | Message::Report(..) => {}
    }
}

fn mark_known(session: &Session, number: u32) {
    if let Some(context) = u16::try_from(number).ok().and_then(contexts::context) {
        context.known.store(session.index() + 1, Ordering::Release);
    }
}

/// The connection that a message speaks of, if it is still the same.
fn find(slot: u32, generation: u32) -> Option<(&'static Conn, &'static Slot)> {
    let slot_words = arena()?.slot(slot)?;
    if slot_words.meta.generation.load(Ordering::Acquire) != generation {
        return None;
    }
    Some((conn(tables::conn_in_slot(slot)?), slot_words))
}

fn refuse(slot: u32, generation: u32, reason: Reason) {
    if let Some((conn, _)) = find(slot, generation) {
        crate::upgrade::decline(conn, reason);
    }
}

fn attach(session: &'static Session, paired: &Paired, fds: &mut Fds) -> Result<(), Reason> {
    let (arena, region) =
        tables::use_arena(session.index(), paired, owned(fds)).ok_or(Reason::MapLimit)?;
    let attached = attach_in(session, paired, arena, &region);
    if attached.is_err() {
        tables::release_arena(arena);
    }
    attached
}

fn attach_in(
    session: &'static Session,
    paired: &Paired,
    index: u32,
    region: &Region,
) -> Result<(), Reason> {
    let Some((conn, slot)) = find(paired.slot, paired.generation) else {
        return Err(Reason::NotEstablished);
    };
    if slot.stage() != Stage::Registered {
        // Withdrawn while the answer was on its way.
        return Err(Reason::NotEstablished);
    }
    if !crate::holders::is_alone(conn) {
        return Err(Reason::Forked);
    }
    let (peer, _) =
        tables::peer_of_process(session.index(), paired.peer).ok_or(Reason::SlotLimit)?;
    let end = End::try_from(paired.end).map_err(|_| Reason::RingCorrupt)?;
    let bytes = conn_bytes(1 << paired.ring_log2);
    let offset = usize::try_from(paired.offset).map_err(|_| Reason::MapLimit)?;
    let part = region.part(offset, bytes).ok_or(Reason::RingCorrupt)?;
    let view = ConnView::new(&part, end, paired.ring_log2).ok_or(Reason::RingCorrupt)?;
    slot.meta.conn_id.store(paired.conn_id, Ordering::Relaxed);
    conn.attach(view, (peer, paired.relayed != 0), session.index(), index);
    slot.set_stage(Stage::Attached);
    trace::event(Level::Info, conn, "paired", "");
    if let Some(arena) = arena() {
        arena
            .header()
            .counters
            .upgraded
            .fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
