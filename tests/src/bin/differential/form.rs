//! How a program waits: the same case runs in each of these forms.

use std::str::FromStr;

/// A way of waiting for a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Blocking calls.
    Blocking,
    /// Non-blocking, poll before each call.
    Poll,
    /// Non-blocking, select before each call.
    Select,
    /// Non-blocking, level-triggered epoll before each call.
    Level,
    /// Non-blocking, edge-triggered epoll after EAGAIN.
    Edge,
    /// Non-blocking, one-shot epoll re-armed for each wait.
    OneShot,
}

impl Form {
    /// All of them.
    pub(crate) const ALL: &[Self] = &[
        Self::Blocking,
        Self::Poll,
        Self::Select,
        Self::Level,
        Self::Edge,
        Self::OneShot,
    ];

    /// The blocking one.
    pub(crate) const ONE: &[Self] = &[Self::Blocking];

    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Poll => "poll",
            Self::Select => "select",
            Self::Level => "level",
            Self::Edge => "edge",
            Self::OneShot => "oneshot",
        }
    }

    /// Whether the form has an epoll set.
    pub(crate) const fn has_set(self) -> bool {
        matches!(self, Self::Level | Self::Edge | Self::OneShot)
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|form| form.name() == text);
        found
            .copied()
            .ok_or_else(|| format!("no such form: {text}"))
    }
}
