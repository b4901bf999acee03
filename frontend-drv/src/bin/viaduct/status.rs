//! `viaduct status`: what the daemon knows, as tables or as its own JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use rdma_core::control::Query;

use crate::columns::{Columns, Side};
use crate::daemon::Daemon;
use crate::report::{Connection, DaemonInfo, Machine, Process, Status, Survivor};
use crate::{output, units};

/// Show the daemon's processes and connections.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print what the daemon says, as JSON
    #[arg(long)]
    json: bool,
    /// The daemon's socket [default: VIADUCT_SOCKET, the system's daemon, or this user's embedded one]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode> {
    let daemon = Daemon::find(args.socket.as_deref())?;
    let socket = daemon.socket.display();
    let text = daemon.connection.ask(Query::STATUS, 0);
    let text = text.with_context(|| format!("asking the daemon at {socket}"))?;
    let status =
        Status::parse(&text).with_context(|| format!("the daemon at {socket} sends no status"))?;
    if args.json {
        output::print(&format!("{}\n", text.trim_end()))?;
    } else {
        output::print(&tables(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line about the daemon.
pub(crate) fn headline(daemon: &DaemonInfo, connections: usize) -> String {
    format!(
        "viaductd {}, pid {}, up {}: {}, {} and {} ends",
        daemon.version,
        daemon.pid,
        units::span(daemon.uptime),
        units::counted(daemon.clients, "client"),
        units::counted(daemon.pairs, "pair"),
        connections
    )
}

/// Names a connection's program: command, then pid.
pub(crate) fn program_of(connection: &Connection, processes: &[Process]) -> String {
    let process = processes.iter().find(|p| p.process == connection.process);
    let command = process.map_or("?", |process| process.command.as_str());
    let pid = match connection.pid {
        0 => process.map_or(0, |process| process.pid),
        pid => pid,
    };
    format!("{command} {pid}")
}

fn tables(status: &Status) -> String {
    let mut lines = vec![headline(&status.daemon, status.connections.len())];
    if !status.connections.is_empty() {
        lines.push(String::new());
        lines.extend(connections(status));
    }
    if !status.processes.is_empty() {
        lines.push(String::new());
        lines.extend(processes(&status.processes));
    }
    if !status.survivors.is_empty() {
        lines.push(String::new());
        lines.extend(survivors(&status.survivors));
    }
    if !status.machines.is_empty() {
        lines.push(String::new());
        lines.extend(machines(&status.machines));
    }
    if status.is_cut {
        lines.push(String::new());
        lines.push("There are more connections than the daemon lists.".to_owned());
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// Of these the daemon knows no programs and no bytes.
fn survivors(survivors: &[Survivor]) -> Vec<String> {
    let mut table = Columns::new(&[
        ("TAKEN OVER", Side::Right),
        ("OWN ADDRESS", Side::Left),
        ("FAR ADDRESS", Side::Left),
        ("UID", Side::Right),
    ]);
    for survivor in survivors {
        table.row(vec![
            survivor.connection.to_string(),
            survivor.own.clone(),
            survivor.far.clone(),
            survivor.uid.to_string(),
        ]);
    }
    table.lines()
}

fn connections(status: &Status) -> Vec<String> {
    let mut table = Columns::new(&[
        ("PROGRAM", Side::Left),
        ("OWN ADDRESS", Side::Left),
        ("FAR ADDRESS", Side::Left),
        ("STAGE", Side::Left),
        ("TX/RX", Side::Left),
        ("REASON", Side::Left),
        ("RING OUT", Side::Right),
        ("RING IN", Side::Right),
        ("TCP OUT", Side::Right),
        ("TCP IN", Side::Right),
        ("WAKE-UPS", Side::Right),
        ("SLEEPS", Side::Right),
    ]);
    let mut sorted: Vec<&Connection> = status.connections.iter().collect();
    sorted.sort_by_key(|c| (c.process, c.slot));
    for connection in sorted {
        table.row(vec![
            program_of(connection, &status.processes),
            connection.own.clone(),
            connection.far.clone(),
            connection.stage.clone(),
            format!("{}/{}", connection.sending, connection.receiving),
            or_dash(&connection.reason),
            units::bytes(connection.ring_tx),
            units::bytes(connection.ring_rx),
            units::bytes(connection.tcp_tx),
            units::bytes(connection.tcp_rx),
            connection.wakeups.to_string(),
            connection.sleeps.to_string(),
        ]);
    }
    table.lines()
}

fn processes(processes: &[Process]) -> Vec<String> {
    let mut table = Columns::new(&[
        ("PROCESS", Side::Right),
        ("PID", Side::Right),
        ("UID", Side::Right),
        ("COMMAND", Side::Left),
        ("UPGRADED", Side::Right),
        ("DECLINED", Side::Right),
        ("RING OUT", Side::Right),
        ("RING IN", Side::Right),
        ("TCP OUT", Side::Right),
        ("TCP IN", Side::Right),
        ("WAKE-UPS", Side::Right),
        ("SLEEPS", Side::Right),
        ("REASONS", Side::Left),
    ]);
    for process in processes {
        let totals = &process.totals;
        table.row(vec![
            process.process.to_string(),
            process.pid.to_string(),
            process.uid.to_string(),
            process.command.clone(),
            totals.upgraded.to_string(),
            totals.declined.to_string(),
            units::bytes(totals.ring_tx_bytes),
            units::bytes(totals.ring_rx_bytes),
            units::bytes(totals.tcp_tx_bytes),
            units::bytes(totals.tcp_rx_bytes),
            totals.wakeups_sent.to_string(),
            totals.sleeps.to_string(),
            or_dash(&totals.reasons_text()),
        ]);
    }
    table.lines()
}

fn machines(machines: &[Machine]) -> Vec<String> {
    let mut table = Columns::new(&[
        ("MACHINE", Side::Left),
        ("TENANT", Side::Left),
        ("STATE", Side::Left),
        ("PROGRAMS", Side::Right),
        ("CONNECTIONS", Side::Right),
        ("MEMORY FREE", Side::Right),
        ("OF", Side::Right),
        ("OFFENCES", Side::Right),
    ]);
    for machine in machines {
        table.row(vec![
            machine.name.clone(),
            or_dash(&machine.tenant),
            machine.state.to_owned(),
            machine.programs.to_string(),
            machine.connections.to_string(),
            units::bytes(machine.free),
            units::bytes(machine.bytes),
            machine.offences.to_string(),
        ]);
    }
    table.lines()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_what_there_is() {
        let status = Status::parse(
            r#"{"daemon": {"version": "0.1.0", "pid": 9, "clients": 1, "pairs": 0},
                "processes": [{"process": 1, "pid": 5, "command": "netperf",
                  "counters": {"declined": 1}, "reasons": {"young": 1}}],
                "connections": [{"process": 1, "slot": 2, "own": "10.0.0.1:5", "far": "10.0.0.2:6",
                  "stage": "plain", "tx_state": "kernel", "rx_state": "done", "reason": "young",
                  "tcp_tx": 2048}]}"#,
        )
        .unwrap();
        let text = tables(&status);
        assert!(text.starts_with("viaductd 0.1.0, pid 9, up 0 s: 1 client, 0 pairs and 1 ends\n"));
        assert!(text.contains("netperf 5"), "{text}");
        assert!(text.contains("tcp/ended"), "{text}");
        assert!(text.contains("2.0 KiB"), "{text}");
        assert!(text.contains("young 1"), "{text}");
    }

    #[test]
    fn connections_of_an_earlier_daemon_are_shown() {
        let status = Status::parse(
            r#"{"daemon": {}, "survivors": [
                {"conn_id": 17, "own": "10.0.0.1:5", "far": "10.0.0.2:6", "uid": 1000}]}"#,
        )
        .unwrap();
        let text = tables(&status);
        let last = text.lines().last().unwrap();
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(words, ["17", "10.0.0.1:5", "10.0.0.2:6", "1000"], "{text}");
    }

    #[test]
    fn machines_are_shown() {
        let status = Status::parse(
            r#"{"daemon": {}, "vms": {"direct": 1, "relayed": 0, "machines": [
                {"name": "db", "tenant": "blue", "member": 1, "served": true, "programs": 2, "connections": 1,
                 "offences": 0, "region_bytes": 1073741824, "region_free": 536870912},
                {"name": "web", "tenant": null, "member": null, "served": false}]}}"#,
        )
        .unwrap();
        let text = tables(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[3].contains("db") && lines[3].contains("served"),
            "{text}"
        );
        assert!(
            lines[3].contains("512") && lines[3].contains("GiB"),
            "{text}"
        );
        assert!(
            lines[4].contains("web") && lines[4].contains("absent"),
            "{text}"
        );
    }

    #[test]
    fn an_idle_daemon_is_one_line() {
        let text = tables(&Status::default());
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
