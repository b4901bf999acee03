//! The right panel: transactions per second as pairs of bars, on a logarithmic axis.

use anyhow::Result;

use super::axis::{LogAxis, compact, ratio_label, tick_label};
use super::canvas::{Align, Canvas, Text};
use super::{BOTTOM, Figures, Frame, INK, MUTED, PLAIN, VIADUCT, panel_title};
use crate::bench::plan::{Placement, Test};
use crate::bench::results::Results;

/// A pair of bars.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    test: Test,
    placement: Placement,
    plain: Figures,
    viaduct: Figures,
    ratio: f64,
}

/// Everything the panel shows, from left to right.
pub(super) fn groups(results: &Results) -> Vec<Group> {
    let tests = [Test::RequestResponse, Test::ConnectRequestResponse];
    tests
        .into_iter()
        .flat_map(|test| Placement::ALL.map(|placement| (test, placement)))
        .filter_map(|(test, placement)| {
            let row = results.main_row(test, placement)?;
            let (plain, viaduct) = Figures::pair(row)?;
            Some(Group {
                test,
                placement,
                plain,
                viaduct,
                ratio: row.ratio?,
            })
        })
        .collect()
}

/// Draws the panel, or nothing if there is nothing to show.
pub(super) fn draw(canvas: &mut dyn Canvas, frame: Frame, groups: &[Group]) -> Result<()> {
    let values = groups
        .iter()
        .flat_map(|group| [group.plain, group.viaduct])
        .flat_map(|figures| [figures.min * HEADROOM_BELOW, figures.max]);
    let Some(axis) = LogAxis::around(values) else {
        return Ok(());
    };
    panel_title(
        canvas,
        frame,
        "TCP_RR and TCP_CRR: transactions per second",
        "1 byte to and fro, logarithmic; × = Viaduct / kernel TCP",
    )?;
    let left = frame.left + TICK_ROOM;
    axis.draw(canvas, left, frame.right, tick_label)?;
    let count = f64::from(u32::try_from(groups.len())?);
    let pitch = (frame.right - left) / count;
    let mut center = left + pitch / 2.0;
    for group in groups {
        let bar_width = (pitch * 0.36).min(BAR_WIDTH_MAX);
        bar_pair(canvas, &axis, center, bar_width, group)?;
        center += pitch;
    }
    Ok(())
}

fn bar_pair(
    canvas: &mut dyn Canvas,
    axis: &LogAxis,
    center: f64,
    width: f64,
    group: &Group,
) -> Result<()> {
    let gap = 3.0;
    let value = Text::new(12.0).align(Align::Center).backed();
    let mut top = BOTTOM;
    let bars = [
        (center - gap / 2.0 - width, group.plain, PLAIN),
        (center + gap / 2.0, group.viaduct, VIADUCT),
    ];
    for (left, figures, color) in bars {
        let middle = left + width / 2.0;
        let (y, highest) = (axis.y(figures.median), axis.y(figures.max));
        canvas.rectangle((left, y), (left + width, BOTTOM), color)?;
        if figures.max > figures.min {
            let whisker = [(middle, axis.y(figures.min)), (middle, highest)];
            canvas.line(&whisker, INK, 1.25, None)?;
        }
        canvas.text((middle, highest - 7.0), &compact(figures.median), &value)?;
        top = top.min(highest);
    }
    let bold = Text::new(15.0)
        .bold()
        .color(VIADUCT)
        .align(Align::Center)
        .backed();
    canvas.text((center, top - 25.0), &ratio_label(group.ratio), &bold)?;
    let label = Text::new(12.5).align(Align::Center);
    canvas.text((center, BOTTOM + 21.0), group.test.netperf_name(), &label)?;
    let label = label.color(MUTED);
    canvas.text((center, BOTTOM + 39.0), group.placement.title(), &label)
}

/// Even the smallest bar must be visible, so the axis begins well below it.
const HEADROOM_BELOW: f64 = 0.4;
const TICK_ROOM: f64 = 46.0;
const BAR_WIDTH_MAX: f64 = 64.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::{results, row};

    #[test]
    fn groups_stand_in_a_fixed_order() {
        let results = results(vec![
            row("crr", Placement::TwoCores, &[(9.0, 9.0)]),
            row("rr", Placement::OneCore, &[(9.0, 27.0)]),
            row("rr", Placement::TwoCores, &[(9.0, 900.0)]),
            row("crr", Placement::OneCore, &[(9.0, 0.0)]),
        ]);
        let shown: Vec<_> = groups(&results)
            .iter()
            .map(|group| (group.test, group.placement))
            .collect();
        let (rr, crr) = (Test::RequestResponse, Test::ConnectRequestResponse);
        let (two, one) = (Placement::TwoCores, Placement::OneCore);
        assert_eq!(shown, [(rr, two), (rr, one), (crr, two)]);
    }
}
