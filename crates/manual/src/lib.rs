//! Manual pages and shell completions, made from what a program's command line really takes.
//!
//! Each program writes its own through a hidden subcommand, so that what is packaged beside a binary
//! is that binary's. The folder is laid out as `/usr/share` is. Hidden subcommands have no page.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The name of the hidden subcommand that writes them.
pub const SUBCOMMAND: &str = "manual";

/// Arguments of the hidden subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Folder to write `man`, `bash-completion`, `zsh` and `fish` into; made when missing
    pub folder: PathBuf,
}

/// The part of the manual that a program belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Programs for everybody.
    User,
    /// Daemons and what an administrator runs.
    System,
}

/// A file that could not be written.
#[derive(Debug)]
pub struct ManualError {
    path: PathBuf,
    source: io::Error,
}

impl std::fmt::Display for ManualError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write {}: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for ManualError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Section {
    fn number(self) -> &'static str {
        match self {
            Self::User => "1",
            Self::System => "8",
        }
    }
}

/// Writes a page for the program and one for each of its subcommands, and completions for bash, zsh
/// and fish.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write(command: Command, section: Section, arguments: &Arguments) -> Result<(), ManualError> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let share = &arguments.folder;
    let pages = share.join("man").join(format!("man{}", section.number()));
    write_pages(&command, section, &pages)?;
    let name = command.get_name().to_owned();
    for (shell, file) in completion_files(&name) {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut text);
        place(&share.join(file), &text)?;
    }
    Ok(())
}

/// Where the shells look for completions, below `/usr/share`.
fn completion_files(name: &str) -> [(Shell, String); 3] {
    [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/vendor-completions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ]
}

fn write_pages(command: &Command, section: Section, folder: &Path) -> Result<(), ManualError> {
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_pages(subcommand, section, folder)?;
    }
    let page = Man::new(command.clone()).section(section.number());
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text).map_err(|source| ManualError { path: path.clone(), source })?;
    place(&path, &text)
}

fn place(path: &Path, text: &[u8]) -> Result<(), ManualError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .map_err(|source| ManualError { path: path.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn program() -> Command {
        let inner =
            Command::new("inner").about("Goes in").arg(clap::Arg::new("depth").long("depth"));
        let hidden = Command::new("secret").hide(true);
        Command::new("thing").version("1.2").about("A thing").subcommands([inner, hidden])
    }

    #[test]
    fn every_command_that_is_shown_has_a_page_and_every_shell_its_completions() {
        let share = tempfile::tempdir().unwrap();
        let arguments = Arguments { folder: share.path().join("usr/share") };
        write(program(), Section::System, &arguments).unwrap();
        let read = |file: &str| fs::read_to_string(arguments.folder.join(file)).unwrap();
        let page = read("man/man8/thing.8");
        assert!(page.contains(".TH thing 8") && page.contains("A thing"), "{page}");
        assert!(page.contains("inner") && !page.contains("secret"), "{page}");
        assert!(read("man/man8/thing-inner.8").contains("depth"));
        assert!(!arguments.folder.join("man/man8/thing-secret.8").exists());
        for file in [
            "bash-completion/completions/thing",
            "zsh/vendor-completions/_thing",
            "fish/vendor_completions.d/thing.fish",
        ] {
            assert!(read(file).contains("inner"), "{file}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let arguments = Arguments { folder: file.path().join("share") };
        let error = write(program(), Section::User, &arguments).unwrap_err().to_string();
        assert!(error.contains("share/man"), "{error}");
    }
}
