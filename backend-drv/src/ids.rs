//! Numbers that the daemon gives out.

use core::fmt;

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident($inner:ty)) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A program that said HELLO, as its peers know it; never 0 and never reused while it lives.
    Process(u32)
}
id! {
    /// One registration of one end.
    RegistrationId(u64)
}
id! {
    /// A pair of registrations that share memory; never 0.
    ConnectionId(u64)
}
id! {
    /// A backend on another host, as this one numbers them.
    PeerId(u32)
}
id! {
    /// A piece of memory that holds the connections of one pair of programs; never 0.
    ArenaId(u32)
}
