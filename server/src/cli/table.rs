//! Tables as wide as what is in them, and other things for standard output.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::failure::Failure;
use super::human::printable;

/// Spaces between columns.
const GAP: usize = 3;

/// Rows below a line of titles.
#[derive(Debug)]
pub(super) struct Table {
    titles: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(titles: &'static [&'static str]) -> Table {
        Table { titles, rows: Vec::new() }
    }

    /// Adds a row, a cell for each title. What a cell holds is made harmless for a terminal.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.titles.len());
        self.rows.push(cells.into_iter().map(|cell| printable(&cell).into_owned()).collect());
    }

    /// The text, a line for each row. No line ends with spaces.
    pub(super) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.titles.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let titles: Vec<String> = self.titles.iter().map(|title| (*title).to_owned()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                let padding = width + GAP - cell.chars().count();
                write!(line, "{cell}{:padding$}", "").expect("a string takes everything");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Writes a text to standard output. A reader that went away ends us quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Writes a line.
pub(super) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// Writes one JSON document.
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    // Nothing in a value can fail to be written.
    print_line(&serde_json::to_string_pretty(value).unwrap_or_default())
}

/// What came of writing to standard output.
pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(0)),
        Err(error) => Err(Failure::step("write to standard output", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["0123456789ab".into(), "w".into(), String::new()]);
        table.row(["1".into(), "käse".into(), "running".into()]);
        assert_eq!(
            table.render(),
            "ID             NAME   STATE\n\
             0123456789ab   w\n\
             1              käse   running\n"
        );
    }

    #[test]
    fn no_rows_are_the_titles_alone() {
        assert_eq!(Table::new(&["A", "B"]).render(), "A   B\n");
    }

    #[test]
    fn a_cell_cannot_break_its_line() {
        let mut table = Table::new(&["A"]);
        table.row(["x\n\u{1b}[31my".into()]);
        assert_eq!(table.render(), "A\nx\\n\\u{1b}[31my\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = io::Error::from_raw_os_error(libc::EPIPE);
        assert_eq!(written(Err(gone)), Err(Failure::silent(0)));
        let full = written(Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap_err();
        assert_eq!(full.code, 1);
        assert!(full.text.starts_with("write to standard output: No space left"));
    }
}
