//! `--format` of commands that list: `table`, `table TEMPLATE`, `json` or a Go template a row, as
//! Docker's command line has it (docker/cli, `cli/command/formatter/formatter.go`).

use serde_json::{Map, Value};

use super::go_template::{GoTemplate, TemplateError};
use super::lines;
use crate::error::BuildError;
use crate::progress::harmless;
use crate::request::UsageError;

/// A list: what its rows consist of, and how it is shown if nothing else is asked for.
pub(super) struct Listing {
    /// The fields that a template can name, and their headings.
    pub(super) headings: &'static [(&'static str, &'static str)],
    /// The template of the table.
    pub(super) table: &'static str,
}

impl Listing {
    /// Draws `rows`, objects that have all fields, as `format` says.
    pub(super) fn draw(&self, format: Option<&str>, rows: &[Value]) -> Result<String, BuildError> {
        let wrong = |error: TemplateError| {
            UsageError::value("--format", format.unwrap_or_default(), error.to_string())
        };
        match format.unwrap_or("table") {
            "json" => Ok(lines(rows.iter().map(sorted))),
            "table" => Ok(self.drawn_table(self.table, rows).map_err(wrong)?),
            format => {
                if let Some(template) = format.strip_prefix("table ") {
                    return Ok(self.drawn_table(template, rows).map_err(wrong)?);
                }
                let template = GoTemplate::parse(format).map_err(wrong)?;
                let line = |row| Ok(template.run(&sorted(row))? + "\n");
                let lines: Result<String, _> = rows.iter().map(line).collect();
                Ok(lines.map_err(wrong)?)
            }
        }
    }

    fn drawn_table(&self, template: &str, rows: &[Value]) -> Result<String, TemplateError> {
        let template = GoTemplate::parse(template)?;
        let field = |(name, heading): &(&str, &str)| ((*name).to_owned(), Value::from(*heading));
        let headings: Map<String, Value> = self.headings.iter().map(field).collect();
        let mut lines = vec![template.run(&Value::Object(headings))?];
        for row in rows {
            lines.push(template.run(row)?);
        }
        Ok(aligned(&lines))
    }
}

/// The object with its keys in order, as Go's encoder writes it.
fn sorted(object: &Value) -> Value {
    let Value::Object(fields) = object else { return object.clone() };
    let mut fields: Vec<_> = fields.clone().into_iter().collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    Value::Object(fields.into_iter().collect())
}

/// Lines whose cells are separated by tabs, in columns: three blanks between them, and none
/// narrower than ten characters. What came from outside cannot drive the terminal.
fn aligned(lines: &[String]) -> String {
    let rows: Vec<Vec<String>> =
        lines.iter().map(|line| line.split('\t').map(harmless::line).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = (console::measure_text_width(cell) + 3).max(10);
            match widths.get_mut(column) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    let drawn = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                line.push_str(&" ".repeat(widths[column] - console::measure_text_width(cell)));
            }
        }
        line + "\n"
    };
    rows.iter().map(drawn).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LISTING: Listing = Listing {
        headings: &[("ID", "IMAGE ID"), ("Tag", "TAG")],
        table: "table {{.Tag}}\\t{{.ID}}",
    };

    #[test]
    fn lists_are_drawn_as_asked_for() {
        let rows = [json!({"ID": "abc", "Tag": "v1"}), json!({"ID": "d", "Tag": "a\x1b[2Jb"})];
        let listing = Listing { table: "{{.Tag}}\\t{{.ID}}", ..LISTING };
        let check = |format: Option<&str>, expected: &str| {
            assert_eq!(listing.draw(format, &rows).unwrap(), expected);
        };
        check(None, "TAG       IMAGE ID\nv1        abc\nab        d\n");
        check(Some("table {{.ID}}"), "IMAGE ID\nabc\nd\n");
        check(Some("{{.ID}}={{.Tag}}"), "abc=v1\nd=a\u{1b}[2Jb\n");
        let json = "{\"ID\":\"abc\",\"Tag\":\"v1\"}\n{\"ID\":\"d\",\"Tag\":\"a\\u001b[2Jb\"}\n";
        check(Some("json"), json);
        let reversed = [json!({"Tag": "v1", "ID": "abc"})];
        let line = listing.draw(Some("{{json .}}"), &reversed).unwrap();
        assert_eq!(line, "{\"ID\":\"abc\",\"Tag\":\"v1\"}\n");
        let error = listing.draw(Some("{{.Name}}"), &rows).unwrap_err().to_string();
        assert!(error.contains("no field `Name`; fields are: ID, Tag"), "{error}");
    }
}
