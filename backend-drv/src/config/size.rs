//! Numbers of bytes: an integer, or text with a unit.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, at most what TOML's integers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let (number, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        let number: u64 = number.trim().parse().ok()?;
        let bytes = number.checked_mul(1 << shift)?;
        i64::try_from(bytes).ok()?;
        Some(Self(bytes))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let exact = UNITS
            .iter()
            .find(|(_, shift)| *shift > 0 && self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((unit, shift)) => {
                serializer.collect_str(&format_args!("{} {unit}", self.0 >> shift))
            }
            None => serializer.serialize_u64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a number of bytes, or text such as \"4 GiB\"")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Size, E> {
        u64::try_from(value)
            .map(Size)
            .map_err(|_| E::custom(format_args!("{value}: must be a positive number of bytes")))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Size, E> {
        Ok(Size(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        Size::parse(text).ok_or_else(|| {
            E::custom(format_args!(
                "\"{text}\": must be a number of bytes, or text such as \"4 GiB\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two() {
        for (text, bytes) in [
            ("17", Some(17)),
            ("17B", Some(17)),
            ("4 KiB", Some(4096)),
            ("1TiB", Some(1 << 40)),
            ("4GB", None),
            ("-1", None),
            ("99999999999 TiB", None),
            ("", None),
        ] {
            assert_eq!(Size::parse(text).map(|size| size.0), bytes, "{text}");
        }
    }
}
