//! Text in columns.

/// Where a column's text stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A table: a heading for each column, then rows.
#[derive(Debug)]
pub(crate) struct Columns {
    heads: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    pub(crate) fn new(heads: &[(&'static str, Side)]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells beyond the last column are dropped, missing ones are empty.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines of the table, headings first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = self
            .heads
            .iter()
            .enumerate()
            .map(|(at, (head, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                cells
                    .map(|cell| cell.chars().count())
                    .fold(head.len(), usize::max)
            })
            .collect();
        let line = |cell: &dyn Fn(usize) -> String| {
            let mut line = String::new();
            for (at, (width, (_, side))) in widths.iter().zip(&self.heads).enumerate() {
                if at > 0 {
                    line.push_str("  ");
                }
                let text = cell(at);
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                match side {
                    Side::Left => line.extend([text, pad]),
                    Side::Right => line.extend([pad, text]),
                }
            }
            line.truncate(line.trim_end().len());
            line
        };
        let heads = line(&|at| self.heads.get(at).map_or("", |head| head.0).to_owned());
        let rows = self
            .rows
            .iter()
            .map(|row| line(&|at| row.get(at).cloned().unwrap_or_default()));
        std::iter::once(heads).chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Columns::new(&[("NAME", Side::Left), ("N", Side::Right)]);
        table.row(vec!["a".to_owned(), "100".to_owned()]);
        table.row(vec!["longer".to_owned()]);
        assert_eq!(table.lines(), ["NAME      N", "a       100", "longer"]);
    }
}
