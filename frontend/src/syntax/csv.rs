//! Comma-separated fields with quotes, as `--mount` and `--device` have them: one line of CSV.
//!
//! Follows Go's `encoding/csv`, through the `go-csvvalue` of BuildKit.

/// Says what is wrong with a line of fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// There is nothing.
    #[error("EOF")]
    Empty,
    /// A quote inside a field that does not begin with one.
    #[error("parse error on line 1, column {column}: bare \" in non-quoted-field")]
    BareQuote {
        /// Where, in bytes from 1.
        column: usize,
    },
    /// A quote that is not closed, or text behind one that is.
    #[error("parse error on line 1, column {column}: extraneous or missing \" in quoted-field")]
    Quote {
        /// Where, in bytes from 1.
        column: usize,
    },
}

/// The fields of `line` without their quotes, and at which byte each begins.
pub fn fields(line: &str) -> Result<Vec<(usize, String)>, CsvError> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.trim_end_matches('\r'));
    if line.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut fields = Vec::new();
    let mut start = 0;
    loop {
        let rest = &line[start..];
        let (field, length) = if rest.starts_with('"') {
            quoted(line, start)?
        } else {
            let field = rest.split(',').next().unwrap_or_default();
            if let Some(quote) = field.find('"') {
                return Err(CsvError::BareQuote { column: start + quote + 1 });
            }
            (field.to_owned(), field.len())
        };
        fields.push((start, field));
        start += length + 1;
        if start > line.len() {
            return Ok(fields);
        }
    }
}

/// The field that begins with a quote at `start`, and how many bytes it takes, quotes included.
fn quoted(line: &str, start: usize) -> Result<(String, usize), CsvError> {
    let mut field = String::new();
    let mut at = start + 1;
    loop {
        let Some(quote) = line[at..].find('"').map(|quote| at + quote) else {
            return Err(CsvError::Quote { column: at + 1 });
        };
        field.push_str(&line[at..quote]);
        match line[quote + 1..].chars().next() {
            Some('"') => field.push('"'),
            None | Some(',') => return Ok((field, quote + 1 - start)),
            Some(_) => return Err(CsvError::Quote { column: quote + 1 }),
        }
        at = quote + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_fields_together() {
        let check = |line: &str, expected: &[(usize, &str)]| {
            let fields = fields(line).unwrap();
            let fields: Vec<_> = fields.iter().map(|(at, field)| (*at, field.as_str())).collect();
            assert_eq!(fields, expected, "{line}");
        };
        check("a=b,c", &[(0, "a=b"), (4, "c")]);
        check("a,", &[(0, "a"), (2, "")]);
        check("\"a,b\",c", &[(0, "a,b"), (6, "c")]);
        check("\"a\"\"b\"", &[(0, "a\"b")]);
        check("\"\"", &[(0, "")]);
    }

    #[test]
    fn quotes_elsewhere_are_refused() {
        let check = |line: &str, expected| assert_eq!(fields(line), Err(expected), "{line}");
        check("", CsvError::Empty);
        check("a\"b\"", CsvError::BareQuote { column: 2 });
        check("\"a", CsvError::Quote { column: 2 });
        check("\"a\"b", CsvError::Quote { column: 3 });
    }
}
