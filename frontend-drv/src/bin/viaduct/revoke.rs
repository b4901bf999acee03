//! `viaduct revoke`: has the daemon take connections back to TCP, for good.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use rdma_core::Policy;
use rdma_core::control::{Message, Revoke};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::{output, units};

/// Take connections back to TCP for good; later ones are not affected. Exit status 1 if none matches,
/// or if some could not be taken back yet.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true))]
pub(crate) struct RevokeArgs {
    /// Connections with this address (or one of this network) at either end
    #[arg(long, group = "which", value_name = "ADDR[/BITS][:PORT]")]
    peer: Option<String>,
    /// Connections of this process, at either end
    #[arg(long, group = "which", value_name = "PID")]
    pid: Option<u32>,
    /// The connection with this number, as `viaduct status --json` shows it (conn_id)
    #[arg(long, group = "which", value_name = "ID")]
    conn: Option<u64>,
    /// All connections (of this user; of everybody for root and the daemon's own user)
    #[arg(long, group = "which", conflicts_with_all = ["peer", "pid", "conn"])]
    all: bool,
    /// Print the daemon's answer, as JSON
    #[arg(long)]
    json: bool,
    /// The daemon's socket [default: VIADUCT_SOCKET, the system's daemon, or this user's embedded one]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(crate) fn run(args: &RevokeArgs) -> Result<ExitCode> {
    let body = request(args)?;
    let daemon = Daemon::find(args.socket.as_deref())?;
    let socket = daemon.socket.display();
    let text = daemon.connection.converse(&Message::Revoke(body));
    let text = text.with_context(|| format!("asking the daemon at {socket}"))?;
    let answer = Answer::parse(&text)
        .with_context(|| format!("the daemon at {socket} does not say what it did"))?;
    if args.json {
        output::print(&format!("{}\n", text.trim_end()))?;
    } else {
        output::print(&answer.describe())?;
    }
    Ok(ExitCode::from(u8::from(!answer.is_complete())))
}

/// What the user asks for; conditions that are given must all be true.
fn request(args: &RevokeArgs) -> Result<Revoke, Failure> {
    let mut body = Revoke {
        what: 0,
        pid: args.pid.unwrap_or(0),
        conn_id: args.conn.unwrap_or(0),
        addr: [0; 16],
        family: 4,
        prefix: 0,
        port: 0,
        reserved: 0,
    };
    if let Some(peer) = &args.peer {
        let (address, prefix, port) = network(peer)?;
        match address {
            IpAddr::V4(v4) => {
                if let Some(place) = body.addr.first_chunk_mut() {
                    *place = v4.octets();
                }
            }
            IpAddr::V6(v6) => {
                body.family = 6;
                body.addr = v6.octets();
            }
        }
        (body.prefix, body.port) = (prefix, port);
        body.what |= Revoke::ADDRESS;
    }
    if args.pid.is_some() {
        body.what |= Revoke::PID;
    }
    if args.conn.is_some() {
        body.what |= Revoke::CONNECTION;
    }
    Ok(body)
}

/// Address, leading bits and port (0: any), as in a peer list.
fn network(text: &str) -> Result<(IpAddr, u8, u16), Failure> {
    let bad = |why: &str| {
        let form = "ADDR[/BITS][:PORT], IPv6 with a port as [ADDR]:PORT";
        Failure::bad_input(format!("--peer: \"{text}\" is not {form} ({why})"))
    };
    let policy = Policy::parse(text).map_err(|error| {
        let message = error.to_string();
        let why = message.rsplit_once('(').map_or("", |(_, why)| why);
        bad(why.trim_end_matches(')'))
    })?;
    let [rule] = policy.rules() else {
        return Err(bad("one of them"));
    };
    let port = match rule.ports() {
        (0, u16::MAX) => 0,
        (first, last) if first == last && first != 0 => first,
        _ => return Err(bad("one port")),
    };
    if rule.excludes() {
        return Err(bad("nothing is excluded here"));
    }
    let (address, bits) = rule.network();
    Ok((address, bits, port))
}

/// What the daemon did.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// Connections that went back to TCP.
    revoked: u64,
    /// Connections that were there already.
    already: u64,
    /// Ends that waited for their far end, and stay on TCP.
    refused: u64,
    /// Connections that could not be taken back yet.
    pending: u64,
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let count = |name: &str| value.get(name)?.as_u64();
        Some(Self {
            revoked: count("revoked")?,
            already: count("already")?,
            refused: count("refused")?,
            pending: count("pending")?,
        })
    }

    /// Whether something matched, and all of that is on TCP.
    const fn is_complete(&self) -> bool {
        self.pending == 0 && self.revoked + self.already + self.refused > 0
    }

    fn describe(&self) -> String {
        let mut parts = Vec::new();
        let mut say = |count: u64, noun: &str, what: &str| {
            if count > 0 {
                parts.push(format!("{} {what}", units::counted(count, noun)));
            }
        };
        say(self.revoked, "connection", "back to TCP");
        say(self.already, "connection", "already on TCP");
        say(self.refused, "end", "refused that waited for the far end");
        say(
            self.pending,
            "connection",
            "pending: a program was stopped in the middle of a copy; try again",
        );
        if parts.is_empty() {
            parts.push("no connection matches".to_owned());
        }
        format!("{}\n", parts.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RevokeArgs {
        RevokeArgs {
            peer: None,
            pid: None,
            conn: None,
            all: true,
            json: false,
            socket: None,
        }
    }

    #[test]
    fn what_is_given_counts() {
        assert_eq!(request(&args()).unwrap().what, 0);
        let body = request(&RevokeArgs {
            peer: Some("10.9.0.0/24:80".to_owned()),
            pid: Some(5),
            conn: Some(6),
            ..args()
        });
        let body = body.unwrap();
        assert_eq!(body.what, Revoke::KNOWN);
        assert_eq!((body.pid, body.conn_id), (5, 6));
        assert_eq!((body.family, body.prefix, body.port), (4, 24, 80));
        assert_eq!(body.addr[..5], [10, 9, 0, 0, 0]);
    }

    #[test]
    fn a_peer_is_written_as_in_a_peer_list() {
        let v6 = |text: &str| IpAddr::V6(text.parse().unwrap());
        assert_eq!(network("::1").unwrap(), (v6("::1"), 128, 0));
        assert_eq!(network("[fd00::/16]:443").unwrap(), (v6("fd00::"), 16, 443));
        let mapped = network("::ffff:10.0.0.1").unwrap();
        assert_eq!(mapped, ("10.0.0.1".parse().unwrap(), 32, 0));
        for (bad, why) in [
            ("host", "not an IP address"),
            ("10.0.0.0/40", "prefix length"),
            ("10.0.0.1:1-5", "one port"),
            ("10.0.0.1:0", "one port"),
            ("!10.0.0.1", "excluded"),
            ("10.0.0.1,10.0.0.2", "one of them"),
            ("", "one of them"),
        ] {
            let error = network(bad).unwrap_err().to_string();
            assert!(error.contains("ADDR[/BITS][:PORT]"), "{error}");
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn an_answer_says_what_happened() {
        let answer = |text| Answer::parse(text).unwrap();
        let all = answer(r#"{"revoked": 2, "already": 1, "refused": 1, "pending": 1}"#);
        let text = all.describe();
        assert!(text.starts_with("2 connections back to TCP\n1 connection already on TCP\n"));
        assert!(text.contains("1 end refused") && text.contains("1 connection pending"));
        assert!(!all.is_complete());
        let none = answer(r#"{"revoked": 0, "already": 0, "refused": 0, "pending": 0}"#);
        assert_eq!(none.describe(), "no connection matches\n");
        assert!(!none.is_complete());
        assert!(
            answer(r#"{"revoked": 1, "already": 0, "refused": 0, "pending": 0}"#).is_complete()
        );
        assert_eq!(Answer::parse(r#"{"error": "what?"}"#), None);
    }
}
