//! `perennial completions`: generated from the definitions that parse the command line, so that they cannot differ.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};

/// Print a shell's completions of this command line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  perennial completions bash > ~/.local/share/bash-completion/completions/perennial
  perennial completions zsh > ~/.zfunc/_perennial       # with `fpath+=~/.zfunc` before compinit
  perennial completions fish > ~/.config/fish/completions/perennial.fish")]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "perennial", &mut script);
        output::raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
