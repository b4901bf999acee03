//! The left panel: TCP_STREAM throughput over message size, both axes logarithmic.

use anyhow::Result;
use plotters::style::RGBColor;

use super::axis::{LogAxis, ratio_label, tick_label};
use super::canvas::{Align, Canvas, Text};
use super::{BACKGROUND, BOTTOM, Figures, Frame, MUTED, PLAIN, VIADUCT, dash, panel_title};
use crate::bench::plan::{Placement, Section, Test, size_title};
use crate::bench::results::Results;

/// One message size at one placement, in Gbit/s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    bytes: u32,
    placement: Placement,
    plain: Figures,
    viaduct: Figures,
    ratio: f64,
}

/// Everything the panel shows, by message size, the faster placement first.
pub(super) fn points(results: &Results) -> Vec<Point> {
    let mut points: Vec<Point> = results
        .rows
        .iter()
        .filter(|row| row.section == Section::Main)
        .filter_map(|row| {
            let Test::Stream { bytes } = row.test else {
                return None;
            };
            let (plain, viaduct) = Figures::pair(row)?;
            Some(Point {
                bytes,
                placement: row.placement,
                plain: plain.scaled(GBIT_PER_MBIT),
                viaduct: viaduct.scaled(GBIT_PER_MBIT),
                ratio: row.ratio?,
            })
        })
        .collect();
    // The faster placement first: its label goes above, and the other's may go below.
    points.sort_by(|a, b| {
        let faster_first = b.viaduct.median.total_cmp(&a.viaduct.median);
        a.bytes.cmp(&b.bytes).then(faster_first)
    });
    points
}

/// Draws the panel, or nothing if there is nothing to show.
pub(super) fn draw(canvas: &mut dyn Canvas, frame: Frame, points: &[Point]) -> Result<()> {
    let values = points
        .iter()
        .flat_map(|point| [point.plain, point.viaduct])
        .flat_map(|figures| [figures.min, figures.max]);
    let Some(y_axis) = LogAxis::around(values) else {
        return Ok(());
    };
    let x_axis = SizeAxis::new(frame, points);
    panel_title(
        canvas,
        frame,
        "TCP_STREAM: throughput by message size",
        "Gbit/s, logarithmic; × = Viaduct / kernel TCP",
    )?;
    y_axis.draw(canvas, x_axis.left, x_axis.right, tick_label)?;
    x_axis.draw(canvas, points)?;
    for placement in Placement::ALL.into_iter().rev() {
        let here: Vec<Point> = points
            .iter()
            .copied()
            .filter(|point| point.placement == placement)
            .collect();
        for (color, side) in [(PLAIN, Side::Plain), (VIADUCT, Side::Viaduct)] {
            let places: Vec<_> = here
                .iter()
                .map(|point| (x_axis.x(point.bytes), side.of(point)))
                .collect();
            series(canvas, &y_axis, &places, color, placement)?;
        }
    }
    for same_size in points.chunk_by(|a, b| a.bytes == b.bytes) {
        let Some(first) = same_size.first() else {
            continue;
        };
        ratios(canvas, &y_axis, x_axis.x(first.bytes), same_size)?;
    }
    Ok(())
}

/// A point of a line: filled for two cores, hollow for one, a ring for any.
pub(super) fn marker(
    canvas: &mut dyn Canvas,
    at: (f64, f64),
    color: RGBColor,
    placement: Placement,
) -> Result<()> {
    canvas.dot(at, MARKER_RADIUS, color)?;
    match placement {
        Placement::TwoCores => Ok(()),
        Placement::OneCore => canvas.dot(at, MARKER_RADIUS / 2.0, BACKGROUND),
        Placement::Unbound => canvas.dot(at, MARKER_RADIUS * 0.8, BACKGROUND),
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Plain,
    Viaduct,
}

impl Side {
    fn of(self, point: &Point) -> Figures {
        match self {
            Self::Plain => point.plain,
            Self::Viaduct => point.viaduct,
        }
    }
}

fn series(
    canvas: &mut dyn Canvas,
    axis: &LogAxis,
    places: &[(f64, Figures)],
    color: RGBColor,
    placement: Placement,
) -> Result<()> {
    let line: Vec<_> = places
        .iter()
        .map(|&(x, figures)| (x, axis.y(figures.median)))
        .collect();
    if line.len() > 1 {
        canvas.line(&line, color, 2.5, dash(placement))?;
    }
    for &(x, figures) in places {
        let whisker = [(x, axis.y(figures.min)), (x, axis.y(figures.max))];
        canvas.line(&whisker, color, 1.5, None)?;
        marker(canvas, (x, axis.y(figures.median)), color, placement)?;
    }
    Ok(())
}

/// The ratios at one message size, each above its point or else below, or left out where both
/// places are taken by another point or label.
fn ratios(canvas: &mut dyn Canvas, axis: &LogAxis, x: f64, points: &[Point]) -> Result<()> {
    let figures = points.iter().flat_map(|point| [point.plain, point.viaduct]);
    let mut taken: Vec<Span> = figures
        .map(|figures| Span::of_marker(axis, figures))
        .collect();
    for point in points {
        let own = Span::of_marker(axis, point.viaduct);
        let above = own.top - LABEL_GAP;
        let below = own.bottom + LABEL_GAP + LABEL_HEIGHT;
        let free = [above, below].into_iter().find(|&baseline| {
            let label = Span::of_label(baseline);
            label.bottom < BOTTOM && !taken.iter().any(|&other| label.overlaps(other))
        });
        let Some(baseline) = free else { continue };
        taken.push(Span::of_label(baseline));
        let style = Text::new(12.0).align(Align::Center).color(VIADUCT).backed();
        let style = match point.placement {
            Placement::TwoCores => style.bold(),
            Placement::OneCore | Placement::Unbound => style,
        };
        canvas.text(
            (x - LABEL_SHIFT, baseline),
            &ratio_label(point.ratio),
            &style,
        )?;
    }
    Ok(())
}

/// What something covers of a vertical line.
#[derive(Clone, Copy, Debug)]
struct Span {
    top: f64,
    bottom: f64,
}

impl Span {
    fn of_marker(axis: &LogAxis, figures: Figures) -> Self {
        let y = axis.y(figures.median);
        Self {
            top: axis.y(figures.max).min(y - MARKER_RADIUS),
            bottom: axis.y(figures.min).max(y + MARKER_RADIUS),
        }
    }

    fn of_label(baseline: f64) -> Self {
        Self {
            top: baseline - LABEL_HEIGHT,
            bottom: baseline,
        }
    }

    fn overlaps(self, other: Self) -> bool {
        self.top < other.bottom && other.top < self.bottom
    }
}

/// The horizontal axis: powers of two at equal distances.
#[derive(Clone, Copy, Debug)]
struct SizeAxis {
    left: f64,
    right: f64,
    low: f64,
    high: f64,
}

impl SizeAxis {
    fn new(frame: Frame, points: &[Point]) -> Self {
        let logs = points.iter().map(|point| f64::from(point.bytes).log2());
        let low = logs.clone().fold(f64::INFINITY, f64::min);
        let high = logs.fold(f64::NEG_INFINITY, f64::max);
        Self {
            left: frame.left + TICK_ROOM,
            right: frame.right,
            low,
            high,
        }
    }

    fn x(&self, bytes: u32) -> f64 {
        let (left, right) = (self.left + SIDE_ROOM, self.right - SIDE_ROOM);
        if self.high <= self.low {
            return f64::midpoint(left, right);
        }
        let part = (f64::from(bytes).log2() - self.low) / (self.high - self.low);
        left + (right - left) * part
    }

    fn draw(&self, canvas: &mut dyn Canvas, points: &[Point]) -> Result<()> {
        let style = Text::new(12.5).align(Align::Center);
        let mut last = None;
        for point in points {
            let x = self.x(point.bytes);
            let label = size_title(point.bytes);
            let clear = style.width("999 KiB") + 4.0;
            if last.is_some_and(|last| x < last + clear) {
                continue;
            }
            last = Some(x);
            canvas.line(&[(x, BOTTOM), (x, BOTTOM + 5.0)], MUTED, 1.25, None)?;
            canvas.text((x, BOTTOM + 21.0), &label, &style)?;
        }
        let middle = f64::midpoint(self.left, self.right);
        let style = style.color(MUTED);
        canvas.text(
            (middle, BOTTOM + 46.0),
            "bytes per send and receive call",
            &style,
        )
    }
}

const MARKER_RADIUS: f64 = 5.0;
/// Between a marker and its label.
const LABEL_GAP: f64 = 6.0;
/// To the left, out of the way of a line that rises to the right.
const LABEL_SHIFT: f64 = 11.0;
const LABEL_HEIGHT: f64 = 11.0;
const GBIT_PER_MBIT: f64 = 1e-3;
/// For the labels of the vertical axis.
const TICK_ROOM: f64 = 40.0;
/// Between the ends of the axis and the outermost points.
const SIDE_ROOM: f64 = 34.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::{results, row};

    #[test]
    fn points_are_sorted_and_need_both_sides() {
        let two = Placement::TwoCores;
        let results = results(vec![
            row("rr", two, &[(1.0, 2.0)]),
            row("stream:4k", two, &[(1000.0, 4000.0), (3000.0, 8000.0)]),
            row("stream:64", two, &[(300.0, 900.0)]),
            row("stream:1k", two, &[(300.0, 0.0)]),
        ]);
        let points = points(&results);
        let sizes: Vec<_> = points.iter().map(|point| point.bytes).collect();
        assert_eq!(sizes, [64, 4096]);
        let wide = points[1].viaduct;
        assert_eq!((wide.median, wide.min, wide.max), (6.0, 4.0, 8.0));
        assert!((points[1].ratio - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_single_size_stands_in_the_middle() {
        let results = results(vec![row("stream:4k", Placement::OneCore, &[(1.0, 2.0)])]);
        let frame = Frame {
            left: 0.0,
            right: 240.0,
        };
        let axis = SizeAxis::new(frame, &points(&results));
        assert!((axis.x(4096) - (40.0 + 100.0)).abs() < 1e-9);
    }
}
