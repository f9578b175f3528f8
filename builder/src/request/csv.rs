//! Values of flags that hold several fields: `type=oci,dest=out.tar`.
//!
//! They are one line of CSV as Go's `encoding/csv` reads it, since `docker buildx` reads them so: a
//! field that holds a comma or a quote stands in quotes as a whole (`"label=a,b"`), a quote in it is
//! doubled, and a quote anywhere else is an error.

use super::UsageError;

/// The fields of one line of CSV. An empty line has none.
pub(super) fn fields(flag: &'static str, line: &str) -> Result<Vec<String>, UsageError> {
    let wrong = |reason: &str| UsageError::value(flag, line, reason);
    let mut fields = Vec::new();
    let mut rest = line.strip_suffix('\n').unwrap_or(line);
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            None => {
                let (field, behind) = match rest.split_once(',') {
                    Some((field, behind)) => (field, Some(behind)),
                    None => (rest, None),
                };
                if field.contains('"') {
                    return Err(wrong(
                        "a quote stands inside a field that does not begin with one",
                    ));
                }
                (field.to_owned(), behind)
            }
            Some(quoted) => {
                let (field, behind) =
                    quoted_field(quoted).ok_or_else(|| wrong("a quote is not closed"))?;
                match behind.strip_prefix(',') {
                    Some(behind) => (field, Some(behind)),
                    None if behind.is_empty() => (field, None),
                    None => return Err(wrong("something follows a closing quote")),
                }
            }
        };
        fields.push(field);
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(fields),
        }
    }
}

/// A field up to its closing quote, and what stands behind it. `text` begins behind the first quote.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (piece, behind) = rest.split_once('"')?;
        field.push_str(piece);
        match behind.strip_prefix('"') {
            Some(behind) => {
                field.push('"');
                rest = behind;
            }
            None => return Some((field, behind)),
        }
    }
}

/// The fields of `line` as pairs, keys in lower case and without blanks around them.
pub(super) fn pairs(flag: &'static str, line: &str) -> Result<Vec<(String, String)>, UsageError> {
    let pair = |field: String| match field.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_lowercase(), value.to_owned())),
        None => {
            Err(UsageError::value(flag, line, format!("field `{field}` is no `key=value` pair")))
        }
    };
    fields(flag, line)?.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_as_go_does() {
        let check = |line: &str, expected: &[&str]| {
            assert_eq!(fields("-o", line).unwrap(), expected, "{line}");
        };
        check("type=oci,dest=a.tar", &["type=oci", "dest=a.tar"]);
        check("out", &["out"]);
        check("a,", &["a", ""]);
        check(",", &["", ""]);
        check(r#"type=image,"name=a,b",push=true"#, &["type=image", "name=a,b", "push=true"]);
        check(r#""say ""hi""","x""#, &[r#"say "hi""#, "x"]);
        check("\"two\nlines\"", &["two\nlines"]);
        check(" a , b ", &[" a ", " b "]);
    }

    #[test]
    fn refuses_stray_quotes() {
        for wrong in ["", r#"name="a,b""#, r#""a"#, r#""a"b"#, r#"a"b"#] {
            assert!(fields("-o", wrong).is_err(), "{wrong}");
        }
        assert!(pairs("-o", "type=oci,dest").is_err());
    }
}
