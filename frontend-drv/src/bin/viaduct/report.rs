//! What the daemon reports, read from its JSON. A field that is missing or of another type reads as
//! zero or empty, so that tool and daemon need not be of one build.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rdma_core::control::CONTROL_VERSION;
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::slot::{RxState, Stage, TxState};
use serde_json::{Map, Value};

/// Answer to a status query.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) daemon: DaemonInfo,
    pub(crate) processes: Vec<Process>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) survivors: Vec<Survivor>,
    pub(crate) machines: Vec<Machine>,
    /// There were more connections than the daemon lists.
    pub(crate) is_cut: bool,
}

/// Version and limits of a daemon.
#[derive(Debug, Default)]
pub(crate) struct DaemonInfo {
    pub(crate) version: String,
    pub(crate) pid: u64,
    pub(crate) uptime: Duration,
    pub(crate) clients: u64,
    pub(crate) pairs: u64,
    /// Control and layout version, where the daemon says them.
    protocol: (Option<u64>, Option<u64>),
    /// Its limits by name, in the order of the names.
    pub(crate) limits: Vec<(String, String)>,
}

/// One program that speaks to the daemon.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) process: u64,
    pub(crate) pid: u64,
    pub(crate) uid: u64,
    pub(crate) command: String,
    pub(crate) totals: Totals,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) process: u64,
    pub(crate) pid: u64,
    pub(crate) slot: u64,
    pub(crate) conn_id: u64,
    pub(crate) own: String,
    pub(crate) far: String,
    pub(crate) stage: String,
    pub(crate) sending: &'static str,
    pub(crate) receiving: &'static str,
    pub(crate) reason: String,
    pub(crate) ring_tx: u64,
    pub(crate) ring_rx: u64,
    pub(crate) tcp_tx: u64,
    pub(crate) tcp_rx: u64,
    pub(crate) wakeups: u64,
    pub(crate) sleeps: u64,
}

/// A relayed connection that a daemon before this one has made.
#[derive(Debug)]
pub(crate) struct Survivor {
    pub(crate) connection: u64,
    pub(crate) own: String,
    pub(crate) far: String,
    pub(crate) uid: u64,
}

impl Survivor {
    fn read(value: &Value) -> Self {
        Self {
            connection: number(value, "conn_id"),
            own: word(value, "own"),
            far: word(value, "far"),
            uid: number(value, "uid"),
        }
    }
}

/// A virtual machine that the daemon serves.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) tenant: String,
    /// What is there of it.
    pub(crate) state: &'static str,
    pub(crate) programs: u64,
    pub(crate) connections: u64,
    /// Messages that made no sense.
    pub(crate) offences: u64,
    pub(crate) free: u64,
    pub(crate) bytes: u64,
}

impl Machine {
    fn read(value: &Value) -> Self {
        let has = |name: &str| value.get(name).is_some_and(|found| !found.is_null());
        Self {
            name: word(value, "name"),
            tenant: word(value, "tenant"),
            state: match (
                has("member"),
                value.get("served") == Some(&Value::Bool(true)),
            ) {
                (_, true) => "served",
                (true, false) => "device",
                (false, false) => "absent",
            },
            programs: number(value, "programs"),
            connections: number(value, "connections"),
            offences: number(value, "offences"),
            free: number(value, "region_free"),
            bytes: number(value, "region_bytes"),
        }
    }
}

/// What a process, or all processes of a session, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) ring_tx_bytes: u64,
    pub(crate) ring_rx_bytes: u64,
    pub(crate) tcp_tx_bytes: u64,
    pub(crate) tcp_rx_bytes: u64,
    pub(crate) upgraded: u64,
    pub(crate) declined: u64,
    pub(crate) wakeups_sent: u64,
    pub(crate) sleeps: u64,
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Programs that were counted, where the daemon says it.
    pub(crate) programs: Option<u64>,
}

impl Status {
    /// # Errors
    /// If the text is not a JSON object.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let object: Map<String, Value> = serde_json::from_str(text)?;
        let list = |name: &str| {
            let items = object.get(name).and_then(Value::as_array);
            items.map(Vec::as_slice).unwrap_or_default()
        };
        let daemon = object.get("daemon").unwrap_or(&Value::Null);
        let mut status = Self {
            daemon: DaemonInfo::read(daemon),
            processes: list("processes").iter().map(Process::read).collect(),
            connections: list("connections").iter().map(Connection::read).collect(),
            survivors: list("survivors").iter().map(Survivor::read).collect(),
            machines: object
                .get("vms")
                .and_then(|vms| vms.get("machines")?.as_array())
                .map(|all| all.iter().map(Machine::read).collect())
                .unwrap_or_default(),
            is_cut: object.get("complete") == Some(&Value::Bool(false)),
        };
        status.count_living();
        Ok(status)
    }

    /// A program adds a connection to its counters when it closes it: adds those that are open.
    fn count_living(&mut self) {
        let at: HashMap<u64, usize> = self.processes.iter().map(|p| p.process).zip(0..).collect();
        for connection in &self.connections {
            let process = at.get(&connection.process).copied();
            if let Some(process) = process.and_then(|at| self.processes.get_mut(at)) {
                process.totals.add(connection);
            }
        }
    }
}

impl DaemonInfo {
    /// # Errors
    /// If the text is not a JSON object.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let object: Map<String, Value> = serde_json::from_str(text)?;
        let object = Value::Object(object);
        Ok(match object.get("daemon") {
            Some(daemon) => Self::read(daemon),
            None => Self::read(&object),
        })
    }

    fn read(value: &Value) -> Self {
        let mut limits = Vec::new();
        flatten("", value.get("limits").unwrap_or(&Value::Null), &mut limits);
        let seconds = value.get("uptime_s").and_then(Value::as_f64).unwrap_or(0.0);
        Self {
            version: word(value, "version"),
            pid: number(value, "pid"),
            uptime: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            clients: number(value, "clients"),
            pairs: number(value, "pairs"),
            protocol: (
                value.get("control_version").and_then(Value::as_u64),
                value.get("layout_version").and_then(Value::as_u64),
            ),
            limits,
        }
    }

    /// What differs, if this daemon cannot serve a library of our version.
    pub(crate) fn mismatch(&self) -> Option<String> {
        let (control, layout) = (u64::from(CONTROL_VERSION), u64::from(LAYOUT_VERSION));
        match self.protocol {
            (Some(theirs), _) if theirs != control => {
                Some(format!("control version {theirs}, ours is {control}"))
            }
            (_, Some(theirs)) if theirs != layout => {
                Some(format!("memory layout {theirs}, ours is {layout}"))
            }
            _ => None,
        }
    }
}

impl Process {
    fn read(value: &Value) -> Self {
        let pid = number(value, "pid");
        Self {
            process: number(value, "process"),
            pid,
            uid: number(value, "uid"),
            command: match word(value, "command") {
                empty if empty.is_empty() => command_of(pid),
                said => said,
            },
            totals: Totals::read(value),
        }
    }
}

impl Connection {
    fn read(value: &Value) -> Self {
        Self {
            process: number(value, "process"),
            pid: number(value, "pid"),
            slot: number(value, "slot"),
            conn_id: number(value, "conn_id"),
            own: address(value, "own"),
            far: address(value, "far"),
            stage: match value.get("stage").and_then(Value::as_u64) {
                Some(code) => {
                    let stage = Stage::from_word(u32::try_from(code).unwrap_or(0));
                    format!("{stage:?}").to_lowercase()
                }
                None => word(value, "stage"),
            },
            sending: state(value.get("tx_state"), |code| {
                format!("{:?}", TxState::from_word(code))
            }),
            receiving: state(value.get("rx_state"), |code| {
                format!("{:?}", RxState::from_word(code))
            }),
            reason: word(value, "reason"),
            ring_tx: number(value, "ring_tx"),
            ring_rx: number(value, "ring_rx"),
            tcp_tx: number(value, "tcp_tx"),
            tcp_rx: number(value, "tcp_rx"),
            wakeups: number(value, "wakeups"),
            sleeps: number(value, "sleeps"),
        }
    }

    /// All bytes of both directions.
    pub(crate) fn bytes(&self) -> u64 {
        [self.ring_tx, self.ring_rx, self.tcp_tx, self.tcp_rx]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl Totals {
    /// Reads the answer to a totals query.
    ///
    /// # Errors
    /// If the text is not a JSON object.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let object: Map<String, Value> = serde_json::from_str(text)?;
        Ok(Self::read(&Value::Object(object)))
    }

    /// The counters stand in `value` itself or in its member `counters` or `totals`; the reasons
    /// beside or in them.
    fn read(value: &Value) -> Self {
        let counters = value.get("counters").or_else(|| value.get("totals"));
        let counters = counters.unwrap_or(value);
        let reasons = value.get("reasons").or_else(|| counters.get("reasons"));
        let reasons = reasons.and_then(Value::as_object).into_iter().flatten();
        Self {
            ring_tx_bytes: number(counters, "ring_tx_bytes"),
            ring_rx_bytes: number(counters, "ring_rx_bytes"),
            tcp_tx_bytes: number(counters, "tcp_tx_bytes"),
            tcp_rx_bytes: number(counters, "tcp_rx_bytes"),
            upgraded: number(counters, "upgraded"),
            declined: number(counters, "declined"),
            wakeups_sent: number(counters, "wakeups_sent"),
            sleeps: number(counters, "sleeps"),
            programs: value.get("processes").and_then(Value::as_u64),
            reasons: reasons
                .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    fn add(&mut self, connection: &Connection) {
        for (total, more) in [
            (&mut self.ring_tx_bytes, connection.ring_tx),
            (&mut self.ring_rx_bytes, connection.ring_rx),
            (&mut self.tcp_tx_bytes, connection.tcp_tx),
            (&mut self.tcp_rx_bytes, connection.tcp_rx),
            (&mut self.wakeups_sent, connection.wakeups),
            (&mut self.sleeps, connection.sleeps),
        ] {
            *total = total.saturating_add(more);
        }
    }

    /// As `viaduct run --stats-json` writes them.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::json!({
            "ring_tx_bytes": self.ring_tx_bytes,
            "ring_rx_bytes": self.ring_rx_bytes,
            "tcp_tx_bytes": self.tcp_tx_bytes,
            "tcp_rx_bytes": self.tcp_rx_bytes,
            "upgraded": self.upgraded,
            "declined": self.declined,
            "wakeups_sent": self.wakeups_sent,
            "sleeps": self.sleeps,
            "reasons": self.reasons,
        })
    }

    /// `not_peer 3, young 12`; empty if nothing was declined.
    pub(crate) fn reasons_text(&self) -> String {
        let each = self.reasons.iter().map(|(name, n)| format!("{name} {n}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Adds each member of `value`, and of the objects in it as `outer.inner`.
fn flatten(prefix: &str, value: &Value, into: &mut Vec<(String, String)>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(_) => flatten(&format!("{name}."), value, into),
            other => into.push((name, plain(other))),
        }
    }
}

/// The four words that people see for a direction, whatever the daemon calls its state.
fn state(value: Option<&Value>, name: impl Fn(u32) -> String) -> &'static str {
    let said = match value {
        Some(Value::String(said)) => said.to_ascii_lowercase(),
        Some(Value::Number(code)) => {
            let code = code.as_u64().and_then(|code| u32::try_from(code).ok());
            name(code.unwrap_or(0)).to_ascii_lowercase()
        }
        _ => String::new(),
    };
    match said.as_str() {
        "ring" => "ring",
        "draining" => "draining",
        "done" | "ended" => "ended",
        _ => "tcp",
    }
}

/// The command behind a pid, as far as this user may see it.
fn command_of(pid: u64) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim_end() {
        "" => "?".to_owned(),
        name => name.to_owned(),
    }
}

/// An address; a candidate's is not looked up before it registers.
fn address(value: &Value, name: &str) -> String {
    match word(value, name) {
        unknown if unknown == "0.0.0.0:0" || unknown.is_empty() => "-".to_owned(),
        known => known,
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn word(value: &Value, name: &str) -> String {
    value.get(name).map(plain).unwrap_or_default()
}

/// A value as text: a string without its quotes, null as nothing. Control characters, which a
/// terminal would obey, are replaced.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace(char::is_control, "?"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_status_is_read() {
        let text = r#"{"daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 61.5, "clients": 2,
              "pairs": 1, "limits": {"clients": 1024, "user": {"quota": 9}}},
            "processes": [{"process": 3, "pid": 4, "uid": 0, "command": "cat\u001b[2J",
              "counters": {"upgraded": 1, "sleeps": 5, "ring_tx_bytes": 100}, "reasons": {"young": 2, "exec": 0}}],
            "connections": [{"process": 3, "slot": 1, "own": "127.0.0.1:1", "far": "127.0.0.1:2",
              "stage": "attached", "tx_state": "ring", "rx_state": 2, "reason": null,
              "ring_tx": 10, "tcp_rx": 1, "conn_id": 12}]}"#;
        let status = Status::parse(text).unwrap();
        assert_eq!(status.daemon.version, "0.1.0");
        assert_eq!(status.daemon.uptime.as_millis(), 61_500);
        let limits = [("clients", "1024"), ("user.quota", "9")];
        assert_eq!(
            status.daemon.limits,
            limits.map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        let process = status.processes.first().unwrap();
        assert_eq!(process.command, "cat?[2J");
        assert_eq!((process.totals.upgraded, process.totals.sleeps), (1, 5));
        assert_eq!(
            process.totals.ring_tx_bytes, 110,
            "closed ones and the open one"
        );
        assert_eq!(process.totals.reasons_text(), "young 2");
        let connection = status.connections.first().unwrap();
        assert_eq!(
            (connection.sending, connection.receiving),
            ("ring", "draining")
        );
        assert_eq!((connection.reason.as_str(), connection.bytes()), ("", 11));
    }

    #[test]
    fn missing_and_odd_fields_are_empty() {
        let status =
            Status::parse(r#"{"connections": [{"pid": "x", "tx_state": []}, 5]}"#).unwrap();
        assert_eq!(status.connections.len(), 2);
        assert!(
            status
                .connections
                .iter()
                .all(|c| c.sending == "tcp" && c.pid == 0)
        );
        assert!(Status::parse("[]").is_err());
        assert!(Status::parse("{").is_err());
    }

    #[test]
    fn totals_are_found_flat_and_nested() {
        let flat = Totals::parse(r#"{"upgraded": 2, "reasons": {"young": 1}}"#).unwrap();
        let nested = r#"{"session": 1, "counters": {"upgraded": 2, "reasons": {"young": 1}}}"#;
        assert_eq!(Totals::parse(nested).unwrap(), flat);
        assert_eq!(Totals::parse(&flat.to_json().to_string()).unwrap(), flat);
    }

    #[test]
    fn versions_must_match_where_they_are_said() {
        let info = |text| DaemonInfo::parse(text).unwrap().mismatch();
        assert_eq!(info(r#"{"version": "0.1.0"}"#), None);
        assert!(info(r#"{"control_version": 99}"#).is_some());
        assert!(info(r#"{"daemon": {"layout_version": 99}}"#).is_some());
    }
}
