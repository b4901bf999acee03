//! Names of enumerations, sets of flags, and the arguments of an operation, as text.

use core::fmt;
use core::str::FromStr;

/// An enumeration whose members have names.
macro_rules! named {
    (
        $(#[$about:meta])*
        pub enum $name:ident { $($(#[$each:meta])* $member:ident = $text:literal,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$each])* $member,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$member),+];

            /// Its name in a sequence.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$member => $text),+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                out.write_str(self.name())
            }
        }

        impl core::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|one| one.name() == text);
                found.copied().ok_or_else(|| format!("{text}: not one of {}", stringify!($name)))
            }
        }
    };
}
pub(super) use named;

/// A set of flags with their names: `more+nosignal`, or `-` for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits(pub(super) i32, pub(super) &'static [(&'static str, i32)]);

impl fmt::Display for Bits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.1.iter().filter(|(_, bit)| self.0 & bit != 0);
        let names: Vec<&str> = set.map(|(name, _)| *name).collect();
        if names.is_empty() {
            return out.write_str("-");
        }
        out.write_str(&names.join("+"))
    }
}

/// What stands between the parentheses of an operation.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    left: std::vec::IntoIter<&'a str>,
    whole: &'a str,
}

impl<'a> Arguments<'a> {
    /// The name in front of the parentheses, and the arguments.
    pub(super) fn split(text: &'a str) -> Result<(&'a str, Self), String> {
        let (name, rest) = text
            .strip_suffix(')')
            .and_then(|text| text.split_once('('))
            .ok_or_else(|| format!("{text}: no arguments"))?;
        let left: Vec<&str> = rest.split(',').filter(|each| !each.is_empty()).collect();
        let arguments = Self {
            left: left.into_iter(),
            whole: text,
        };
        Ok((name, arguments))
    }

    fn word(&mut self) -> Result<&'a str, String> {
        let whole = self.whole;
        self.left
            .next()
            .ok_or_else(|| format!("{whole}: too few arguments"))
    }

    /// The next argument.
    pub(super) fn next<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        let whole = self.whole;
        word.parse().map_err(|_| format!("{whole}: {word}"))
    }

    /// The next argument, a number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> Result<usize, String> {
        let number: usize = self.next()?;
        if number < limit {
            Ok(number)
        } else {
            Err(format!("{}: {number} is not below {limit}", self.whole))
        }
    }

    /// The next argument, a set of flags.
    pub(super) fn bits(&mut self, names: &[(&str, i32)]) -> Result<i32, String> {
        let word = self.word()?;
        if word == "-" {
            return Ok(0);
        }
        let mut bits = 0;
        for name in word.split('+') {
            let found = names.iter().find(|(known, _)| *known == name);
            bits |= found.ok_or_else(|| format!("{}: {name}", self.whole))?.1;
        }
        Ok(bits)
    }

    /// Nothing may follow.
    pub(super) fn end(mut self) -> Result<(), String> {
        match self.left.next() {
            None => Ok(()),
            Some(more) => Err(format!("{}: {more} is too much", self.whole)),
        }
    }
}
