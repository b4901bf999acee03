//! The results for people: aligned text for a terminal, or Markdown.

use std::fmt::Write;

use super::calls::{Calls, Connects};
use super::census::{Activity, Census};
use super::connections::Held;
use super::idle::IdlePair;
use super::results::{Added, Results, difference};
use crate::bench::table::{figure, times};
use crate::units;

/// All tables with what one must know to read them.
pub(super) fn text(results: &Results, markdown: bool) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "{}, {} cores, Linux {}, {}.\n",
        machine.cpu_model, machine.cores, machine.kernel, machine.date
    );
    let mut tables = Vec::new();
    if !results.connections.is_empty() {
        tables.push(upgraded(&results.connections));
        tables.push(active(&results.connections));
        tables.push(memory(&results.connections));
        tables.push(numbers(&results.connections));
        tables.push(closed(&results.connections));
    }
    if !results.calls.is_empty() {
        tables.push(calls(&results.calls));
    }
    tables.extend(results.connects.as_ref().map(connects));
    if !results.idle.is_empty() {
        tables.push(idle(&results.idle));
    }
    for table in tables {
        table.write(&mut text, markdown);
    }
    for problem in &results.problems {
        let _ = writeln!(text, "\nFAILED {problem}");
    }
    text
}

/// Rows under a heading; the first column is text, the others are figures.
#[derive(Debug)]
struct Table {
    title: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    fn new(title: &str, heads: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            heads: heads.iter().map(|&head| head.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn row(&mut self, name: impl Into<String>, figures: impl IntoIterator<Item = String>) {
        let name = std::iter::once(name.into());
        self.rows.push(name.chain(figures).collect());
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn write(&self, text: &mut String, markdown: bool) {
        if markdown {
            let rule = vec!["---:"; self.heads.len().saturating_sub(1)].join("|");
            let _ = writeln!(text, "\n**{}**\n", self.title);
            let _ = writeln!(text, "| {} |\n|---|{rule}|", self.heads.join(" | "));
            for row in &self.rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
            text.push('\n');
        } else {
            let _ = writeln!(text, "\n{}", self.title);
            self.align(text);
        }
        for note in &self.notes {
            let _ = writeln!(text, "{}{note}", if markdown { "- " } else { "" });
        }
    }

    fn align(&self, text: &mut String) {
        let lines = || std::iter::once(&self.heads).chain(&self.rows);
        let width = |column: usize| {
            let cells = lines().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        for line in lines() {
            let mut out = String::new();
            for (column, (cell, wide)) in line.iter().zip(&widths).enumerate() {
                let _ = match column {
                    0 => write!(out, "{cell:<wide$}"),
                    _ => write!(out, "  {cell:>wide$}"),
                };
            }
            let _ = writeln!(text, "{}", out.trim_end());
        }
    }
}

fn active(all: &[Held]) -> Table {
    let title =
        "A byte to and fro on at most ten connections, all of them in one epoll set at each end";
    let mut table = by_number(title, all);
    let mut row = |name: &str, value: &dyn Fn(&Held) -> String| {
        table.row(name, all.iter().map(value));
    };
    row("of them active", &|held| {
        whole(u64::from(held.active.connections))
    });
    row("kernel TCP (us for each)", &|held| {
        format!("{:.2}", held.active.plain_ns / 1000.0)
    });
    row("Viaduct (us for each)", &|held| {
        format!("{:.2}", held.active.viaduct_ns / 1000.0)
    });
    // With one active connection at each end all wait for each other: nothing to compare with.
    let least = all
        .iter()
        .filter(|held| held.active.connections > 1)
        .min_by_key(|held| held.connections);
    row(
        "Viaduct, against as few as are active",
        &|held| match least {
            Some(least) if held.active.connections == least.active.connections => {
                format!("{:.2}x", held.active.viaduct_ns / least.active.viaduct_ns)
            }
            _ => "-".to_owned(),
        },
    );
    table.note("Medians of nine; the cost of an event must not grow with what is registered.");
    table
}

/// A table with a column for each number of connections.
fn by_number(title: &str, all: &[Held]) -> Table {
    let mut table = Table::new(title, &["connections"]);
    let numbers = all.iter().map(|held| whole(u64::from(held.connections)));
    table.heads.extend(numbers);
    table
}

fn upgraded(all: &[Held]) -> Table {
    let title = "Connections between two programs, moved to rings while bytes go to and fro on all";
    let mut table = by_number(title, all);
    let mut row = |name: &str, value: &dyn Fn(&Held) -> String| {
        table.row(name, all.iter().map(value));
    };
    row("attached at both ends", &|held| {
        whole(held.upgrade.attached)
    });
    row("on rings both ways", &|held| whole(held.upgrade.on_rings));
    row("all attached after (s, from first byte)", &|held| {
        let seconds = held.upgrade.seconds;
        seconds.map_or_else(none, |s| format!("{s:.3}"))
    });
    row("upgraded per second", &|held| {
        let seconds = held.upgrade.seconds.filter(|s| *s > 0.0);
        seconds.map_or_else(none, |s| rounded(f64::from(held.connections) / s))
    });
    row("daemon's processor time for each (us)", &|held| {
        let time = held.upgrade.daemon.processor_us;
        let each = time.filter(|_| held.upgrade.attached > 0);
        each.map_or_else(none, |us| whole(us / held.upgrade.attached))
    });
    table.note("The time is that of the programs' own bytes over TCP, too.");
    for held in all {
        let number = whole(u64::from(held.connections));
        let others = held.upgrade.others.iter();
        let others: Vec<_> = others
            .map(|(what, ends)| format!("{ends} {what}"))
            .collect();
        if !others.is_empty() {
            let others = others.join(", ");
            table.note(format!(
                "Of {number}, ends that are not attached: {others}."
            ));
        }
        if let Some(last) = held.daemon_complaints.last() {
            let times = held.daemon_complaints.len();
            table.note(format!(
                "With {number}, lines in the daemon's log: {times}, at last: {last}"
            ));
        }
    }
    table
}

fn memory(all: &[Held]) -> Table {
    let mut table = by_number("Memory that the same connections take while idle", all);
    let mut row = |name: &str, value: &dyn Fn(&Held) -> String| {
        table.row(name, all.iter().map(value));
    };
    for name in ["viaduct-connections", "viaduct-slots", "viaduct-events"] {
        row(&format!("memory files, {name}"), &|held| {
            units::bytes(held.memory_files.get(name).copied().unwrap_or(0))
        });
    }
    row("added: memory files", &|held| {
        signed(Added::of(held).shared)
    });
    row("added: private memory", &|held| {
        signed(Added::of(held).private)
    });
    row("added: page tables", &|held| {
        signed(Added::of(held).page_tables)
    });
    row("added in all", &|held| signed(Added::of(held).sum()));
    let fewest = all.iter().min_by_key(|held| held.connections);
    row("each connection more (bytes)", &|held| {
        let each = fewest.and_then(|fewest| Added::per_connection(held, fewest));
        each.map_or_else(none, |each| rounded(each.iter().sum()))
    });
    row("  files + private + page tables", &|held| {
        let each = fewest.and_then(|fewest| Added::per_connection(held, fewest));
        each.map_or_else(none, |each| each.map(rounded).join(" + "))
    });
    row("server: resident, added", &|held| {
        resident(&held.viaduct.server, &held.plain.server)
    });
    row("client: resident, added", &|held| {
        resident(&held.viaduct.client, &held.plain.client)
    });
    row("daemon: resident, added", &|held| {
        resident(&held.daemon, &held.daemon_before)
    });
    table.note(
        "Added = under Viaduct less plain, for both programs, and the growth of the daemon; a page \
         that several map counts once.",
    );
    table
}

fn numbers(all: &[Held]) -> Table {
    let mut table = by_number("Descriptors, mappings and processor time of the same", all);
    let mut row = |name: &str, value: &dyn Fn(&Held) -> String| {
        table.row(name, all.iter().map(value));
    };
    let each = |held: &Held, value: fn(&Census) -> u64| {
        let (plain, viaduct) = (&held.plain, &held.viaduct);
        let server = difference(value(&viaduct.server), value(&plain.server));
        let client = difference(value(&viaduct.client), value(&plain.client));
        format!("{server} / {client}")
    };
    row("descriptors added: server / client", &|held| {
        each(held, Census::descriptors)
    });
    row("mappings added: server / client", &|held| {
        each(held, |census| census.mappings)
    });
    row("descriptors of the daemon", &|held| {
        whole(held.daemon.descriptors())
    });
    row("mappings of the daemon", &|held| {
        whole(held.daemon.mappings)
    });
    row("idle: processor time, all three (us/s)", &|held| {
        let all = [held.idle.server, held.idle.client, held.idle.daemon];
        let sum: Option<u64> = all.iter().map(|activity| activity.processor_us).sum();
        sum.map_or_else(none, |us| whole(us / u64::from(held.idle.seconds)))
    });
    row("idle: times that one of them woke", &|held| {
        let all = [held.idle.server, held.idle.client, held.idle.daemon];
        whole(all.iter().map(|activity| activity.voluntary_switches).sum())
    });
    table
}

fn closed(all: &[Held]) -> Table {
    let mut table = by_number("The same when all connections are closed again", all);
    let mut row = |name: &str, value: &dyn Fn(&Held) -> String| {
        table.row(name, all.iter().map(value));
    };
    row("connections that the daemon still has", &|held| {
        whole(held.after_close.pairs)
    });
    row("descriptors of the daemon", &|held| {
        whole(held.after_close.daemon.descriptors())
    });
    row("memory files", &|held| {
        units::bytes(held.after_close.memory_files.values().sum())
    });
    row("daemon: resident", &|held| {
        units::bytes(held.after_close.daemon.resident_bytes)
    });
    row("server / client: resident", &|held| {
        let after = &held.after_close;
        let server = units::bytes(after.server.resident_bytes);
        format!("{server} / {}", units::bytes(after.client.resident_bytes))
    });
    row("server / client: page tables", &|held| {
        let after = &held.after_close;
        let server = units::bytes(after.server.page_table_bytes);
        format!("{server} / {}", units::bytes(after.client.page_table_bytes))
    });
    row("server / client: mappings", &|held| {
        let after = &held.after_close;
        format!("{} / {}", after.server.mappings, after.client.mappings)
    });
    table
}

fn calls(all: &[Calls]) -> Table {
    let heads = [
        "call",
        "kernel TCP (ns)",
        "Viaduct (ns)",
        "ratio",
        "by ring",
    ];
    let mut table = Table::new("Time of a call, both ends in one thread", &heads);
    for calls in all {
        for (name, value) in [
            (
                "send",
                (|times| times.send_ns) as fn(&super::peer::calls::CallTimes) -> f64,
            ),
            ("recv", |times| times.recv_ns),
        ] {
            let plain = calls.plain.as_ref().map(value);
            let viaduct = calls.viaduct.as_ref().map(value);
            let ratio = plain.zip(viaduct).filter(|(_, viaduct)| *viaduct > 0.0);
            table.row(
                format!("{name} {} B", calls.bytes),
                [
                    plain.map_or_else(none, figure),
                    viaduct.map_or_else(none, figure),
                    ratio.map_or_else(none, |(plain, viaduct)| times(plain / viaduct)),
                    format!("{:.1} %", calls.ring_share * 100.0),
                ],
            );
        }
    }
    table.note("No other processor is involved and nobody waits; medians of the runs.");
    table.note(
        "Instructions, where the machine counts them: perf stat -e instructions:u viaduct run -- \
         viaduct bench cost-peer calls --bytes 1 --calls 10000000",
    );
    table
}

fn connects(connects: &Connects) -> Table {
    let heads = ["", "kernel TCP", "Viaduct", "ratio"];
    let mut table = Table::new("Connections made and closed, no byte on them", &heads);
    let ratio = connects.plain.zip(connects.viaduct);
    table.row(
        "connect + accept + 2 close, per second",
        [
            connects.plain.map_or_else(none, rounded),
            connects.viaduct.map_or_else(none, rounded),
            ratio.map_or_else(none, |(plain, viaduct)| times(viaduct / plain)),
        ],
    );
    table
}

fn idle(all: &[IdlePair]) -> Table {
    let heads = [
        "pair on rings, idle",
        "seconds",
        "ticks",
        "processor (us)",
        "voluntary switches",
        "involuntary",
    ];
    let mut table = Table::new("Programs that wait for each other", &heads);
    for pair in all {
        let idle = &pair.idle;
        for (who, used) in [
            (format!("server, {}", pair.wait.title()), idle.server),
            ("client".to_owned(), idle.client),
            ("daemon".to_owned(), idle.daemon),
        ] {
            table.row(who, activity(idle.seconds, used));
        }
    }
    table.note("A tick is 10 ms of user and system time.");
    table
}

fn activity(seconds: u32, used: Activity) -> [String; 5] {
    [
        seconds.to_string(),
        used.ticks.to_string(),
        used.processor_us.map_or_else(none, whole),
        used.voluntary_switches.to_string(),
        used.involuntary_switches.to_string(),
    ]
}

fn resident(with: &Census, without: &Census) -> String {
    signed(difference(with.resident_bytes, without.resident_bytes))
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", units::bytes(bytes.unsigned_abs()))
}

/// A count, thousands set apart.
fn whole(number: u64) -> String {
    let text = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast from f64 stops at the ends of the range"
)]
fn rounded(number: f64) -> String {
    let sign = if number <= -0.5 { "-" } else { "" };
    format!("{sign}{}", whole((number.round() as i64).unsigned_abs()))
}

fn none() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cost::results::tests::held;

    fn results() -> Results {
        Results {
            connections: vec![held(1, 100), held(1001, 100)],
            connects: Some(Connects {
                plain: Some(10.0),
                viaduct: None,
            }),
            problems: vec!["calls: too bad".to_owned()],
            ..Results::new()
        }
    }

    #[test]
    fn figures_stand_below_each_other() {
        let text = text(&results(), false);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        let end = |line: &str| line.chars().count();
        assert_eq!(end(line("added in all")), end(line("each connection more")));
        assert!(line("each connection more").ends_with("100"), "{text}");
        assert!(text.ends_with("FAILED calls: too bad\n"), "{text}");
    }

    #[test]
    fn markdown_has_as_many_cells_as_heads() {
        let text = text(&results(), true);
        for table in text.split("**").filter(|part| part.contains("|---|")) {
            let rows = table.lines().filter(|line| line.starts_with('|'));
            let bars: Vec<usize> = rows.map(|line| line.matches('|').count()).collect();
            assert!(bars.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
    }
}
