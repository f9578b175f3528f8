//! Dockerfiles as text again, in one form: what was understood can be read, and parsed once more.

use std::fmt::Write as _;
use std::time::Duration;

use rbuild_frontend::instruction::{
    Add, CommandLine, Copy, Healthcheck, HealthcheckCommand, Instruction, Pair, Run, Sources,
    Statement,
};
use rbuild_frontend::source::Text;
use rbuild_frontend::syntax::{Heredoc, Origin};
use rbuild_frontend::{Dockerfile, Stage};
use rbuild_solver::graph::{NetworkMode, SecurityMode};

/// All of `dockerfile`, an instruction a line.
pub(crate) fn dockerfile(dockerfile: &Dockerfile) -> String {
    let mut out = format!("# escape={}\n", dockerfile.escape);
    let escape = dockerfile.escape;
    for argument in &dockerfile.arguments {
        out += &statement(argument, escape);
    }
    for stage in &dockerfile.stages {
        out += &from(stage, escape);
        for line in &stage.statements {
            out += &statement(line, escape);
        }
    }
    out
}

fn from(stage: &Stage, escape: char) -> String {
    let mut line = "FROM".to_owned();
    flag(&mut line, "platform", stage.from.platform.as_ref(), escape);
    rest(&mut line, stage.from.base.as_str());
    if let Some(name) = &stage.from.name {
        let _ = write!(line, " AS {name}");
    }
    comments(&stage.origin) + &ended(&line, escape)
}

/// `line` with its line break. An escape character at its end would continue it: a vertical tab
/// behind that is white space, but none that may stand behind a continuation.
fn ended(line: &str, escape: char) -> String {
    let guard = if line.ends_with(escape) { "\x0b" } else { "" };
    format!("{line}{guard}\n")
}

fn statement(statement: &Statement, escape: char) -> String {
    let instruction = &statement.instruction;
    let mut line = instruction.name().to_owned();
    let mut documents = String::new();
    match instruction {
        Instruction::Add(add) => documents = show_add(&mut line, add, escape),
        Instruction::Copy(copy) => documents = show_copy(&mut line, copy, escape),
        Instruction::Arg(arg) => {
            let shown = arg.declarations.iter().map(|declaration| match &declaration.default {
                Some(default) => format!("{}={}", declaration.name.value, default.value),
                None => declaration.name.value.clone(),
            });
            rest(&mut line, &shown.collect::<Vec<_>>().join(" "));
        }
        Instruction::Cmd(command) | Instruction::Entrypoint(command) => {
            show_command(&mut line, command);
        }
        Instruction::Env(pairs) | Instruction::Label(pairs) => {
            let shown = pairs.iter().map(|Pair { name, value, legacy }| {
                // One blank may be escaped by what is before it; the second is not.
                let separator = if *legacy { "  " } else { "=" };
                format!("{}{separator}{}", name.value, value.value)
            });
            rest(&mut line, &shown.collect::<Vec<_>>().join(" "));
        }
        Instruction::Expose(words) => {
            let words: Vec<&str> = words.iter().map(Text::as_str).collect();
            rest(&mut line, &words.join(" "));
        }
        Instruction::Healthcheck(healthcheck) => show_healthcheck(&mut line, healthcheck),
        Instruction::Maintainer(text)
        | Instruction::StopSignal(text)
        | Instruction::User(text)
        | Instruction::Workdir(text) => rest(&mut line, text.as_str()),
        Instruction::Onbuild(onbuild) => rest(&mut line, &onbuild.expression),
        Instruction::Run(run) => {
            show_run(&mut line, run, escape);
            documents = run.heredocs.iter().map(document).collect();
        }
        Instruction::Shell(texts) | Instruction::Volume(texts) => json(&mut line, texts),
    }
    comments(&statement.origin) + &ended(&line, escape) + &documents
}

fn document(heredoc: &Heredoc) -> String {
    format!("{}{}\n", heredoc.content.value, heredoc.name.value)
}

fn show_copy(line: &mut String, copy: &Copy, escape: char) -> String {
    flag(line, "from", copy.from.as_ref(), escape);
    flag(line, "chown", copy.chown.as_ref(), escape);
    flag(line, "chmod", copy.chmod.as_ref(), escape);
    switch(line, "link", Some(copy.link).filter(|link| *link));
    switch(line, "parents", Some(copy.parents).filter(|parents| *parents));
    copy.exclude.iter().for_each(|text| flag(line, "exclude", Some(text), escape));
    show_sources(line, &copy.sources)
}

fn show_add(line: &mut String, add: &Add, escape: char) -> String {
    flag(line, "chown", add.chown.as_ref(), escape);
    flag(line, "chmod", add.chmod.as_ref(), escape);
    switch(line, "link", Some(add.link).filter(|link| *link));
    flag(line, "checksum", add.checksum.as_ref(), escape);
    switch(line, "keep-git-dir", add.keep_git_dir);
    switch(line, "unpack", add.unpack);
    add.exclude.iter().for_each(|text| flag(line, "exclude", Some(text), escape));
    show_sources(line, &add.sources)
}

/// Appends the sources; returns the documents that follow the line.
fn show_sources(line: &mut String, sources: &Sources) -> String {
    if sources.inline.is_empty() {
        let mut all = sources.paths.clone();
        all.push(sources.destination.clone());
        json(line, &all);
        return String::new();
    }
    let mut documents = String::new();
    for file in &sources.inline {
        let quote = if file.expand { "" } else { "'" };
        let _ = write!(line, " <<{quote}{}{quote}", file.name.value);
        let _ = writeln!(documents, "{}{}", file.data.value, file.name.value);
    }
    for path in sources.paths.iter().chain([&sources.destination]) {
        let _ = write!(line, " {}", path.value);
    }
    documents
}

fn show_run(line: &mut String, run: &Run, escape: char) {
    run.mount_flags.iter().for_each(|text| flag(line, "mount", Some(text), escape));
    match run.network {
        NetworkMode::Default => {}
        NetworkMode::None => line.push_str(" --network=none"),
        NetworkMode::Host => line.push_str(" --network=host"),
    }
    match run.security {
        SecurityMode::Sandbox => {}
        SecurityMode::Insecure => line.push_str(" --security=insecure"),
    }
    for device in &run.devices {
        let _ = write!(line, " --device=name={},required={}", device.name, device.required);
    }
    show_command(line, &run.command);
}

fn show_healthcheck(line: &mut String, healthcheck: &Healthcheck) {
    let Healthcheck::Command(HealthcheckCommand {
        command,
        interval,
        timeout,
        start_period,
        start_interval,
        retries,
    }) = healthcheck
    else {
        line.push_str(" NONE");
        return;
    };
    let mut option = |name: &str, value: &Option<Duration>| {
        if let Some(value) = value {
            let _ = write!(line, " --{name}={}ns", value.as_nanos());
        }
    };
    option("interval", interval);
    option("timeout", timeout);
    option("start-period", start_period);
    option("start-interval", start_interval);
    let _ = write!(line, " --retries={retries} CMD");
    match command {
        CommandLine::Shell(text) => {
            let _ = write!(line, " {}", text.value);
        }
        CommandLine::Exec(arguments) => json(line, arguments),
    }
}

fn show_command(line: &mut String, command: &CommandLine) {
    match command {
        CommandLine::Shell(text) => rest(line, text.as_str()),
        CommandLine::Exec(arguments) => json(line, arguments),
    }
}

/// Appends text that must not be taken for a flag.
fn rest(line: &mut String, text: &str) {
    let guard = if text.starts_with("--") { " --" } else { "" };
    let _ = write!(line, "{guard} {text}");
}

fn json(line: &mut String, texts: &[Text]) {
    let texts: Vec<&str> = texts.iter().map(Text::as_str).collect();
    let _ = write!(line, " {}", serde_json::to_string(&texts).unwrap());
}

fn flag(line: &mut String, name: &str, value: Option<&Text>, escape: char) {
    let Some(value) = value else { return };
    let _ = write!(line, " --{name}=");
    for c in value.value.chars() {
        if c.is_whitespace() || c == escape || matches!(c, '"' | '\'') {
            line.push(escape);
        }
        line.push(c);
    }
}

fn switch(line: &mut String, name: &str, value: Option<bool>) {
    if let Some(value) = value {
        let _ = write!(line, " --{name}={value}");
    }
}

fn comments(origin: &Origin) -> String {
    origin
        .comments
        .iter()
        .fold(String::new(), |lines, comment| lines + "# " + comment.as_str() + "\n")
}
