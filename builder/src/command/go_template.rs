//! `--format`: Go templates (`text/template`) over JSON, with the functions that Docker's command
//! line adds (docker/cli, `templates/templates.go`).
//!
//! All of the language that people write on a command line is here: fields, variables, pipelines,
//! `if`, `with`, `range`, literals and functions. Named templates (`define`, `block`, `template`),
//! `break` and `continue` are refused by name. What is not in the data is an error that names what
//! is, where Go would print `<no value>` or nothing; but for what users name themselves (labels),
//! and for fields that who runs the template says are just unset.

mod function;
mod parse;

use serde_json::Value;

use parse::{Branch, Command, Node, Operand, Pipeline};

/// A template, parsed.
#[derive(Clone, Debug)]
pub(super) struct GoTemplate {
    nodes: Vec<Node>,
    unset: &'static [(&'static str, &'static str)],
}

/// Objects whose fields users name: that one is missing is no mistake in a template.
const NAMED_BY_USERS: [&str; 2] = ["Labels", "Annotations"];

/// Says what is wrong with a template, or what it asks for that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct TemplateError(String);

impl TemplateError {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl GoTemplate {
    /// Reads a template; `\t` and `\n` stand for what they mean, as in Docker's command line.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        Ok(Self { nodes: parse::parse(&text)?, unset: &[] })
    }

    /// With fields that may be unset, and what Go prints then for what they are: `[]` for a list.
    /// Elsewhere such a field is null.
    pub(super) fn with_unset(self, unset: &'static [(&'static str, &'static str)]) -> Self {
        Self { unset, ..self }
    }

    /// What it makes of `data`.
    pub(super) fn run(&self, data: &Value) -> Result<String, TemplateError> {
        let variables = vec![("$".to_owned(), data.clone())];
        let mut run = Run { out: String::new(), variables, unset: self.unset };
        run.nodes(&self.nodes, data)?;
        Ok(run.out)
    }
}

struct Run {
    out: String,
    /// Innermost last.
    variables: Vec<(String, Value)>,
    unset: &'static [(&'static str, &'static str)],
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.declares.is_empty() && !pipeline.assigns {
                        match self.shown_unset(pipeline, &value) {
                            Some(text) => self.out.push_str(text),
                            None => self.out.push_str(&shown(&value)),
                        }
                    }
                }
                Node::If(branch) => {
                    let value = self.scoped(|run| run.pipeline(&branch.pipeline, dot))?;
                    self.branch(branch, is_true(&value), dot, dot, None)?;
                }
                Node::With(branch) => {
                    let value = self.scoped(|run| run.pipeline(&branch.pipeline, dot))?;
                    let variable = branch.pipeline.declares.first();
                    let declared = variable.map(|name| (name.clone(), value.clone()));
                    self.branch(branch, is_true(&value), &value, dot, declared)?;
                }
                Node::Range(branch) => self.range(branch, dot)?,
            }
        }
        Ok(())
    }

    /// What is printed of a field that is unset.
    fn shown_unset(&self, pipeline: &Pipeline, value: &Value) -> Option<&'static str> {
        let [Command(operands)] = &pipeline.commands[..] else { return None };
        let ([Operand::Field(path) | Operand::Variable(_, path) | Operand::Group(_, path)], true) =
            (&operands[..], value.is_null())
        else {
            return None;
        };
        let name = path.last()?;
        self.unset.iter().find(|(unset, _)| unset == name).map(|(_, shown)| *shown)
    }

    fn branch(
        &mut self,
        branch: &Branch,
        taken: bool,
        inner: &Value,
        outer: &Value,
        declared: Option<(String, Value)>,
    ) -> Result<(), TemplateError> {
        self.scoped(|run| {
            if taken {
                run.variables.extend(declared);
                run.nodes(&branch.then, inner)
            } else {
                run.nodes(&branch.otherwise, outer)
            }
        })
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<(), TemplateError> {
        let over = self.scoped(|run| run.pipeline(&branch.pipeline, dot))?;
        let items: Vec<(Value, Value)> = match over {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(n, item)| (Value::from(n), item)).collect()
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.into_iter().collect();
                fields.sort_by(|(one, _), (other, _)| one.cmp(other));
                fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()
            }
            Value::Null => Vec::new(),
            other => {
                return Err(TemplateError::new(format!(
                    "`range` cannot go over `{}`",
                    shown(&other)
                )));
            }
        };
        if items.is_empty() {
            return self.scoped(|run| run.nodes(&branch.otherwise, dot));
        }
        for (key, item) in items {
            self.scoped(|run| {
                match &branch.pipeline.declares[..] {
                    [] => {}
                    [one] => run.variables.push((one.clone(), item.clone())),
                    [first, second, ..] => {
                        run.variables.push((first.clone(), key));
                        run.variables.push((second.clone(), item.clone()));
                    }
                }
                run.nodes(&branch.then, &item)
            })?;
        }
        Ok(())
    }

    /// Runs `work`; the variables that it declares end with it.
    fn scoped<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        let known = self.variables.len();
        let done = work(self);
        self.variables.truncate(known);
        done
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, piped, dot)?);
        }
        let value = piped.unwrap_or(Value::Null);
        match &pipeline.declares[..] {
            [name] if pipeline.assigns => {
                let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                let (_, known) = known.ok_or_else(|| undefined(name))?;
                *known = value.clone();
            }
            [name] => self.variables.push((name.clone(), value.clone())),
            _ => {}
        }
        Ok(value)
    }

    fn command(
        &mut self,
        command: &Command,
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        let (first, rest) = command.0.split_first().expect("the parser leaves no command empty");
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err(TemplateError::new(format!(
                    "`{first}` is no function, and takes no arguments"
                )));
            }
            return self.operand(first, dot);
        };
        // Go evaluates no more of these than it needs.
        if let "and" | "or" = name.as_str() {
            let mut last = Value::Null;
            for operand in rest {
                last = self.operand(operand, dot)?;
                if is_true(&last) == (name == "or") {
                    return Ok(last);
                }
            }
            return Ok(piped.unwrap_or(last));
        }
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            arguments.push(self.operand(operand, dot)?);
        }
        arguments.extend(piped);
        function::call(name, &arguments)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Field(path) => field(dot, path),
            Operand::Variable(name, path) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = known.ok_or_else(|| undefined(name))?;
                field(value, path)
            }
            Operand::Group(pipeline, path) => {
                let value = self.scoped(|run| run.pipeline(pipeline, dot))?;
                field(&value, path)
            }
            Operand::Function(name) => function::call(name, &[]),
        }
    }
}

fn undefined(name: &str) -> TemplateError {
    TemplateError::new(format!("there is no variable `{name}`"))
}

fn field(value: &Value, path: &[String]) -> Result<Value, TemplateError> {
    let (mut value, mut last) = (value, "");
    for name in path {
        value = match value {
            Value::Object(fields) if NAMED_BY_USERS.contains(&last) => {
                fields.get(name).unwrap_or(&Value::Null)
            }
            Value::Object(fields) => fields.get(name).ok_or_else(|| {
                let there: Vec<&str> = fields.keys().map(String::as_str).collect();
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                TemplateError::new(format!("there is no field `{name}`; fields are: {there}"))
            })?,
            Value::Null => &Value::Null,
            other => {
                return Err(TemplateError::new(format!(
                    "`{}` has no field `{name}`",
                    shown(other)
                )));
            }
        };
        last = name;
    }
    Ok(value.clone())
}

/// What `if` takes for true: anything but false, nothing, 0 and what is empty.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go's `fmt` prints it with `%v`.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let field = |(key, value): (&String, &Value)| format!("{key}:{}", shown(value));
            format!("map[{}]", fields.into_iter().map(field).collect::<Vec<_>>().join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data() -> Value {
        json!({
            "Name": "app", "Tag": "", "Size": 42, "Env": ["A=b", "C=d"],
            "Labels": {"x": "1", "a.b": "2"}, "Config": {"Cmd": null}, "Yes": true,
        })
    }

    #[test]
    fn templates_mean_what_they_mean_in_go() {
        let check = |template: &str, expected: &str| {
            let made = GoTemplate::parse(template).and_then(|template| template.run(&data()));
            assert_eq!(made.unwrap_or_else(|e| format!("error: {e}")), expected, "{template}");
        };
        check("{{.Name}}:{{.Size}}\\t{{.Yes}}", "app:42\ttrue");
        check("a {{- .Name -}} b", "aappb");
        check("{{json .Env}} {{.Env | json}}", r#"["A=b","C=d"] ["A=b","C=d"]"#);
        check("{{.Env}} {{.Labels}}", "[A=b C=d] map[a.b:2 x:1]");
        check("{{range .Env}}<{{.}}>{{end}}", "<A=b><C=d>");
        check("{{range $i, $e := .Env}}{{if $i}}, {{end}}{{$i}}={{$e}}{{end}}", "0=A=b, 1=C=d");
        check("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a.b=2;x=1;");
        check("{{range .Config.Cmd}}x{{else}}none{{end}}", "none");
        check("{{if .Tag}}t{{else if .Name}}n{{else}}x{{end}}", "n");
        check("{{if and .Yes (eq .Size 42)}}both{{end}}", "both");
        check("{{if not .Tag}}untagged{{end}}", "untagged");
        check("{{with .Config}}{{.Cmd}} {{$.Name}}{{end}}", "<no value> app");
        check("{{index .Env 1}} {{index .Labels \"a.b\"}}", "C=d 2");
        check("{{len .Env}} {{join .Env \",\"}} {{upper .Name}}", "2 A=b,C=d APP");
        check("{{$x := .Name}}{{$x = \"y\"}}{{$x}}", "y");
        check(
            "{{printf \"%-5s|%5d|%q|%v%%\" .Name .Size .Name .Yes}}",
            "app  |   42|\"app\"|true%",
        );
        check("{{split \"a,b\" \",\"}} {{title \"ab cd\"}} {{truncate .Name 2}}", "[a b] Ab Cd ap");
        check("{{pad .Name 1 2}}|", " app  |");
        check("{{println .Name}}", "app\n");
        check("{{/* nothing */}}{{`raw`}}", "raw");
        check("{{(index .Env 0)}}", "A=b");
        check("<{{index .Labels \"y\"}}> <{{index .Config.Cmd \"y\"}}>", "<> <>");
        check("{{.Labels.x}} {{.Labels.y}}", "1 <no value>");
        check("{{len .Config.Cmd}} <{{join .Config.Cmd \" \"}}>", "0 <>");
        check("{{slice .Name 1 3}} {{gt .Size 41}} {{ne .Name \"a\"}}", "pp true true");
    }

    #[test]
    fn what_is_unset_is_shown_as_what_it_is() {
        let check = |template: &str, expected: &str| {
            let template = GoTemplate::parse(template).unwrap().with_unset(&[("Cmd", "[]")]);
            assert_eq!(template.run(&data()).unwrap(), expected);
        };
        check("{{.Config.Cmd}} {{with .Config}}{{.Cmd}}{{end}} {{$.Config.Cmd}}", "[] [] []");
        check("{{json .Config.Cmd}} {{if .Config.Cmd}}x{{end}}", "null ");
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let check = |template: &str, expected: &str| {
            let made = GoTemplate::parse(template).and_then(|template| template.run(&data()));
            assert!(made.as_ref().is_err_and(|e| e.to_string().contains(expected)), "{made:?}");
        };
        check("{{.Nam}}", "there is no field `Nam`; fields are: Name, Tag");
        check("{{.Name.X}}", "has no field `X`");
        check("{{$x}}", "there is no variable `$x`");
        check("{{frob .Name}}", "there is no function `frob`");
        check("{{.Name", "is not closed");
        check("{{if .Name}}x", "`{{end}}` is missing");
        check("{{end}}", "`{{end}}` ends nothing");
        check("{{define \"x\"}}{{end}}", "`define`");
        check("{{}}", "is empty");
        check("{{index .Env 7}}", "7");
    }
}
