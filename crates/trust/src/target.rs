//! What a target says of its bundle, and whether an offer is that.

use std::collections::BTreeMap;

use bundle::{ANY, Digest, MANIFEST_FILE, Manifest};
use serde::{Deserialize, Serialize};

use crate::{Check, Result, TrustError};

/// The key of a target's `custom` object that holds what we say of it.
pub const TARGET_KEY: &str = "espalier";

/// The name of the target that is a bundle's manifest. The manifest holds size and digest of every other file.
#[must_use]
pub fn target_name(digest: &Digest) -> String {
    format!("bundles/{}/{MANIFEST_FILE}", digest.hex())
}

/// A bundle that may be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The length of its manifest, bytes.
    pub length: u64,
    /// The digest of its manifest, which names the bundle.
    pub digest: Digest,
    /// What the owner says of it.
    pub facts: Facts,
}

/// What the owner says of a bundle, in the target's `custom` object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The model's name.
    pub model: String,
    /// The human version.
    pub version: String,
    /// The order of versions.
    pub sequence: u64,
    /// The classes of device that it is for; `any` is all of them.
    pub device_classes: Vec<String>,
}

impl Facts {
    /// What a manifest says of itself.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            model: manifest.name.clone(),
            version: manifest.version.clone(),
            sequence: manifest.sequence,
            device_classes: vec![manifest.device_class.clone()],
        }
    }
}

/// What a device is offered.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The bundle.
    pub digest: Digest,
    /// The model that it is offered as.
    pub model: &'a str,
    /// The sequence that it is offered as.
    pub sequence: u64,
    /// The device's own class.
    pub device_class: &'a str,
}

impl Wanted<'_> {
    /// The target that allows the offer, out of those of targets metadata `version`.
    ///
    /// # Errors
    /// The check that did not pass.
    pub(crate) fn among<'t>(
        &self,
        targets: &'t BTreeMap<String, Target>,
        version: u64,
    ) -> Result<&'t Target> {
        let refuse = |check, reason| Err(TrustError::refused(check, reason));
        let name = target_name(&self.digest);
        let Some(target) = targets.get(&name) else {
            return refuse(
                Check::Target,
                format!("{name} is no target of targets metadata {version}"),
            );
        };
        if target.digest != self.digest {
            let (theirs, ours) = (target.digest, self.digest);
            return refuse(
                Check::Content,
                format!("the target {name} has digest {theirs}, the offer {ours}"),
            );
        }
        let facts = &target.facts;
        if facts.model != self.model || facts.sequence != self.sequence {
            let reason = format!(
                "the target is sequence {} of model {}, the offer sequence {} of {}",
                facts.sequence, facts.model, self.sequence, self.model
            );
            return refuse(Check::Facts, reason);
        }
        let fits = |class: &String| class == ANY || class == self.device_class;
        if !facts.device_classes.iter().any(fits) {
            let (for_classes, ours) = (facts.device_classes.join(", "), self.device_class);
            return refuse(
                Check::DeviceClass,
                format!("the target is for {for_classes}, this device is a {ours}"),
            );
        }
        Ok(target)
    }
}

/// The targets that are bundles. Others, which another tool may have added, are left out.
pub(crate) fn bundles(targets: &tough::schema::Targets) -> BTreeMap<String, Target> {
    let mut found = BTreeMap::new();
    for (name, target) in &targets.targets {
        let facts = target.custom.get(TARGET_KEY);
        let facts = facts.and_then(|facts| Facts::deserialize(facts).ok());
        let digest = <[u8; 32]>::try_from(target.hashes.sha256.as_ref()).map(Digest);
        if let (Some(facts), Ok(digest)) = (facts, digest) {
            let bundle = Target { length: target.length, digest, facts };
            found.insert(name.raw().to_owned(), bundle);
        }
    }
    found
}
