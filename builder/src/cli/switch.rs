//! Switches with a truth value: `--pull=true` is `--pull`, and `--pull=false` is as if it were not
//! there. Programs written in Go take their switches so, and scripts for docker say them so.

use std::ffi::OsString;

use clap::ArgAction;

use crate::request::boolean;

/// `arguments` with switches of `commands` bare; the last one that says something of a switch counts.
///
/// A value that is no truth value stays where it is, for whoever reads it next to refuse it.
pub(super) fn bare(commands: &[&clap::Command], arguments: Vec<OsString>) -> Vec<OsString> {
    let is_switch = |name: &str| {
        commands.iter().flat_map(|command| command.get_arguments()).any(|argument| {
            let called = argument.get_long() == Some(name)
                || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name));
            called && matches!(argument.get_action(), ArgAction::SetTrue)
        })
    };
    let mut bare: Vec<OsString> = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            bare.push(argument);
            bare.extend(arguments);
            break;
        }
        let said = argument.to_str().and_then(|text| {
            let (name, value) = text.strip_prefix("--")?.split_once('=')?;
            Some((name, boolean(value)?))
        });
        match said.filter(|(name, _)| is_switch(name)) {
            Some((name, true)) => bare.push(format!("--{name}").into()),
            Some((name, false)) => {
                let on = format!("--{name}");
                bare.retain(|earlier| *earlier != *on);
            }
            None => bare.push(argument),
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn switches_take_truth_values() {
        let command = Cli::command();
        let build = command.find_subcommand("build").unwrap();
        let check = |typed: &str, expected: &str| {
            let arguments = typed.split(' ').map(OsString::from).collect();
            let arguments: Vec<String> =
                bare(&[build], arguments).into_iter().map(|a| a.into_string().unwrap()).collect();
            assert_eq!(arguments.join(" "), expected);
        };
        check("--pull=true --push=1 .", "--pull --push .");
        check("--pull=false --no-cache=F .", ".");
        check("--pull --pull=false . --push=false --push", ". --push");
        check("--pull=maybe --target=true .", "--pull=maybe --target=true .");
        check(
            "--tag true=x --label a=true -- --pull=true",
            "--tag true=x --label a=true -- --pull=true",
        );
    }
}
