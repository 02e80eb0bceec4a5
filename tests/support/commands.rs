//! The commands, as the program defines them.

use clap::{Command, CommandFactory as _};
use perennial::cli::Cli;

/// Those that have none below them, by their words, and whether each knows `--json`.
pub(crate) fn commands() -> Vec<(String, bool)> {
    let mut found = Vec::new();
    below(&Cli::command(), "", &mut found);
    found
}

fn below(command: &Command, above: &str, found: &mut Vec<(String, bool)>) {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{above} {}", command.get_name()).trim().to_owned();
        if command.has_subcommands() {
            below(command, &name, found);
        } else {
            found.push((name, command.get_arguments().any(|argument| argument.get_id() == "json")));
        }
    }
}
