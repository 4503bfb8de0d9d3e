//! `espalier trust`: the owner's keys, and the repository that says what devices may install.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::trust::{
    Current, Days, Expiry, Folder, Host, Init, KeyFile, Limits, PublicKey, Trusted, Written, look,
};
use bundle::Digest;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::common::Reporting;

mod root;

/// Arguments of `trust`.
#[derive(Debug, ClapArgs)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  espalier trust init repository
  espalier trust add repository small --class raspberry-pi-4
  espalier trust refresh repository
  espalier trust verify repository --root root.json
  espalier serve --trust repository …

docs/trust.md tells how to keep the root's keys off this machine, and what to do when one is stolen."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key: FILE for its owner alone, FILE.pub for others
    Key(KeyArgs),
    /// Make a repository, and keys for what is signed every day
    Init(InitArgs),
    /// Say what a repository allows, by whose keys and until when
    Show(ShowArgs),
    /// Change, sign and publish the root: who signs what
    Root(root::Args),
    /// Allow devices to install a bundle
    Add(AddArgs),
    /// Allow bundles no more
    Remove(RemoveArgs),
    /// Sign a new timestamp, and what has lived half of its life
    Refresh(ShowArgs),
    /// Look at a repository as a device would that was just given the root
    Verify(VerifyArgs),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust key alice.pem && cat alice.pem.pub")]
struct KeyArgs {
    /// Where the private key goes; nothing may be there
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    reporting: Reporting,
}

/// A repository, and the keys at hand
#[derive(Debug, ClapArgs)]
pub(super) struct At {
    /// The repository's folder
    #[arg(value_name = "REPOSITORY")]
    repository: PathBuf,
    /// The folder of the keys at hand (*.pem) [default: REPOSITORY/keys]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl At {
    pub(super) fn open(&self) -> anyhow::Result<Host> {
        Ok(Host::open(&self.repository, self.keys.as_deref())?)
    }
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier trust init repository
  espalier trust init repository --root-key alice.pem.pub --root-key bob.pem.pub --root-key carol.pem.pub --root-threshold 2

Without --root-key the root's key lies beside the others: good for a trial, and for nothing else.")]
struct InitArgs {
    #[command(flatten)]
    at: At,
    /// A public key of the root; may be repeated
    #[arg(long, value_name = "FILE")]
    root_key: Vec<PathBuf>,
    /// How many of them must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    root_threshold: u64,
    /// How many days a root lasts
    #[arg(long, default_value_t = Days::default().root, value_parser = days())]
    root_days: u32,
    /// How many days targets last
    #[arg(long, default_value_t = Days::default().targets, value_parser = days())]
    targets_days: u32,
    /// How many days a snapshot lasts
    #[arg(long, default_value_t = Days::default().snapshot, value_parser = days())]
    snapshot_days: u32,
    /// How many days a timestamp lasts: how long a device can be shown an old state
    #[arg(long, default_value_t = Days::default().timestamp, value_parser = days())]
    timestamp_days: u32,
    #[command(flatten)]
    reporting: Reporting,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust show repository --json
  espalier trust refresh repository")]
struct ShowArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust add repository small --class raspberry-pi-4 --class raspberry-pi-5")]
struct AddArgs {
    #[command(flatten)]
    at: At,
    /// The bundle's folder
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// A class of device that it is for; may be repeated [default: the manifest's]
    #[arg(long, value_name = "CLASS", value_parser = class)]
    class: Vec<String>,
    #[command(flatten)]
    reporting: Reporting,
}

fn class(text: &str) -> Result<String, String> {
    wire::check_name("device class", text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust remove repository sha256:…")]
struct RemoveArgs {
    #[command(flatten)]
    at: At,
    /// The bundles' digests
    #[arg(value_name = "DIGEST", required = true)]
    digest: Vec<Digest>,
    #[command(flatten)]
    reporting: Reporting,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier trust verify repository --root root.json")]
struct VerifyArgs {
    #[command(flatten)]
    at: At,
    /// The root that devices were given [default: the first]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// What expired metadata is worth: strict or lenient
    #[arg(long, default_value = "strict")]
    expiry: Expiry,
    #[command(flatten)]
    reporting: Reporting,
}

/// Runs `trust`.
///
/// # Errors
/// What is wrong with a key, the repository or the bundle; nothing is changed then.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Key(args) => key(args),
        Command::Init(args) => init(args),
        Command::Show(args) => show(args),
        Command::Root(args) => root::run(args),
        Command::Add(args) => {
            let (target, written) = args.at.open()?.add(&args.bundle, &args.class)?;
            let more = [("target", json!(target))];
            tell_written(&args.reporting, &written, &format!("{target} is allowed"), &more);
            Ok(())
        }
        Command::Remove(args) => {
            let written = args.at.open()?.remove(&args.digest)?;
            let told = format!("{} bundles are allowed no more", args.digest.len());
            tell_written(&args.reporting, &written, &told, &[]);
            Ok(())
        }
        Command::Refresh(args) => {
            let written = args.at.open()?.refresh()?;
            tell_written(&args.reporting, &written, "refreshed", &[]);
            Ok(())
        }
        Command::Verify(args) => verify(args),
    }
}

fn key(args: &KeyArgs) -> anyhow::Result<()> {
    let key = KeyFile::create(&args.file)?;
    let id = key.public().id();
    let path = args.file.display();
    tell(
        &args.reporting,
        &json!({ "key": id, "private": args.file, "public": format!("{path}.pub") }),
        &format!("key {id}: private in {path}, public in {path}.pub"),
    );
    Ok(())
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let keys = args.root_key.iter().map(|path| PublicKey::read(path));
    let init = Init {
        root_keys: keys.collect::<Result<_, _>>()?,
        root_threshold: args.root_threshold,
        days: Days {
            root: args.root_days,
            targets: args.targets_days,
            snapshot: args.snapshot_days,
            timestamp: args.timestamp_days,
        },
    };
    let host = Host::init(&args.at.repository, args.at.keys.as_deref(), &init)?;
    tell_current(&args.reporting, &args.at.repository, &host.current()?);
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    tell_current(&args.reporting, &args.at.repository, &args.at.open()?.current()?);
    Ok(())
}

fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let host = args.at.open()?;
    let path = args.root.clone().unwrap_or_else(|| host.metadata().join("1.root.json"));
    let root = std::fs::read(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_s = since.unwrap_or_default().as_secs();
    let fetch = Arc::new(Folder(host.metadata()));
    let trusted = look(&root, fetch, Limits::default(), args.expiry, now_s)?;
    tell_trusted(&args.reporting, &trusted);
    Ok(())
}

fn tell_trusted(reporting: &Reporting, trusted: &Trusted) {
    let targets: Vec<Value> = trusted
        .targets
        .iter()
        .map(|(name, target)| {
            json!({
                "target": name, "digest": target.digest, "length": target.length,
                "facts": target.facts,
            })
        })
        .collect();
    let answer = json!({
        "versions": trusted.versions, "expires_s": trusted.expires_s, "targets": targets,
        "warnings": trusted.warnings,
    });
    let mut lines = vec![format!("a device trusts it: {} bundles", targets.len())];
    for (role, version) in &trusted.versions {
        lines.push(format!("  {role} {version}"));
    }
    for target in trusted.targets.values() {
        let (facts, digest) = (&target.facts, target.digest);
        let classes = facts.device_classes.join(", ");
        lines.push(format!("  {} {} for {classes}: {digest}", facts.model, facts.sequence));
    }
    lines.extend(trusted.warnings.iter().map(|warning| format!("warning: {warning}")));
    tell(reporting, &answer, &lines.join("\n"));
}

pub(super) fn tell_written(
    reporting: &Reporting,
    written: &Written,
    told: &str,
    more: &[(&str, Value)],
) {
    let mut answer = json!(written);
    if let Some(object) = answer.as_object_mut() {
        object.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    }
    let Written { root, targets, snapshot, timestamp, warnings } = written;
    let mut text = format!(
        "{told}: root {root}, targets {targets}, snapshot {snapshot}, timestamp {timestamp}"
    );
    for warning in warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    tell(reporting, &answer, &text);
}

fn tell_current(reporting: &Reporting, repository: &Path, current: &Current) {
    let mut lines = Vec::new();
    for (role, facts) in &current.roles {
        lines.push(format!(
            "{role} {}: expires {}, {} of {} keys must sign, {} at hand",
            facts.version,
            facts.expires,
            facts.threshold,
            facts.keys.len(),
            facts.at_hand.len()
        ));
        lines.extend(facts.keys.iter().map(|key| format!("  {key}")));
    }
    if current.roles.get(&::trust::Role::Root).is_some_and(|root| !root.at_hand.is_empty()) {
        lines.push("the root's keys are at hand: keep them on another machine".to_owned());
    }
    lines.extend(current.targets.iter().map(|target| format!("allowed: {target}")));
    if let Some(pending) = &current.pending {
        lines.push(root::describe(repository, pending));
    }
    tell(reporting, &json!(current), &lines.join("\n"));
}

pub(super) fn tell(reporting: &Reporting, answer: &Value, text: &str) {
    if reporting.json {
        println!("{answer}");
    } else {
        println!("{text}");
    }
}
