//! Logarithmic axes: where a value goes, and which values get a grid line and a label.

use anyhow::Result;

use super::canvas::{Align, Canvas, Text};
use super::{BOTTOM, GRID, INK, TOP};

/// A vertical logarithmic axis between [`BOTTOM`] and [`TOP`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LogAxis {
    low: f64,
    high: f64,
}

impl LogAxis {
    /// An axis from a round value below the least to one far enough above the greatest to leave
    /// room for a label. None without a positive value.
    pub(super) fn around(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        let least = values
            .clone()
            .reduce(f64::min)
            .filter(|&value| value > 0.0)?;
        let greatest = values.reduce(f64::max)?;
        let low = round_down(least * 0.9);
        // A label takes about a tenth of the axis.
        let high = round_up(greatest * (greatest / low).powf(0.14).max(1.2));
        Some(Self { low, high })
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        let part = (value.max(self.low) / self.low).log10() / (self.high / self.low).log10();
        BOTTOM - (BOTTOM - TOP) * part
    }

    /// Grid lines from `left` to `right`, with labels left of them.
    pub(super) fn draw(
        &self,
        canvas: &mut dyn Canvas,
        left: f64,
        right: f64,
        label: impl Fn(f64) -> String,
    ) -> Result<()> {
        let style = Text::new(12.5).align(Align::Right);
        for value in self.ticks() {
            let y = self.y(value);
            canvas.line(&[(left, y), (right, y)], GRID, 1.0, None)?;
            canvas.text((left - 9.0, y + 4.5), &label(value), &style)?;
        }
        canvas.line(&[(left, BOTTOM), (right, BOTTOM)], INK, 1.25, None)
    }

    /// 1, 2 and 5 of each decade, or only 1 where that would be too many.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades <= 3.5 { &STEPS } else { &[1.0] };
        // The base line always says where it is.
        let mut ticks = vec![self.low];
        let mut decade = decade_of(self.low);
        // The slack forgives the rounding of powers of ten.
        while decade <= self.high * 1.001 {
            for step in steps {
                let value = decade * step;
                if value > self.low * 1.001 && value <= self.high * 1.001 {
                    ticks.push(value);
                }
            }
            decade *= 10.0;
        }
        ticks
    }
}

/// Three digits: `950`, `13.0k`, `2.35M`.
pub(super) fn compact(value: f64) -> String {
    let (scaled, suffix) = match value {
        value if value >= 999_500_000.0 => (value / 1e9, "G"),
        value if value >= 999_500.0 => (value / 1e6, "M"),
        value if value >= 999.5 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let decimals = match scaled {
        scaled if scaled >= 99.95 => 0,
        scaled if scaled >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.decimals$}{suffix}")
}

/// A tick's value: as `compact`, without zeros that say nothing.
pub(super) fn tick_label(value: f64) -> String {
    let text = compact(value);
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = text.strip_suffix(suffix).unwrap_or(&text);
    let digits = if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    };
    format!("{digits}{suffix}")
}

/// A ratio beside a value: `×183`, `×4.2`, `×0.98`.
pub(super) fn ratio_label(ratio: f64) -> String {
    let decimals = match ratio {
        ratio if ratio >= 9.95 => 0,
        ratio if ratio >= 1.995 => 1,
        _ => 2,
    };
    format!("×{ratio:.decimals$}")
}

fn decade_of(value: f64) -> f64 {
    10_f64.powf((value.log10() + 1e-9).floor())
}

fn round_down(value: f64) -> f64 {
    let decade = decade_of(value);
    let steps = STEPS.iter().rev().map(|step| step * decade);
    steps
        .into_iter()
        .find(|&step| step <= value * 1.001)
        .unwrap_or(decade)
}

fn round_up(value: f64) -> f64 {
    let decade = decade_of(value);
    let mut steps = STEPS.iter().map(|step| step * decade);
    steps
        .find(|&step| step >= value * 0.999)
        .unwrap_or(decade * 10.0)
}

const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_holds_every_value_and_some_room() {
        let axis = LogAxis::around([341.0, 32_598.0].into_iter()).unwrap();
        assert_eq!(axis.low, 200.0);
        assert!(axis.high >= 50_000.0, "{axis:?}");
        assert!(axis.y(341.0) < BOTTOM && axis.y(32_598.0) > TOP + 20.0);
        assert!((axis.y(axis.low) - BOTTOM).abs() < 1e-6);
        assert!((axis.y(axis.high) - TOP).abs() < 1e-6);
        assert!(LogAxis::around(std::iter::empty()).is_none());
    }

    #[test]
    fn one_value_is_enough_for_an_axis() {
        let axis = LogAxis::around(std::iter::once(1000.0)).unwrap();
        assert!(axis.high > axis.low);
    }

    #[test]
    fn ticks_are_round_and_not_too_many() {
        let short = LogAxis {
            low: 0.2,
            high: 50.0,
        };
        assert_eq!(
            short
                .ticks()
                .into_iter()
                .map(tick_label)
                .collect::<Vec<_>>(),
            ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]
        );
        let long = LogAxis {
            low: 2e3,
            high: 1e7,
        };
        assert_eq!(
            long.ticks().into_iter().map(tick_label).collect::<Vec<_>>(),
            ["2k", "10k", "100k", "1M", "10M"]
        );
    }

    #[test]
    fn values_keep_three_digits() {
        let shown = [0.981, 9.5, 950.0, 13_044.0, 999_600.0, 2_345_678.0].map(compact);
        assert_eq!(shown, ["0.98", "9.50", "950", "13.0k", "1.00M", "2.35M"]);
        assert_eq!(
            [183.4, 12.3, 4.16, 1.04].map(ratio_label),
            ["×183", "×12", "×4.2", "×1.04"]
        );
    }
}
