//! Whether a slim image answers as the full one. What two runs of the full image differ in (dates,
//! tokens, ports) is no difference.

use super::probe::ProbeRun;
use super::report::VerifiedStep;

/// Words that begin a complaint.
const COMPLAINTS: &[&str] = &["error", "traceback", "cannot open", "no such file", "not found"];

/// How much of an answer the report shows, in characters.
const SHOWN: usize = 120;

/// Each step of the probe: what the full image answered twice, and the slim one.
pub(super) fn steps(full: &ProbeRun, again: &ProbeRun, slim: &ProbeRun) -> Vec<VerifiedStep> {
    let none = String::new();
    let answer = |run: &'_ ProbeRun, position: usize| {
        run.steps.get(position).map_or(none.clone(), |(_, answer)| answer.clone())
    };
    let step = |(position, (name, of_full)): (usize, &(String, String))| {
        let (of_again, of_slim) = (answer(again, position), answer(slim, position));
        VerifiedStep {
            name: name.clone(),
            full: shown(of_full),
            slim: if slim.steps.len() > position {
                shown(&of_slim)
            } else {
                slim.failed.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default()
            },
            same: slim.steps.len() > position && is_same(of_full, &of_again, &of_slim),
        }
    };
    full.steps.iter().enumerate().map(step).collect()
}

/// Complaints of the slim image that the full one has not.
pub(super) fn complaints(full: &ProbeRun, again: &ProbeRun, slim: &ProbeRun) -> Vec<String> {
    let is_known = |line: &str| {
        [full, again].iter().any(|run| run.errors.lines().any(|known| is_alike(known, line)))
    };
    let complains = |line: &&str| {
        let line = line.to_lowercase();
        COMPLAINTS.iter().any(|word| line.contains(word))
    };
    let lines = slim.errors.lines().filter(complains).filter(|line| !is_known(line));
    lines.map(str::to_owned).collect()
}

/// Whether `slim` is as `full`, but for what `again` differs from it in.
fn is_same(full: &str, again: &str, slim: &str) -> bool {
    if full == slim || again == slim {
        return true;
    }
    let (full, again, slim) = (words(full), words(again), words(slim));
    if full.len() != again.len() {
        // Nothing but the first line, the status, is comparable.
        let first = |words: &[&str]| -> Vec<String> {
            words.iter().take_while(|word| **word != "\n").map(|word| (*word).to_owned()).collect()
        };
        return first(&full) == first(&slim);
    }
    full.len() == slim.len()
        && full.iter().zip(&again).zip(&slim).all(|((a, b), c)| a != b || a == c)
}

/// Whether two lines differ in numbers only: times, processes.
fn is_alike(one: &str, other: &str) -> bool {
    let plain = |line: &str| -> String { line.chars().filter(|c| !c.is_ascii_digit()).collect() };
    plain(one) == plain(other)
}

/// Words, and what stands between them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let is_of_word = |c: char| c.is_alphanumeric();
    let mut before: Option<char> = None;
    for (at, c) in text.char_indices() {
        let ends = before.is_some_and(|before| !is_of_word(before) || !is_of_word(c));
        if ends {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(c);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

fn shown(answer: &str) -> String {
    let line = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= SHOWN {
        return line;
    }
    line.chars().take(SHOWN).collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_full_runs_differ_in_is_no_difference() {
        let check = |full: &str, again: &str, slim: &str, expected: bool| {
            assert_eq!(is_same(full, again, slim), expected, "{full} {again} {slim}");
        };
        check("200\nhello", "200\nhello", "200\nhello", true);
        check("200\nhello", "200\nhello", "500\nhello", false);
        check("200\ntoken=abc end", "200\ntoken=xyz end", "200\ntoken=123 end", true);
        check("200\ntoken=abc end", "200\ntoken=xyz end", "200\ntoken=123 END", false);
        check("200\na b c", "200\na b", "200\nwhatever", true);
        check("200\na b c", "200\na b", "404\na b c", false);
    }

    #[test]
    fn new_complaints_are_seen() {
        let run = |errors: &str| ProbeRun { errors: errors.into(), ..ProbeRun::default() };
        let full = run("10:01 warning\n10:01 error 5 of old\n");
        let slim = run("10:02 warning\n10:02 error 6 of old\nNo such file: x\nfine\n");
        assert_eq!(complaints(&full, &full, &slim), ["No such file: x"]);
    }
}
