//! Whether a link is used by more than one domain: what is under way for one of them makes the others wait.

use super::time::{MILLISECOND, Time};

/// A link counts as shared for so long after the turn last went from one domain to another.
const REMEMBERED: u64 = 100 * MILLISECOND;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Company {
    domain: Option<usize>,
    until: Time,
}

impl Company {
    pub(super) const fn new() -> Self {
        Self {
            domain: None,
            until: Time(0),
        }
    }

    /// Bytes of `domain` were sent.
    #[inline]
    pub(super) fn on_sent(&mut self, domain: usize, now: Time) {
        let before = self.domain.replace(domain);
        if before.is_some_and(|before| before != domain) {
            self.until = now.plus(REMEMBERED);
        }
    }

    /// Whether bytes of several domains were sent lately.
    pub(super) fn is_mixed(&self, now: Time) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_mixed_while_domains_take_turns_and_shortly_after() {
        let mut company = Company::new();
        for at in 1..4 {
            company.on_sent(7, Time(at));
            assert!(!company.is_mixed(Time(at)));
        }
        company.on_sent(8, Time(4));
        assert!(company.is_mixed(Time(5)));
        company.on_sent(7, Time(REMEMBERED));
        assert!(company.is_mixed(Time(REMEMBERED + 4)));
        company.on_sent(7, Time(2 * REMEMBERED - 1));
        assert!(!company.is_mixed(Time(2 * REMEMBERED)));
    }
}
