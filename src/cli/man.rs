//! `perennial man`: manual pages, generated from the definitions that parse the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{Cli, output};

/// Print the manual page, or write one for each command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  perennial man | man -l -
  perennial man --out ~/.local/share/man/man1 && man perennial-clients-add")]
pub(super) struct Man {
    /// Write perennial.1 and a page for each command into this directory, which is made where it is missing.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut root = Cli::command().disable_help_subcommand(true);
        // Gives every command its full name, and the options that all have in common.
        root.build();
        match &self.out {
            None => output::raw(&render(root)?)?,
            Some(folder) => {
                fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
                let pages = write(root, folder)?;
                output::line(format_args!("{pages} pages written to {}", folder.display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the page of a command and those below it, and says how many that were.
fn write(command: clap::Command, folder: &Path) -> anyhow::Result<usize> {
    let below: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    let file = folder.join(Page::new(command.clone()).get_filename());
    fs::write(&file, render(command)?).with_context(|| format!("writing {}", file.display()))?;
    below.into_iter().try_fold(1, |pages, below| Ok(pages + write(below, folder)?))
}

/// The page, with what follows the options left as it is laid out: it is examples and lists.
fn render(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let more = command.get_after_help().map(ToString::to_string);
    let page = Page::new(command.after_help(None::<&str>));
    let mut text = Vec::new();
    page.render(&mut text)?;
    if let Some(more) = more {
        text.extend(format!(".SH NOTES\n.nf\n{}\n.fi\n", escaped(&more)).bytes());
    }
    Ok(text)
}

/// Text as roff takes it: a line that begins with a full stop or an apostrophe would be a request (groff(7)).
fn escaped(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_request_to_roff() {
        assert_eq!(escaped(".so a\n'b \\ -"), "\\&.so a\n\\&'b \\e \\-");
    }
}
