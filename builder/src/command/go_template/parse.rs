//! The grammar of Go templates: text, actions, and what stands in them.

use std::fmt;

use serde_json::Value;

use super::TemplateError;

/// A piece of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    /// `{{pipeline}}`
    Action(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
}

/// What `if`, `with` and `range` have: `else if` is an `if` in `otherwise`.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) then: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// `$a, $b := command | command`
#[derive(Clone, Debug, Default)]
pub(super) struct Pipeline {
    /// The variables in front of `:=` or `=`.
    pub(super) declares: Vec<String>,
    /// It is `=`: the variable is known.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

/// A function and its arguments, or one value.
#[derive(Clone, Debug)]
pub(super) struct Command(pub(super) Vec<Operand>);

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Literal(Value),
    /// `.A.B`; `.` has no path.
    Field(Vec<String>),
    /// `$x.A`
    Variable(String, Vec<String>),
    /// `(pipeline).A`
    Group(Box<Pipeline>, Vec<String>),
    Function(String),
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(value) => write!(f, "{value}"),
            Self::Field(path) => write!(f, ".{}", path.join(".")),
            Self::Variable(name, _) | Self::Function(name) => f.write_str(name),
            Self::Group(..) => f.write_str("(…)"),
        }
    }
}

/// Reads a whole template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let mut pieces = pieces(text)?.into_iter();
    let (nodes, end) = nodes(&mut pieces)?;
    match end {
        Closing::None => Ok(nodes),
        Closing::End => Err(TemplateError::new("`{{end}}` ends nothing")),
        Closing::Else(_) => Err(TemplateError::new("`{{else}}` belongs to nothing")),
    }
}

/// Text, or the inside of an action.
enum Part {
    Text(String),
    Action(Vec<Token>),
}

/// Cuts a template at its actions; `{{-` and `-}}` take the blanks beside them away.
fn pieces(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut trims = false;
    loop {
        let (before, behind) = match rest.split_once("{{") {
            Some((before, behind)) => (before, Some(behind)),
            None => (rest, None),
        };
        let mut before = if trims { before.trim_start() } else { before };
        let Some(mut inside) = behind else {
            parts.push(Part::Text(before.to_owned()));
            return Ok(parts);
        };
        if let Some(trimmed) = inside.strip_prefix('-')
            && trimmed.starts_with(char::is_whitespace)
        {
            before = before.trim_end();
            inside = trimmed;
        }
        parts.push(Part::Text(before.to_owned()));
        if let Some(comment) = inside.trim_start().strip_prefix("/*") {
            let closed = comment.split_once("*/").and_then(|(_, rest)| rest.split_once("}}"));
            let (end, behind) = closed.ok_or_else(|| TemplateError::new("`{{/*` is not closed"))?;
            trims = end.trim() == "-";
            rest = behind;
            continue;
        }
        let (tokens, behind, trim) = tokens(inside)?;
        parts.push(Part::Action(tokens));
        trims = trim;
        rest = behind;
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A name of a function, or a keyword.
    Word(String),
    /// `.A.B`, directly behind what it belongs to where `attached`.
    Field {
        path: Vec<String>,
        attached: bool,
    },
    Variable(String),
    Literal(Value),
    Open,
    Close,
    Pipe,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

/// The tokens up to `}}`, what stands behind it, and whether it was `-}}`.
fn tokens(text: &str) -> Result<(Vec<Token>, &str, bool), TemplateError> {
    let not_closed = || {
        let start: String = text.chars().take(20).collect();
        TemplateError::new(format!("`{{{{{start}` is not closed"))
    };
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let blank = rest.starts_with(char::is_whitespace);
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix("}}") {
            return Ok((tokens, behind, false));
        }
        if blank && let Some(behind) = rest.strip_prefix("-}}") {
            return Ok((tokens, behind, true));
        }
        let first = rest.chars().next().ok_or_else(not_closed)?;
        let attached = !blank && !tokens.is_empty();
        let (token, behind) = match first {
            '(' => (Token::Open, &rest[1..]),
            ')' => (Token::Close, &rest[1..]),
            '|' => (Token::Pipe, &rest[1..]),
            ',' => (Token::Comma, &rest[1..]),
            ':' if rest.starts_with(":=") => (Token::Declare, &rest[2..]),
            '=' => (Token::Assign, &rest[1..]),
            '.' => field(rest, attached),
            '$' => {
                let (name, behind) = word(&rest[1..]);
                (Token::Variable(format!("${name}")), behind)
            }
            '"' => quoted(rest).ok_or_else(not_closed)?,
            '`' => {
                let (raw, behind) = rest[1..].split_once('`').ok_or_else(not_closed)?;
                (Token::Literal(raw.into()), behind)
            }
            c if c.is_ascii_digit() || matches!(c, '-' | '+') => number(rest)?,
            c if c.is_alphabetic() || c == '_' => {
                let (name, behind) = word(rest);
                let token = match name {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    name => Token::Word(name.to_owned()),
                };
                (token, behind)
            }
            other => return Err(TemplateError::new(format!("`{other}` is unexpected"))),
        };
        tokens.push(token);
        rest = behind;
    }
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

/// `.A.B` at the beginning of `text`.
fn field(text: &str, attached: bool) -> (Token, &str) {
    let (mut path, mut rest) = (Vec::new(), text);
    while let Some(behind) = rest.strip_prefix('.') {
        let (name, end) = word(behind);
        if name.is_empty() {
            if path.is_empty() {
                rest = behind;
            }
            break;
        }
        path.push(name.to_owned());
        rest = end;
    }
    (Token::Field { path, attached }, rest)
}

/// A string in quotes, whose escapes are those of JSON as far as people use them.
fn quoted(text: &str) -> Option<(Token, &str)> {
    let mut escaped = false;
    let end = text[1..].char_indices().find_map(|(at, c)| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends.then_some(at + 1)
    })?;
    // A tab or a line break may have come of `\t` and `\n` before.
    let json = text[..=end].replace('\t', "\\t").replace('\n', "\\n");
    Some((Token::Literal(serde_json::from_str(&json).ok()?), &text[end + 1..]))
}

fn number(text: &str) -> Result<(Token, &str), TemplateError> {
    let digits = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
    let (number, rest) = text.split_at(text.find(|c| !digits(c)).unwrap_or(text.len()));
    let value = number.strip_prefix('+').unwrap_or(number).parse::<serde_json::Number>();
    let value = value.map_err(|_| TemplateError::new(format!("`{number}` is no number")))?;
    Ok((Token::Literal(Value::Number(value)), rest))
}

/// What ended a list of nodes.
enum Closing {
    /// The template's end.
    None,
    End,
    /// The tokens behind `else`.
    Else(Vec<Token>),
}

fn nodes(pieces: &mut std::vec::IntoIter<Part>) -> Result<(Vec<Node>, Closing), TemplateError> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Part::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Part::Action(tokens) => tokens,
        };
        let Some(Token::Word(keyword)) = tokens.first() else {
            nodes.push(Node::Action(pipeline(&tokens)?));
            continue;
        };
        let rest = &tokens[1..];
        nodes.push(match keyword.as_str() {
            "end" => return Ok((nodes, Closing::End)),
            "else" => return Ok((nodes, Closing::Else(rest.to_vec()))),
            "if" => Node::If(branch(rest, pieces)?),
            "with" => Node::With(branch(rest, pieces)?),
            "range" => Node::Range(branch(rest, pieces)?),
            "define" | "block" | "template" | "break" | "continue" => {
                return Err(TemplateError::new(format!("rbuild's templates have no `{keyword}`")));
            }
            _ => Node::Action(pipeline(&tokens)?),
        });
    }
    Ok((nodes, Closing::None))
}

fn branch(
    tokens: &[Token],
    pieces: &mut std::vec::IntoIter<Part>,
) -> Result<Branch, TemplateError> {
    let missing = || TemplateError::new("`{{end}}` is missing");
    let pipeline = pipeline(tokens)?;
    let (then, end) = nodes(pieces)?;
    let otherwise = match end {
        Closing::None => return Err(missing()),
        Closing::End => Vec::new(),
        Closing::Else(tokens) => match tokens.split_first() {
            None => match nodes(pieces)? {
                (otherwise, Closing::End) => otherwise,
                (_, Closing::None) => return Err(missing()),
                (_, Closing::Else(_)) => {
                    return Err(TemplateError::new("`{{else}}` stands behind `{{else}}`"));
                }
            },
            Some((Token::Word(word), rest)) if word == "if" => {
                vec![Node::If(branch(rest, pieces)?)]
            }
            Some((Token::Word(word), rest)) if word == "with" => {
                vec![Node::With(branch(rest, pieces)?)]
            }
            Some(_) => return Err(TemplateError::new("only `if` or `with` stand behind `else`")),
        },
    };
    Ok(Branch { pipeline, then, otherwise })
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline, TemplateError> {
    let mut read = Read { tokens, at: 0 };
    let pipeline = read.pipeline()?;
    if read.at < tokens.len() {
        return Err(TemplateError::new("`)` closes nothing"));
    }
    Ok(pipeline)
}

struct Read<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Read<'_> {
    fn pipeline(&mut self) -> Result<Pipeline, TemplateError> {
        let mut pipeline = Pipeline::default();
        let rest = &self.tokens[self.at..];
        let assigns = rest.iter().position(|t| matches!(t, Token::Declare | Token::Assign));
        if let Some(position) = assigns {
            for token in &rest[..position] {
                match token {
                    Token::Variable(name) => pipeline.declares.push(name.clone()),
                    Token::Comma => {}
                    _ => return Err(TemplateError::new("only variables stand in front of `:=`")),
                }
            }
            pipeline.assigns = rest[position] == Token::Assign;
            self.at += position + 1;
        }
        loop {
            pipeline.commands.push(self.command()?);
            match self.tokens.get(self.at) {
                Some(Token::Pipe) => self.at += 1,
                _ => return Ok(pipeline),
            }
        }
    }

    fn command(&mut self) -> Result<Command, TemplateError> {
        let mut operands = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            if matches!(token, Token::Pipe | Token::Close) {
                break;
            }
            self.at += 1;
            operands.push(match token {
                Token::Word(name) => Operand::Function(name.clone()),
                Token::Literal(value) => Operand::Literal(value.clone()),
                Token::Field { path, .. } => Operand::Field(path.clone()),
                Token::Variable(name) => Operand::Variable(name.clone(), self.attached()),
                Token::Open => {
                    let inside = self.pipeline()?;
                    if self.tokens.get(self.at) != Some(&Token::Close) {
                        return Err(TemplateError::new("`(` is not closed"));
                    }
                    self.at += 1;
                    Operand::Group(Box::new(inside), self.attached())
                }
                other => return Err(TemplateError::new(format!("`{other:?}` is unexpected"))),
            });
        }
        if operands.is_empty() {
            return Err(TemplateError::new("an action or a part of it is empty"));
        }
        Ok(Command(operands))
    }

    /// The path directly behind a variable or a group.
    fn attached(&mut self) -> Vec<String> {
        match self.tokens.get(self.at) {
            Some(Token::Field { path, attached: true }) => {
                self.at += 1;
                path.clone()
            }
            _ => Vec::new(),
        }
    }
}
