//! The command of RUN, CMD, ENTRYPOINT and HEALTHCHECK: a line for the shell, or a list of
//! arguments.

use crate::source::Text;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A line for the shell, which may be empty.
    Shell(Text),
    /// The JSON form: a program and its arguments, run without a shell; may be empty.
    Exec(Vec<Text>),
}
