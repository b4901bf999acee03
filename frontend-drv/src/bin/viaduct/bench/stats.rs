//! Medians, ranges and ratios of a handful of samples.

use serde::{Deserialize, Serialize};

/// The middle of the samples; the mean of the two middle ones if their number is even.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted
        .get(middle.checked_sub(1)?)
        .map(|lower| (lower + upper) / 2.0)
}

/// The smallest and the largest of a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Range {
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Range {
    pub(super) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

/// `accelerated / plain`, where both are there and there is something to divide by.
pub(super) fn ratio(plain: Option<f64>, accelerated: Option<f64>) -> Option<f64> {
    let plain = plain.filter(|&value| value > 0.0)?;
    Some(accelerated? / plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 3.0, 1.0, 100.0]), Some(3.5));
    }

    #[test]
    fn the_range_does_not_need_sorted_samples() {
        let range = Range { min: 1.0, max: 9.0 };
        assert_eq!(Range::of(&[4.0, 9.0, 1.0]), Some(range));
        assert_eq!(Range::of(&[]), None);
    }

    #[test]
    fn a_ratio_needs_both_sides_and_a_divisor() {
        assert_eq!(ratio(Some(2.0), Some(9.0)), Some(4.5));
        assert_eq!(ratio(None, Some(9.0)), None);
        assert_eq!(ratio(Some(2.0), None), None);
        assert_eq!(ratio(Some(0.0), Some(9.0)), None);
    }
}
