//! The program: reads the command line, does what it says, draws the error, picks the exit code.

use std::process::ExitCode;

use rbuild::cli;
use rbuild::command;
use rbuild::request::Environment;

fn main() -> ExitCode {
    // A sandbox starts this program again: before anything else happens in it.
    rbuild_solver::sandbox::namespaces::serve_when_asked();
    rbuild_solver::sandbox::namespaces::raise_open_files();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // Help and the version are no errors to clap's users: they go to stdout with code 0.
        Err(answer) => {
            // A reader that went away has seen enough.
            let _ = answer.print();
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2));
        }
    };
    let environment = Environment::of_process();
    command::log(cli.global.debug);
    match command::run(&cli, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let drawing = error.draw(environment.shows_colors());
            // Without stderr the exit code has to tell.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), drawing.as_bytes());
            ExitCode::from(error.kind.exit_code())
        }
    }
}
