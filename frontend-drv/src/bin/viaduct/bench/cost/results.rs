//! What was measured, in the form in which `--json` keeps it, and what follows from it.

use serde::Serialize;

use super::calls::{Calls, Connects};
use super::census::Census;
use super::connections::Held;
use super::idle::IdlePair;
use crate::bench::machine::Machine;

/// Everything of one `viaduct bench cost`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Results {
    /// Grows by one when the meaning of a field changes.
    pub(super) schema: u32,
    pub(super) machine: Machine,
    pub(super) connections: Vec<Held>,
    pub(super) calls: Vec<Calls>,
    pub(super) connects: Option<Connects>,
    pub(super) idle: Vec<IdlePair>,
    /// Measurements that failed, one line each.
    pub(super) problems: Vec<String>,
}

impl Results {
    pub(super) fn new() -> Self {
        Self {
            schema: SCHEMA,
            machine: Machine::here(),
            connections: Vec::new(),
            calls: Vec::new(),
            connects: None,
            idle: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// Memory that is there because of Viaduct, in bytes; what a page costs is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// Anonymous pages of both programs and the daemon, and what else they alone map.
    pub(super) private: i64,
    /// Pages of memory files.
    pub(super) shared: i64,
    /// Page tables of all three.
    pub(super) page_tables: i64,
}

impl Added {
    /// The difference that Viaduct makes to two programs, and the daemon's growth.
    pub(super) fn of(held: &Held) -> Self {
        let plain = [&held.plain.server, &held.plain.client, &held.daemon_before];
        let viaduct = [&held.viaduct.server, &held.viaduct.client, &held.daemon];
        let grown = |value: fn(&Census) -> u64| -> i64 {
            let each = viaduct.iter().zip(plain);
            each.map(|(with, without)| difference(value(with), value(without)))
                .sum()
        };
        // Of a memory file only pages that somebody uses are mapped, so the file itself is asked.
        let shared = difference(held.memory_files.values().sum(), 0);
        Self {
            private: grown(|census| census.anonymous_bytes),
            shared,
            page_tables: grown(|census| census.page_table_bytes),
        }
    }

    pub(super) fn sum(self) -> i64 {
        self.private + self.shared + self.page_tables
    }

    /// What each connection of `held` beyond those of `fewer` adds: memory files, private memory,
    /// page tables. None if there are no more.
    pub(super) fn per_connection(held: &Held, fewer: &Held) -> Option<[f64; 3]> {
        let more = i64::from(held.connections) - i64::from(fewer.connections);
        let (now, then) = (Self::of(held), Self::of(fewer));
        let each = [
            now.shared - then.shared,
            now.private - then.private,
            now.page_tables - then.page_tables,
        ];
        (more > 0).then(|| each.map(|bytes| bytes as f64 / more as f64))
    }
}

/// `with - without`.
pub(super) fn difference(with: u64, without: u64) -> i64 {
    with.cast_signed().saturating_sub(without.cast_signed())
}

const SCHEMA: u32 = 1;

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::cost::census::Activity;
    use crate::bench::cost::connections::{Active, AfterClose, Ends, Idle, Upgrade};

    fn census(anonymous: u64, page_tables: u64) -> Census {
        Census {
            anonymous_bytes: anonymous,
            page_table_bytes: page_tables,
            ..Census::default()
        }
    }

    pub(in crate::bench::cost) fn held(connections: u32, each: u64) -> Held {
        let grown = u64::from(connections) * each;
        let ends = |census: Census| Ends {
            server: census.clone(),
            client: census,
        };
        let files = BTreeMap::from([("viaduct-connections".to_owned(), grown)]);
        Held {
            connections,
            plain: ends(census(1000, 10)),
            viaduct: ends(census(1500, 30)),
            upgrade: Upgrade::default(),
            active: Active::default(),
            daemon_before: census(100, 1),
            daemon: census(300, 2),
            memory_files: files.clone(),
            idle: Idle {
                seconds: 1,
                server: Activity::default(),
                client: Activity::default(),
                daemon: Activity::default(),
            },
            after_close: AfterClose {
                server: Census::default(),
                client: Census::default(),
                daemon: Census::default(),
                memory_files: files,
                pairs: 0,
            },
            daemon_complaints: Vec::new(),
        }
    }

    #[test]
    fn what_was_there_without_viaduct_does_not_count() {
        let added = Added::of(&held(10, 7));
        let expected = Added {
            private: 500 + 500 + 200,
            shared: 70,
            page_tables: 20 + 20 + 1,
        };
        assert_eq!(added, expected);
    }

    #[test]
    fn a_connection_costs_what_more_of_them_add() {
        let (few, many) = (held(1, 100), held(11, 100));
        let each = Added::per_connection(&many, &few);
        assert_eq!(each, Some([100.0, 0.0, 0.0]));
        assert_eq!(Added::per_connection(&few, &few), None);
    }
}
