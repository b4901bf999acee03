//! What programs live through: peers, daemons and limits that fail, and far ends that lie.
//!
//! Wherever the kernel has an answer, the same case runs on plain TCP and under the library, and the
//! two must give the same results. The programs are the test's own executable in another role; see
//! [`agent`].

mod agent;
mod at_once;
mod behind;
mod bursts;
mod daemon_gone;
mod drained;
mod duo;
mod environment;
mod guest_users;
mod guests_resumed;
mod holder_killed;
mod hostile;
mod idle;
mod idle_pages;
mod kernel_bytes;
mod left_behind;
mod limits;
mod pattern;
mod peer_killed;
mod revoked;
mod strangers;
mod totals;
mod two_daemons;
mod two_guests;

/// Not a test: an agent, when the environment says so.
#[test]
fn agent_role() {
    agent::run_if_told();
}
