//! What tools are told of virtual machines.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::Daemon;
use crate::vm::VmId;

/// Between two accounts, while things change.
const EVERY: Duration = Duration::from_millis(20);

/// When an account is due.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Telling {
    due: Option<Instant>,
    /// Changes that were noted.
    noted: u64,
}

impl Telling {
    /// Something has changed.
    pub(super) fn note(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + EVERY);
    }

    /// So often has something changed.
    fn note_all(&mut self, changes: u64) {
        if self.noted != changes {
            self.noted = changes;
            self.note();
        }
    }

    /// When to look at the clock again.
    pub(in crate::daemon) const fn next(&self) -> Option<Instant> {
        self.due
    }
}

impl Daemon {
    /// What is due by the clock.
    pub(in crate::daemon) fn tick_vms(&mut self, now: Instant) {
        if self.vms.ghosts.is_due(now) {
            self.look_after_ghosts(now);
        }
        if self.telling.due.is_some_and(|due| due <= now) {
            self.telling.due = None;
            self.tell_vms();
        }
    }

    /// Memory and connections change by what guests say, and also by what workers, the relay and the broker do.
    pub(in crate::daemon) fn note_vms(&mut self) {
        self.telling.note_all(self.vms.changes());
    }

    pub(super) fn tell_vms(&self) {
        let (direct, relayed) = self.vms.connections.count();
        let machines: Vec<_> = self
            .vms
            .vms
            .iter()
            .enumerate()
            .map(|(index, vm)| {
                let seat = vm.seat.as_ref();
                let region = self.vms.tenancies.get(vm.tenancy);
                json!({
                    "name": vm.config.name,
                    "tenant": vm.config.tenant,
                    "member": seat.map(|seat| seat.member),
                    "served": seat.is_some_and(|seat| seat.welcome.is_some()),
                    "programs": seat.map_or(0, |seat| seat.programs.len()),
                    "connections": self.vms.connections.of_vm(VmId(index)).len(),
                    "offences": seat.map_or(0, |seat| seat.offences),
                    "region_bytes": region.map(|found| found.region.bytes()),
                    "region_free": region.map(|found| found.region.free()),
                })
            })
            .collect();
        let all = json!({ "direct": direct, "relayed": relayed, "machines": machines });
        *self
            .ledger
            .vms
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = all;
    }
}
