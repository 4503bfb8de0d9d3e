//! `espalier trust root`: who signs what.

use std::path::{Path, PathBuf};

use ::trust::{Edit, KeyFile, PENDING, Pending, PublicKey, Role, sign_root};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;

use super::{At, tell, tell_written};
use crate::cli::common::Reporting;

/// Arguments of `trust root`.
#[derive(Debug, ClapArgs)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  espalier trust root rotate repository timestamp --new new.pem.pub
  espalier trust root sign root.pending.json --key alice.pem       (on Alice's machine)
  espalier trust root publish repository --from root.pending.json"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sign a root in a file, on whatever machine; signatures are gathered in the file
    Sign(SignArgs),
    /// Put a key in the place of another, in the next root
    Rotate(RotateArgs),
    /// Give a role another key, in the next root
    AddKey(AddKeyArgs),
    /// Take a key from a role, in the next root
    RemoveKey(RemoveKeyArgs),
    /// Say how many of a role's keys must sign, in the next root
    Threshold(ThresholdArgs),
    /// Make a next root that only lasts longer
    Renew(RenewArgs),
    /// Publish the next root once enough keys have signed it
    Publish(PublishArgs),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root sign root.pending.json --key alice.pem")]
struct SignArgs {
    /// The file with the root: a copy of REPOSITORY/root.pending.json
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A private key; may be repeated
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<PathBuf>,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root rotate repository timestamp --new repository/keys/new.pem.pub")]
struct RotateArgs {
    #[command(flatten)]
    at: At,
    /// root, targets, snapshot or timestamp
    role: Role,
    /// The new public key
    #[arg(long, value_name = "FILE")]
    new: PathBuf,
    /// The id of the old one, or its beginning [default: all that the role has]
    #[arg(long, value_name = "ID")]
    old: Option<String>,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root add-key repository root dave.pem.pub")]
struct AddKeyArgs {
    #[command(flatten)]
    at: At,
    /// root, targets, snapshot or timestamp
    role: Role,
    /// The public key
    #[arg(value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root remove-key repository root 4f3c91")]
struct RemoveKeyArgs {
    #[command(flatten)]
    at: At,
    /// root, targets, snapshot or timestamp
    role: Role,
    /// The key's id, or its beginning
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root threshold repository root 2")]
struct ThresholdArgs {
    #[command(flatten)]
    at: At,
    /// root, targets, snapshot or timestamp
    role: Role,
    /// How many must sign
    #[arg(value_name = "N")]
    threshold: u64,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
struct RenewArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust root publish repository --from root.pending.json")]
struct PublishArgs {
    #[command(flatten)]
    at: At,
    /// A copy of the next root that was signed elsewhere
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    reporting: Reporting,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Sign(args) => sign(args),
        Command::Rotate(args) => {
            let edit = Edit::Rotate(args.role, args.old.clone(), PublicKey::read(&args.new)?);
            edited(&args.at, &args.reporting, edit)
        }
        Command::AddKey(args) => {
            let edit = Edit::AddKey(args.role, PublicKey::read(&args.key)?);
            edited(&args.at, &args.reporting, edit)
        }
        Command::RemoveKey(args) => {
            edited(&args.at, &args.reporting, Edit::RemoveKey(args.role, args.id.clone()))
        }
        Command::Threshold(args) => {
            edited(&args.at, &args.reporting, Edit::Threshold(args.role, args.threshold))
        }
        Command::Renew(args) => edited(&args.at, &args.reporting, Edit::Renew),
        Command::Publish(args) => {
            let written = args.at.open()?.publish_root(args.from.as_deref())?;
            tell_written(&args.reporting, &written, "published", &[]);
            Ok(())
        }
    }
}

fn sign(args: &SignArgs) -> anyhow::Result<()> {
    let keys = args.key.iter().map(|path| KeyFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let signing = sign_root(&args.file, &keys)?;
    let (have, need) = signing.own;
    let mut text = format!("root {}: signed by {have} of {need} of its own keys", signing.version);
    for (key, _) in signing.keys.iter().filter(|(_, own)| !**own) {
        text.push_str(&format!("\n{key} is none of them: it counts if the root before names it"));
    }
    tell(&args.reporting, &json!(signing), &text);
    Ok(())
}

fn edited(at: &At, reporting: &Reporting, edit: Edit) -> anyhow::Result<()> {
    let pending = at.open()?.edit_root(&[edit])?;
    tell(reporting, &json!(pending), &describe(&at.repository, &pending));
    Ok(())
}

/// What is to be done with the next root.
pub(super) fn describe(repository: &Path, pending: &Pending) -> String {
    let (have, need) = pending.own;
    let before = pending.before.map_or_else(String::new, |(have, need)| {
        format!(" and {have} of {need} of those of the root before it")
    });
    let next = if pending.is_complete() {
        "publish it with `espalier trust root publish`"
    } else {
        "sign it with `espalier trust root sign`"
    };
    format!(
        "root {} is pending in {}, signed by {have} of {need} of its own keys{before}: {next}",
        pending.version,
        repository.join(PENDING).display()
    )
}
