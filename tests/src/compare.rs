//! Two outputs, line by line.

/// Lines shown of a difference.
const SHOWN: usize = 60;

/// The differences between what a plain run and another one printed; empty if there are none.
///
/// Lines are grouped by their first word (the case), so that a case that ends early does not make
/// every later line differ.
pub fn differences(plain: &str, other: &str) -> String {
    let (plain, other) = (groups(plain), groups(other));
    let mut shown = Vec::new();
    let mut names: Vec<&str> = plain.iter().map(|(name, _)| *name).collect();
    names.extend(
        other
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| lines_of(&plain, name).is_empty()),
    );
    for name in names {
        let (expected, found) = (lines_of(&plain, name), lines_of(&other, name));
        for i in 0..expected.len().max(found.len()) {
            if expected.get(i) != found.get(i) {
                let said =
                    |line: Option<&&str>| line.map_or("(nothing)".to_owned(), |l| (*l).to_owned());
                shown.push(format!(
                    "plain: {}\nother: {}",
                    said(expected.get(i)),
                    said(found.get(i))
                ));
            }
        }
    }
    let total = shown.len();
    shown.truncate(SHOWN);
    if total > shown.len() {
        shown.push(format!("... {total} differences"));
    }
    shown.join("\n")
}

type Groups<'a> = Vec<(&'a str, Vec<&'a str>)>;

fn groups(text: &str) -> Groups<'_> {
    let mut groups: Groups<'_> = Vec::new();
    for line in text.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        match groups.last_mut().filter(|(last, _)| *last == name) {
            Some((_, lines)) => lines.push(line),
            None => groups.push((name, vec![line])),
        }
    }
    groups
}

fn lines_of<'a>(groups: &'a Groups<'_>, name: &str) -> &'a [&'a str] {
    groups
        .iter()
        .find(|(other, _)| *other == name)
        .map_or(&[], |(_, lines)| lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outputs_do_not_differ() {
        assert_eq!(differences("a 1\na 2\nb 1\n", "a 1\na 2\nb 1\n"), "");
    }

    #[test]
    fn a_case_that_ends_early_spoils_no_other() {
        let shown = differences("a 1\na 2\nb 1\n", "a 1\nb 1\n");
        assert_eq!(shown, "plain: a 2\nother: (nothing)");
        let shown = differences("a 1\n", "a 1\nc 1\n");
        assert_eq!(shown, "plain: (nothing)\nother: c 1");
    }
}
