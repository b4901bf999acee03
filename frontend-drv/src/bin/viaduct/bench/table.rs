//! The results as a table: aligned text for a terminal, Markdown for a README.

use std::fmt::Write;

use super::results::{Results, Row, Side};

/// The whole report for a terminal.
pub(super) fn plain_text(results: &Results) -> String {
    let layout = Layout::of(results);
    let mut text = String::new();
    let _ = writeln!(text, "\n{}", heading(results));
    for rows in sections(results) {
        let cells: Vec<Vec<String>> = rows.iter().map(|row| layout.cells(row)).collect();
        let _ = writeln!(text, "\n{}", section_title(rows));
        aligned(&mut text, &layout.columns, &cells);
    }
    text.push('\n');
    for line in footnotes(results) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The same as Markdown.
pub(super) fn markdown(results: &Results) -> String {
    let layout = Layout::of(results);
    let mut text = format!("{}\n", heading(results));
    for rows in sections(results) {
        let _ = writeln!(text, "\n**{}**\n", section_title(rows));
        let titles: Vec<_> = layout.columns.iter().map(|column| column.title).collect();
        let rules: Vec<_> = layout.columns.iter().map(Column::rule).collect();
        let _ = writeln!(text, "| {} |", titles.join(" | "));
        let _ = writeln!(text, "|{}|", rules.join("|"));
        for row in rows {
            let _ = writeln!(text, "| {} |", layout.cells(row).join(" | "));
        }
    }
    text.push('\n');
    for line in footnotes(results) {
        let _ = writeln!(text, "- {line}");
    }
    text
}

/// One row as a sentence, for the time when it has just been measured.
pub(super) fn one_line(row: &Row) -> String {
    format!(
        "{}, {}: kernel TCP {}, Viaduct {} {}, {} ({}), {} by ring",
        row.title,
        row.placement.title(),
        median(&row.plain),
        median(&row.viaduct),
        row.unit,
        optional(row.ratio, times),
        pair_range(row),
        optional(row.ring_share, percent),
    )
}

/// A number with as many digits as it deserves, thousands set apart.
pub(super) fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && digit != '-' && (whole.len() - index) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// `1.04x`, `12.5x`, `183x`.
pub(super) fn times(ratio: f64) -> String {
    format!("{}x", figure(ratio))
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    right: bool,
}

impl Column {
    fn rule(&self) -> &'static str {
        if self.right { "---:" } else { "---" }
    }
}

/// The columns, which depend on whether there are targets to show.
#[derive(Debug)]
struct Layout {
    columns: Vec<Column>,
    with_target: bool,
}

impl Layout {
    fn of(results: &Results) -> Self {
        let column = |title, right| Column { title, right };
        let with_target = results.rows.iter().any(|row| row.target.is_some());
        let mut columns = vec![
            column("test", false),
            column("placement", false),
            column("kernel TCP", true),
            column("Viaduct", true),
            column("unit", false),
            column("ratio", true),
            column("of pairs", true),
        ];
        if with_target {
            columns.push(column("target", true));
        }
        columns.push(column("by ring", true));
        columns.push(column("busy cores", true));
        columns.push(column("failed", true));
        Self {
            columns,
            with_target,
        }
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells = vec![
            row.title.clone(),
            row.placement.title().to_owned(),
            median(&row.plain),
            median(&row.viaduct),
            row.unit.clone(),
            optional(row.ratio, times),
            pair_range(row),
        ];
        if self.with_target {
            cells.push(target(row));
        }
        cells.push(optional(row.ring_share, percent));
        let busy = |side: &Side| optional(side.busy_cores, |cores| format!("{cores:.2}"));
        cells.push(format!("{} / {}", busy(&row.plain), busy(&row.viaduct)));
        cells.push(row.failures.len().to_string());
        cells
    }
}

fn heading(results: &Results) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let place = if settings.same_host {
        "same host".to_owned()
    } else {
        format!("to {}", settings.address)
    };
    format!(
        "netperf {}, {place}: the same binary over kernel TCP and under Viaduct, in turn, {} s per \
         run. {}, {} cores, Linux {}, {}.",
        settings.netperf_version,
        settings.seconds_per_run,
        machine.cpu_model,
        machine.cores,
        machine.kernel,
        machine.date
    )
}

fn sections(results: &Results) -> impl Iterator<Item = &[Row]> {
    results.rows.chunk_by(|a, b| a.section == b.section)
}

fn section_title(rows: &[Row]) -> &'static str {
    rows.first().map_or("", |row| row.section.title())
}

fn footnotes(results: &Results) -> Vec<String> {
    let mut lines = LEGEND.map(str::to_owned).to_vec();
    for server in &results.netservers {
        let section = server.section.title();
        lines.push(match server.totals {
            Some(totals) => format!(
                "{section}, netserver's side: {} of all bytes by ring; {} connections upgraded, \
                 {} declined.",
                optional(server.ring_share, percent),
                totals.upgraded,
                totals.declined
            ),
            None => format!("{section}, netserver's side: unknown, it left no totals."),
        });
    }
    for row in &results.rows {
        lines.extend(row.failures.iter().map(|failure| {
            format!(
                "FAILED {}, {}, {}, run {}: {}",
                row.title,
                row.placement.title(),
                failure.side,
                failure.run,
                failure.reason
            )
        }));
    }
    lines
}

fn aligned(text: &mut String, columns: &[Column], rows: &[Vec<String>]) {
    let titles: Vec<String> = columns
        .iter()
        .map(|column| column.title.to_owned())
        .collect();
    let lines = || std::iter::once(&titles).chain(rows);
    let widths: Vec<usize> = (0..columns.len())
        .map(|index| {
            lines()
                .filter_map(|line| line.get(index))
                .map(|cell| width(cell))
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    for line in lines() {
        let mut out = String::new();
        for ((cell, column), &wide) in line.iter().zip(columns).zip(&widths) {
            let padding = " ".repeat(wide - width(cell));
            let (before, after) = if column.right {
                (padding.as_str(), "")
            } else {
                ("", padding.as_str())
            };
            let _ = write!(out, "{before}{cell}{after}  ");
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

fn median(side: &Side) -> String {
    optional(side.median, figure)
}

fn pair_range(row: &Row) -> String {
    optional(row.pair_ratio, |range| {
        format!("{}..{}", times(range.min), times(range.max))
    })
}

fn target(row: &Row) -> String {
    let Some(target) = row.target else {
        return String::new();
    };
    let verdict = match row.ratio {
        Some(ratio) if ratio >= target => "met",
        Some(_) => "missed",
        None => UNKNOWN,
    };
    format!("{} {verdict}", times(target))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn optional<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), show)
}

const UNKNOWN: &str = "-";
const LEGEND: [&str; 3] = [
    "Medians; ratio = Viaduct / kernel TCP; of pairs = least and greatest of two runs in turn.",
    "By ring = share of all bytes, counted by the library in netperf, its control connection too.",
    "Busy cores = of the whole machine, kernel TCP / Viaduct.",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::Placement;
    use crate::bench::results::tests::{results, row};

    #[test]
    fn figures_get_the_digits_they_deserve() {
        let shown = [
            0.981,
            9.99,
            10.04,
            99.96,
            100.4,
            1234.5,
            999_999.0,
            1_234_567.0,
        ]
        .map(figure);
        let expected = [
            "0.98",
            "9.99",
            "10.0",
            "100",
            "100",
            "1,234",
            "999,999",
            "1,234,567",
        ];
        assert_eq!(shown, expected);
        assert_eq!(figure(-1234.0), "-1,234");
        assert_eq!(figure(-123.0), "-123");
    }

    #[test]
    fn text_columns_line_up() {
        let rows = vec![
            row("rr", Placement::TwoCores, &[(13_000.0, 2_600_000.0)]),
            row(
                "stream:4k",
                Placement::OneCore,
                &[(17_000.0, 8_500.0), (1.0, 0.0)],
            ),
        ];
        let text = plain_text(&results(rows));
        let lines: Vec<_> = text.lines().collect();
        let title = lines
            .iter()
            .position(|line| line.starts_with("test "))
            .unwrap();
        let end_of = |line: &str, cell: &str| line.find(cell).unwrap() + cell.len();
        assert_eq!(
            end_of(lines[title], "Viaduct"),
            end_of(lines[title + 1], "2,600,000")
        );
        assert_eq!(
            end_of(lines[title], " ratio"),
            end_of(lines[title + 1], "200x")
        );
        assert!(lines[title + 1].contains("2.00x met"));
        assert!(lines[title + 2].contains("0.50x..0.50x"));
        assert!(lines[title + 2].contains("2.00x missed"));
        assert!(lines[title + 1].contains("99.9 %"));
    }

    #[test]
    fn markdown_has_as_many_cells_as_titles() {
        let table = markdown(&results(vec![row(
            "crr",
            Placement::TwoCores,
            &[(1.0, 1.0)],
        )]));
        let bars: Vec<_> = table
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(bars, [12, 12, 12]);
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let line = one_line(&row("rr", Placement::TwoCores, &[(10.0, 0.0)]));
        assert_eq!(
            line,
            "TCP_RR 1 B, two cores: kernel TCP 10.0, Viaduct - trans/s, - (-), - by ring"
        );
    }
}
