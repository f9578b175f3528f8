//! Text of others, made harmless: what a step prints or a Dockerfile holds must not drive the
//! terminal (move the cursor, set its title, answer for the user).

use std::fmt::Write as _;

/// So many characters in backquotes are shown of what went wrong.
const MOST_QUOTED: usize = 240;

/// Whether `c` could change what the terminal shows elsewhere: control characters, and those that
/// turn the direction of writing.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One line without anything harmful: escape sequences are gone, tabs are blanks, and of what was
/// overwritten after a carriage return only the last is left.
pub fn line(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let text = text.rsplit('\r').next().unwrap_or(text);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => skip_escape(&mut rest, None),
            '\u{9b}' => drop(skip_control_sequence(&mut rest)),
            '\t' => {
                let column = shown.chars().count();
                shown.extend(std::iter::repeat_n(' ', 8 - column % 8));
            }
            '\n' => shown.push(' '),
            c if is_harmful(c) => {}
            c => shown.push(c),
        }
    }
    shown
}

/// What went wrong as one line without anything harmful. Of paths and the like (what stands in
/// backquotes) that are too long to be read, the beginning and the end are left.
pub fn message(text: &str) -> String {
    let text = line(text);
    let mut shown = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some((before, behind)) = rest.split_once('`') {
        let Some((quoted, behind)) = behind.split_once('`') else { break };
        let _ = write!(shown, "{before}`{}`", abridged(quoted, MOST_QUOTED));
        rest = behind;
    }
    shown + rest
}

fn abridged(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most / 2).collect();
    let end: String = text.chars().skip(count - most / 2).collect();
    format!("{start}… ({} more) …{end}", count - most / 2 * 2)
}

/// One line with nothing harmful but colours: for logs, where they are of use.
pub fn colored_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut colored = false;
    let mut rest = text.trim_end_matches(['\r', '\n']).chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => {
                let mut color = String::new();
                skip_escape(&mut rest, Some(&mut color));
                colored |= !color.is_empty();
                shown.push_str(&color);
            }
            '\u{9b}' => drop(skip_control_sequence(&mut rest)),
            '\t' => shown.push(c),
            // What comes after it would be written over what the log says of the step.
            '\r' => shown.push(' '),
            c if is_harmful(c) => {}
            c => shown.push(c),
        }
    }
    if colored {
        shown.push_str("\x1b[0m");
    }
    shown
}

/// Skips what follows an escape character; a sequence that sets colours is given to `color`.
fn skip_escape(rest: &mut std::str::Chars<'_>, color: Option<&mut String>) {
    match rest.next() {
        Some('[') => {
            let sequence = skip_control_sequence(rest);
            if let (Some(color), Some(parameters)) = (color, sequence.strip_suffix('m'))
                && parameters.bytes().all(|b| b.is_ascii_digit() || b == b';' || b == b':')
            {
                *color = format!("\x1b[{sequence}");
            }
        }
        // Strings (titles, hyperlinks, device control) last until BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let mut escaped = false;
            for c in rest.by_ref() {
                if c == '\x07' || c == '\u{9c}' || (escaped && c == '\\') {
                    break;
                }
                escaped = c == '\x1b';
            }
        }
        // Two-character intermediates: ESC ( B and the like.
        Some(' '..='/') => drop(rest.next()),
        _ => {}
    }
}

/// The parameters and the final byte of a control sequence.
fn skip_control_sequence(rest: &mut std::str::Chars<'_>) -> String {
    let mut sequence = String::new();
    for c in rest.by_ref() {
        sequence.push(c);
        if ('\x40'..='\x7e').contains(&c) {
            break;
        }
    }
    sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_is_left() {
        let check = |text: &str, expected: &str| assert_eq!(line(text), expected, "{text:?}");
        check("plain", "plain");
        check("\x1b[31mred\x1b[0m", "red");
        check("\x1b]0;title\x07after", "after");
        check("\x1b]8;;http://h\x1b\\link\x1b]8;;\x1b\\", "link");
        check("\x1b[2J\x1b[1;1Hgone", "gone");
        check("\x1bPq\x1b\\x", "x");
        check("\x1b(Bx", "x");
        check("\u{9b}2Jx", "x");
        check("10%\r50%\r100%", "100%");
        check("done\r\n", "done");
        check("a\tb", "a       b");
        check("a\x08\x07b", "ab");
        check("a\u{202e}b", "ab");
        check("\x1b[", "");
        check("\x1b", "");
        check("a\nb", "a b");
    }

    #[test]
    fn long_paths_lose_their_middle() {
        assert_eq!(message("`a/b` is\nmissing"), "`a/b` is missing");
        let long = format!("cannot read `/start/{}/end`: File name too long", "x/".repeat(2000));
        let short = message(&long);
        assert!(short.starts_with("cannot read `/start/x/x/"), "{short}");
        assert!(short.contains("… (3771 more) …"), "{short}");
        assert!(short.ends_with("/x//end`: File name too long"), "{short}");
        // Nothing else does.
        for whole in ["said a lot; ".repeat(99), format!("a ` in `b/c`: {}", "d ".repeat(300))] {
            assert_eq!(message(&whole), whole);
        }
    }

    #[test]
    fn logs_keep_colours_and_close_them() {
        let check = |text: &str, expected: &str| assert_eq!(colored_line(text), expected);
        check("plain", "plain");
        check("\x1b[1;31mred", "\x1b[1;31mred\x1b[0m");
        check("\x1b[2Jx", "x");
        check("\x1b[>1mx", "x");
        check("\x1b]0;t\x07x", "x");
        check("10%\r50%", "10% 50%");
    }
}
