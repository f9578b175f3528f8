//! The functions of templates: Go's (`text/template`, "Functions") and Docker's.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

use super::{TemplateError, is_true, shown};

/// Calls the function `name`.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = |reason: &str| TemplateError::new(format!("`{name}`: {reason}"));
    let text = |n: usize| match arguments.get(n) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => Ok(String::new()),
        Some(other) => Ok(shown(other)),
        None => Err(wrong("an argument is missing")),
    };
    let number = |n: usize| {
        let number = arguments.get(n).and_then(Value::as_u64);
        number.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| wrong("a number is missing"))
    };
    let any = |n: usize| arguments.get(n).ok_or_else(|| wrong("an argument is missing"));
    Ok(match name {
        "json" => any(0)?.to_string().into(),
        "lower" => text(0)?.to_lowercase().into(),
        "upper" => text(0)?.to_uppercase().into(),
        "title" => title(&text(0)?).into(),
        "join" => {
            let items = match any(0)? {
                Value::Array(items) => &items[..],
                Value::Null => &[],
                _ => return Err(wrong("it joins lists only")),
            };
            items.iter().map(shown).collect::<Vec<_>>().join(&text(1)?).into()
        }
        "split" => text(0)?.split(&text(1)?).collect::<Vec<_>>().into(),
        "truncate" => text(0)?.chars().take(number(1)?).collect::<String>().into(),
        "pad" => {
            let (before, behind) = (" ".repeat(number(1)?), " ".repeat(number(2)?));
            format!("{before}{}{behind}", text(0)?).into()
        }
        "len" => match any(0)? {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(fields) => fields.len().into(),
            Value::Null => 0.into(),
            _ => return Err(wrong("it has no length")),
        },
        "index" => index(any(0)?, &arguments[1..])?,
        "slice" => slice(any(0)?, &arguments[1..]).ok_or_else(|| wrong("it is out of range"))?,
        "not" => (!is_true(any(0)?)).into(),
        "eq" => {
            let first = any(0)?;
            any(1)?;
            arguments[1..].iter().any(|other| equal(first, other)).into()
        }
        "ne" => (!equal(any(0)?, any(1)?)).into(),
        "lt" | "le" | "gt" | "ge" => {
            let order = order(any(0)?, any(1)?).ok_or_else(|| wrong("they cannot be compared"))?;
            let holds = match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            };
            holds.into()
        }
        "print" => print(arguments).into(),
        "println" => {
            let words: Vec<String> = arguments.iter().map(shown).collect();
            format!("{}\n", words.join(" ")).into()
        }
        "printf" => printf(&text(0)?, &arguments[1..]).map_err(|reason| wrong(&reason))?.into(),
        _ => return Err(TemplateError::new(format!("there is no function `{name}`"))),
    })
}

fn title(text: &str) -> String {
    let mut starts = true;
    let upper = |c: char| {
        let first = std::mem::replace(&mut starts, c.is_whitespace());
        if first { c.to_uppercase().collect() } else { String::from(c) }
    };
    text.chars().map(upper).collect()
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, TemplateError> {
    let empty = Value::String(String::new());
    let mut value = value;
    for key in keys {
        let found = match (value, key) {
            (Value::Array(items), key) => {
                key.as_u64().and_then(|n| items.get(usize::try_from(n).ok()?))
            }
            // As Go has it for maps of texts: what is not there is empty.
            (Value::Object(fields), Value::String(key)) => Some(fields.get(key).unwrap_or(&empty)),
            (Value::Null, Value::String(_)) => Some(&empty),
            _ => None,
        };
        value = found.ok_or_else(|| {
            TemplateError::new(format!("`index`: `{}` has no `{}`", shown(value), shown(key)))
        })?;
    }
    Ok(value.clone())
}

fn slice(value: &Value, bounds: &[Value]) -> Option<Value> {
    let bound = |n: usize, default: usize| match bounds.get(n) {
        None => Some(default),
        Some(bound) => bound.as_u64().and_then(|n| usize::try_from(n).ok()),
    };
    match value {
        Value::String(text) => Some(text.get(bound(0, 0)?..bound(1, text.len())?)?.into()),
        Value::Array(items) => Some(items.get(bound(0, 0)?..bound(1, items.len())?)?.into()),
        _ => None,
    }
}

fn equal(one: &Value, other: &Value) -> bool {
    one == other || order(one, other) == Some(Ordering::Equal)
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// Blanks stand between two values of which neither is a text.
fn print(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (n, argument) in arguments.iter().enumerate() {
        if n > 0 && !argument.is_string() && !arguments[n - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&shown(argument));
    }
    out
}

/// `%s %v %d %q %%`, with a width and `-`.
fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let left = chars.next_if_eq(&'-').is_some();
        let zeros = chars.next_if_eq(&'0').is_some();
        let mut width = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            width.push(digit);
        }
        let width: usize = width.parse().unwrap_or(0).min(1000);
        let verb = chars.next().ok_or("it ends with `%`")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let argument = arguments.next().ok_or_else(|| format!("`%{verb}` has no argument"))?;
        let shown = match verb {
            's' | 'v' | 'd' => shown(argument),
            'q' => serde_json::Value::from(shown(argument)).to_string(),
            't' if argument.is_boolean() => shown(argument),
            other => return Err(format!("`%{other}` is unknown")),
        };
        // Writing to a string cannot fail.
        let _ = match (left, zeros) {
            (true, _) => write!(out, "{shown:<width$}"),
            (false, true) => write!(out, "{shown:0>width$}"),
            (false, false) => write!(out, "{shown:>width$}"),
        };
    }
    Ok(out)
}
