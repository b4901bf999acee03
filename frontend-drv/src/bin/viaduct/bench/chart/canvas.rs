//! Rectangles, lines, dots and text in logical pixels, drawn by plotters to SVG or PNG.
//!
//! plotters takes whole pixels, so everything is drawn [`FINE`] times larger. The SVG scales that
//! back by its view box. The PNG is averaged down to twice the logical size, which smooths edges.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::prelude::{BitMapBackend, Color, DrawingBackend, FontDesc, FontStyle, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontFamily, RGBColor, TextStyle};

use super::font::FAMILY;
use super::{BACKGROUND, INK};

/// A point in logical pixels, from the upper left.
type Point = (f64, f64);

/// What a picture is drawn with.
pub(super) trait Canvas {
    /// A filled rectangle, from its upper left to its lower right.
    fn rectangle(&mut self, from: Point, to: Point, color: RGBColor) -> Result<()>;
    /// A line through the points, in dashes of this length if one is given.
    fn line(
        &mut self,
        points: &[Point],
        color: RGBColor,
        width: f64,
        dash: Option<f64>,
    ) -> Result<()>;
    /// A filled circle.
    fn dot(&mut self, center: Point, radius: f64, color: RGBColor) -> Result<()>;
    /// One line of text; the point is on its baseline.
    fn text(&mut self, at: Point, text: &str, style: &Text) -> Result<()>;
}

/// Which part of a text its point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Center,
    Right,
}

/// How text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    size: f64,
    bold: bool,
    color: RGBColor,
    align: Align,
    backed: bool,
}

impl Text {
    /// Plain text with an em of `size` pixels.
    pub(super) fn new(size: f64) -> Self {
        Self {
            size,
            bold: false,
            color: INK,
            align: Align::Left,
            backed: false,
        }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) fn color(self, color: RGBColor) -> Self {
        Self { color, ..self }
    }

    pub(super) fn align(self, align: Align) -> Self {
        Self { align, ..self }
    }

    /// With the background behind it, so that no line runs through it.
    pub(super) fn backed(self) -> Self {
        Self {
            backed: true,
            ..self
        }
    }

    /// About how wide a text is; exact widths depend on the viewer's font.
    pub(super) fn width(&self, text: &str) -> f64 {
        let letters = text.chars().fold(0.0, |sum, _| sum + 1.0);
        letters * self.size * 0.6
    }

    fn font_style(&self) -> FontStyle {
        if self.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        }
    }
}

/// The SVG file's text.
pub(super) fn to_svg(
    size: Point,
    draw: impl FnOnce(&mut dyn Canvas) -> Result<()>,
) -> Result<String> {
    let (width, height) = (pixels(size.0 * FINE), pixels(size.1 * FINE));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let mut canvas = SvgCanvas(Area(area));
        draw(&mut canvas)?;
        canvas.0.0.present().map_err(failed)?;
    }
    let drawn = format!("width=\"{width}\" height=\"{height}\"");
    let shown = format!("width=\"{}\" height=\"{}\"", size.0, size.1);
    Ok(svg.replacen(&drawn, &shown, 1))
}

/// Writes the PNG file.
pub(super) fn to_png(
    path: &Path,
    size: Point,
    draw: impl FnOnce(&mut dyn Canvas) -> Result<()>,
) -> Result<()> {
    let (width, height) = (pixels(size.0 * FINE), pixels(size.1 * FINE));
    let bytes = usize::try_from(width)? * usize::try_from(height)? * RGB;
    let mut buffer = vec![0; bytes];
    {
        let area = BitMapBackend::with_buffer(&mut buffer, (width, height)).into_drawing_area();
        let mut canvas = BitmapCanvas(Area(area));
        draw(&mut canvas)?;
        canvas.0.0.present().map_err(failed)?;
    }
    let averaged = halved(&buffer, usize::try_from(width)?);
    let (width, height) = (width / 2, height / 2);
    let mut file = BitMapBackend::new(path, (width, height));
    file.blit_bitmap((0, 0), (width, height), &averaged)
        .map_err(failed)?;
    file.present().map_err(failed)
}

/// The averages of squares of four pixels.
fn halved(rgb: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgb.len() / 4);
    for rows in rgb.chunks_exact(2 * width * RGB) {
        let (upper, lower) = rows.split_at(width * RGB);
        let pairs = upper.chunks_exact(2 * RGB).zip(lower.chunks_exact(2 * RGB));
        for (upper, lower) in pairs {
            for channel in 0..RGB {
                let corners = [upper, lower].map(|row| {
                    let (left, right) = row.split_at(RGB);
                    u16::from(left[channel]) + u16::from(right[channel])
                });
                let average = (corners[0] + corners[1] + 2) / 4;
                out.push(u8::try_from(average).unwrap_or(u8::MAX));
            }
        }
    }
    out
}

/// What both canvases draw in the same way.
struct Area<B: DrawingBackend>(DrawingArea<B, Shift>);

impl<B: DrawingBackend> Area<B> {
    fn rectangle(&self, from: Point, to: Point, color: RGBColor) -> Result<()> {
        let shape = Rectangle::new([fine(from), fine(to)], color.filled());
        self.0.draw(&shape).map_err(failed)
    }

    fn line(&self, points: &[Point], color: RGBColor, width: f64, dash: Option<f64>) -> Result<()> {
        let style = color.stroke_width(pixels(width * FINE));
        let pieces = match dash {
            None => vec![points.to_vec()],
            Some(length) => dashes(points, length),
        };
        for piece in pieces {
            let path: Vec<_> = piece.into_iter().map(fine).collect();
            self.0
                .draw(&PathElement::new(path, style))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// What is behind a centred text.
    fn backing(&self, at: Point, text: &str, style: &Text) -> Result<()> {
        if !style.backed {
            return Ok(());
        }
        let half = style.width(text) / 2.0;
        let from = (at.0 - half, at.1 - style.size * 0.85);
        let to = (at.0 + half, at.1 + style.size * 0.15);
        self.rectangle(from, to, BACKGROUND)
    }

    fn dot(&self, center: Point, radius: f64, color: RGBColor) -> Result<()> {
        let shape = Circle::new(fine(center), pixels(radius * FINE), color.filled());
        self.0.draw(&shape).map_err(failed)
    }
}

struct SvgCanvas<'a>(Area<SVGBackend<'a>>);

impl Canvas for SvgCanvas<'_> {
    fn rectangle(&mut self, from: Point, to: Point, color: RGBColor) -> Result<()> {
        self.0.rectangle(from, to, color)
    }

    fn line(
        &mut self,
        points: &[Point],
        color: RGBColor,
        width: f64,
        dash: Option<f64>,
    ) -> Result<()> {
        self.0.line(points, color, width, dash)
    }

    fn dot(&mut self, center: Point, radius: f64, color: RGBColor) -> Result<()> {
        self.0.dot(center, radius, color)
    }

    /// plotters centres SVG text half an ex above its point.
    fn text(&mut self, at: Point, text: &str, style: &Text) -> Result<()> {
        self.0.backing(at, text, style)?;
        let size = style.size * FINE * SVG_SIZE_PER_EM;
        let align = match style.align {
            Align::Left => HPos::Left,
            Align::Center => HPos::Center,
            Align::Right => HPos::Right,
        };
        let font = FontDesc::new(FontFamily::Name(FAMILY), size, style.font_style());
        let font = TextStyle::from(font)
            .color(&style.color)
            .pos(Pos::new(align, VPos::Center));
        let middle = (at.0, at.1 - style.size * HALF_EX);
        self.0
            .0
            .draw_text(text, &font, fine(middle))
            .map_err(failed)
    }
}

struct BitmapCanvas<'a>(Area<BitMapBackend<'a>>);

impl Canvas for BitmapCanvas<'_> {
    fn rectangle(&mut self, from: Point, to: Point, color: RGBColor) -> Result<()> {
        self.0.rectangle(from, to, color)
    }

    fn line(
        &mut self,
        points: &[Point],
        color: RGBColor,
        width: f64,
        dash: Option<f64>,
    ) -> Result<()> {
        self.0.line(points, color, width, dash)
    }

    fn dot(&mut self, center: Point, radius: f64, color: RGBColor) -> Result<()> {
        self.0.dot(center, radius, color)
    }

    /// Letter by letter, because plotters draws each at the left edge of its place, without the
    /// space the font leaves before it; centring the ink in its place comes close to that.
    fn text(&mut self, at: Point, text: &str, style: &Text) -> Result<()> {
        self.0.backing(at, text, style)?;
        let size = style.size * FINE * FONT_HEIGHT_PER_EM;
        let font = FontDesc::new(FontFamily::Name(FAMILY), size, style.font_style());
        let width = |text: &str| -> Result<i32> {
            let (width, _) = font.box_size(text).map_err(failed)?;
            Ok(i32::try_from(width)?)
        };
        let (x, baseline) = fine(at);
        let start = match style.align {
            Align::Left => x,
            Align::Center => x - width(text)? / 2,
            Align::Right => x - width(text)?,
        };
        // plotters puts the baseline half the size below the point.
        let top = baseline - pixels(size / 2.0).cast_signed();
        for (index, letter) in text.char_indices() {
            let (before, rest) = text.split_at(index);
            let (letter, _) = rest.split_at(letter.len_utf8());
            let mut ink = Vec::new();
            font.draw(letter, (0, 0), |x, y, alpha| {
                ink.push((x, y, alpha));
                Ok::<(), Infallible>(())
            })
            .map_err(failed)??;
            let ink_width = ink.iter().map(|&(x, ..)| x + 1).max().unwrap_or(0);
            // From the width of everything before it, so that roundings do not add up.
            let left = start + width(before)? + (width(letter)? - ink_width) / 2;
            for (x, y, alpha) in ink {
                let color = style.color.mix(f64::from(alpha).clamp(0.0, 1.0));
                let pixel = (left + x, top + y);
                self.0.0.draw_pixel(pixel, &color).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Cuts a polyline into dashes with gaps of two thirds their length.
fn dashes(points: &[Point], length: f64) -> Vec<Vec<Point>> {
    let mut pieces = Vec::new();
    let mut current = Vec::new();
    let mut on = true;
    let mut left = length;
    for pair in points.windows(2) {
        let [(mut x, mut y), to] = [pair[0], pair[1]];
        if on && current.is_empty() {
            current.push((x, y));
        }
        loop {
            let rest = (to.0 - x).hypot(to.1 - y);
            if rest <= left {
                left -= rest;
                if on {
                    current.push(to);
                }
                break;
            }
            (x, y) = (x + (to.0 - x) * left / rest, y + (to.1 - y) * left / rest);
            current.push((x, y));
            if on {
                pieces.push(std::mem::take(&mut current));
            }
            on = !on;
            left = if on { length } else { length * 2.0 / 3.0 };
        }
    }
    if on && current.len() > 1 {
        pieces.push(current);
    }
    pieces
}

fn fine((x, y): Point) -> (i32, i32) {
    #[expect(clippy::cast_possible_truncation, reason = "coordinates of a picture")]
    let whole = |value: f64| (value * FINE).round() as i32;
    (whole(x), whole(y))
}

fn pixels(value: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "lengths in a picture, which are neither large nor negative"
    )]
    let whole = value.round() as u32;
    whole
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

/// How much larger everything is drawn.
const FINE: f64 = 4.0;
/// Bytes per pixel.
const RGB: usize = 3;
/// plotters writes a font size of size / 1.24 into an SVG.
const SVG_SIZE_PER_EM: f64 = 1.24;
/// Ascent and descent together, which is what plotters calls size in a bitmap; DejaVu's.
const FONT_HEIGHT_PER_EM: f64 = 1.164;
/// Of DejaVu and Verdana; Arial's is hardly less.
const HALF_EX: f64 = 0.27;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_averages_squares() {
        let black_and_white = [0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(halved(&black_and_white, 2), [191, 191, 191]);
    }

    #[test]
    fn dashes_leave_gaps_and_go_round_corners() {
        let straight = dashes(&[(0.0, 0.0), (25.0, 0.0)], 6.0);
        assert_eq!(straight.len(), 3);
        assert_eq!(straight[1], [(10.0, 0.0), (16.0, 0.0)]);
        let corner = dashes(&[(0.0, 0.0), (3.0, 0.0), (3.0, 20.0)], 6.0);
        assert_eq!(corner[0], [(0.0, 0.0), (3.0, 0.0), (3.0, 3.0)]);
    }

    #[test]
    fn an_svg_has_the_logical_size_and_needs_no_font() {
        let svg = to_svg((100.0, 50.0), |canvas| {
            canvas.text((10.0, 20.0), "a < b", &Text::new(10.0))
        })
        .unwrap();
        assert!(
            svg.contains("width=\"100\" height=\"50\" viewBox=\"0 0 400 200\""),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b"), "{svg}");
    }
}
