//! The main comparison as a picture, netperf.svg and netperf.png.
//!
//! On the left throughput over message size, on the right transactions per second. Everything is
//! drawn through [`canvas`], so both files show the same; [`axis`] places values, [`font`] finds
//! letters for the PNG (an SVG needs none).

mod axis;
mod canvas;
mod font;
mod throughput;
mod transactions;

use std::path::Path;

use anyhow::{Context, Result};
use plotters::style::RGBColor;

use super::plan::Placement;
use super::results::{Results, Row, Side};
use canvas::{Align, Canvas, Text};

/// Writes both files to `out`; the lines returned say what was written, or why not.
pub(super) fn write(results: &Results, out: &Path) -> Result<Vec<String>> {
    if throughput::points(results).is_empty() && transactions::groups(results).is_empty() {
        return Ok(vec![
            "no chart: not one pair of runs has a result".to_owned(),
        ]);
    }
    let svg = out.join("netperf.svg");
    let text = canvas::to_svg(SIZE, |canvas| draw(canvas, results))
        .with_context(|| format!("cannot draw {}", svg.display()))?;
    std::fs::write(&svg, text).with_context(|| format!("cannot write {}", svg.display()))?;
    let mut notes = vec![format!("wrote {}", svg.display())];

    let png = out.join("netperf.png");
    if font::register() {
        canvas::to_png(&png, SIZE, |canvas| draw(canvas, results))
            .with_context(|| format!("cannot draw {}", png.display()))?;
        notes.push(format!("wrote {}", png.display()));
    } else {
        notes.push(
            "no netperf.png: no TrueType font found; install DejaVu (Debian: fonts-dejavu-core)"
                .to_owned(),
        );
    }
    Ok(notes)
}

/// The part of the picture that a panel may fill.
#[derive(Clone, Copy, Debug)]
struct Frame {
    left: f64,
    right: f64,
}

fn draw(canvas: &mut dyn Canvas, results: &Results) -> Result<()> {
    canvas.rectangle((0.0, 0.0), SIZE, BACKGROUND)?;
    let machine = &results.machine;
    let place = if results.settings.same_host {
        "same host"
    } else {
        "two hosts"
    };
    canvas.text(
        (MARGIN, 46.0),
        "netperf over kernel TCP and over Viaduct",
        &Text::new(25.0).bold(),
    )?;
    let details = format!(
        "The same unmodified binary, {place}, {} s runs in turn; medians, with whiskers from least \
         to greatest.",
        results.settings.seconds_per_run
    );
    canvas.text((MARGIN, 72.0), &details, &Text::new(13.5).color(MUTED))?;
    let place = format!(
        "{}, {} cores, Linux {}, {}",
        machine.cpu_model,
        machine.cores,
        machine.kernel,
        machine.date.split('T').next().unwrap_or_default()
    );
    let right = Text::new(11.5).color(MUTED).align(Align::Right);
    canvas.text((SIZE.0 - MARGIN, SIZE.1 - 16.0), &place, &right)?;
    legend(canvas, results)?;

    let points = throughput::points(results);
    let groups = transactions::groups(results);
    let whole = Frame {
        left: MARGIN,
        right: SIZE.0 - MARGIN,
    };
    let middle = SIZE.0 / 2.0;
    let (left, right) = match (points.is_empty(), groups.is_empty()) {
        (false, false) => (
            Frame {
                right: middle - GAP / 2.0,
                ..whole
            },
            Frame {
                left: middle + GAP / 2.0,
                ..whole
            },
        ),
        _ => (whole, whole),
    };
    throughput::draw(canvas, left, &points)?;
    transactions::draw(canvas, right, &groups)
}

/// One line that serves both panels.
fn legend(canvas: &mut dyn Canvas, results: &Results) -> Result<()> {
    let style = Text::new(13.0);
    let mut x = MARGIN;
    for (label, color) in [("kernel TCP", PLAIN), ("Viaduct", VIADUCT)] {
        canvas.rectangle((x, LEGEND_Y - 10.5), (x + 22.0, LEGEND_Y + 0.5), color)?;
        canvas.text((x + 30.0, LEGEND_Y), label, &style)?;
        x += 30.0 + style.width(label) + 26.0;
    }
    if throughput::points(results).is_empty() {
        return Ok(());
    }
    for placement in Placement::ALL {
        if !results.rows.iter().any(|row| row.placement == placement) {
            continue;
        }
        let y = LEGEND_Y - 5.0;
        let dash = dash(placement);
        canvas.line(&[(x, y), (x + 40.0, y)], MUTED, 2.5, dash)?;
        throughput::marker(canvas, (x + 20.0, y), MUTED, placement)?;
        let label = placement.title();
        canvas.text((x + 49.0, LEGEND_Y), label, &style)?;
        x += 49.0 + style.width(label) + 26.0;
    }
    Ok(())
}

fn dash(placement: Placement) -> Option<f64> {
    match placement {
        Placement::TwoCores => None,
        Placement::OneCore => Some(7.0),
        Placement::Unbound => Some(2.5),
    }
}

/// The title of a panel, and what its vertical axis means.
fn panel_title(canvas: &mut dyn Canvas, frame: Frame, title: &str, unit: &str) -> Result<()> {
    canvas.text((frame.left, TOP - 36.0), title, &Text::new(16.0).bold())?;
    canvas.text(
        (frame.left, TOP - 15.0),
        unit,
        &Text::new(12.5).color(MUTED),
    )
}

/// Median, least and greatest of one side of a row, if it has any.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    median: f64,
    min: f64,
    max: f64,
}

impl Figures {
    fn of(side: &Side) -> Option<Self> {
        let samples: Vec<f64> = side.samples.iter().copied().flatten().collect();
        let range = super::stats::Range::of(&samples)?;
        Some(Self {
            median: side.median?,
            min: range.min,
            max: range.max,
        })
    }

    fn pair(row: &Row) -> Option<(Self, Self)> {
        Some((Self::of(&row.plain)?, Self::of(&row.viaduct)?))
    }

    fn scaled(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            min: self.min * factor,
            max: self.max * factor,
        }
    }
}

const SIZE: (f64, f64) = (1280.0, 660.0);
const MARGIN: f64 = 40.0;
/// Between the two panels.
const GAP: f64 = 56.0;
const LEGEND_Y: f64 = 104.0;
/// Of the plots themselves.
const TOP: f64 = 190.0;
const BOTTOM: f64 = 562.0;

const BACKGROUND: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 41, 55);
const MUTED: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
const PLAIN: RGBColor = RGBColor(148, 158, 173);
const VIADUCT: RGBColor = RGBColor(14, 98, 180);
