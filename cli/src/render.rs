//! Prints results: a table for people, JSON or YAML for programs.
//!
//! Every command has one value that serialises; the table is only another view of it, so the three
//! formats cannot disagree. Colour is never used, so `NO_COLOR` holds by construction.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Kind};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// A result that can be shown to people.
pub(crate) trait Show: Serialize {
    /// The human view; ends without a line break.
    fn table(&self) -> String;
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints to standard output in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// The chosen format.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Prints one result.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn show(&self, value: &impl Show) -> Result<(), Failure> {
        let text = text_of(self.format, value)?;
        writeln!(io::stdout(), "{text}")
            .map_err(|error| Failure::new(Kind::Error, "print the result").because(error))
    }
}

fn text_of(format: Format, value: &impl Show) -> Result<String, Failure> {
    let failed = |error: String| Failure::new(Kind::Error, "render the result").because(error);
    match format {
        Format::Table => Ok(value.table()),
        Format::Json => {
            serde_json::to_string_pretty(value).map_err(|error| failed(error.to_string()))
        }
        Format::Yaml => serde_saphyr::to_string(value)
            .map(|text| text.trim_end().to_owned())
            .map_err(|error| failed(error.to_string())),
    }
}

/// A table in the house style: headed columns, no frame, cut by no width.
pub(crate) fn columns<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Sample {
        name: String,
        size_bytes: u64,
    }

    impl Show for Sample {
        fn table(&self) -> String {
            columns(["NAME", "SIZE"], [[self.name.clone(), self.size_bytes.to_string()]])
        }
    }

    #[test]
    fn the_three_formats_show_the_same_value() {
        let sample = Sample { name: "demo".to_owned(), size_bytes: 4096 };
        assert_eq!(text_of(Format::Table, &sample).unwrap(), "NAME  SIZE\ndemo  4096");
        assert_eq!(
            text_of(Format::Json, &sample).unwrap(),
            "{\n  \"name\": \"demo\",\n  \"size_bytes\": 4096\n}"
        );
        assert_eq!(text_of(Format::Yaml, &sample).unwrap(), "name: demo\nsize_bytes: 4096");
    }
}
