//! Everything that can be said about the settings before anyone connects.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::CertificateDer;

use crate::calendar::date;
use crate::files::{FileError, Part, Settings};
use crate::x509::{self, Facts};

/// How long before its end a certificate is spoken of.
const SOON_S: i64 = 14 * 86_400;
/// Readable by everybody.
const OTHERS_READ: u32 = 0o004;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It works, and should still be seen to.
    Warning,
    /// No connection can be made.
    Problem,
}

/// Something to say about a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// The setting and what is the matter.
    pub error: FileError,
}

/// What a look at the files brought.
#[derive(Debug, Default)]
struct Look {
    findings: Vec<Finding>,
}

/// Everything wrong with the settings, all of it at once. `host` is who is connected to, `user` whom
/// the broker shall take this side for, where that matters; `now` is the Unix time in seconds, none
/// where the clock was never set, and then validity is not judged.
#[must_use]
pub fn examine(
    settings: &Settings,
    host: &str,
    user: Option<&str>,
    now: Option<i64>,
) -> Vec<Finding> {
    let mut look = Look::default();
    look.take(settings.name(host));
    if look.take(settings.roots()).is_some() {
        look.cas(settings, now);
    }
    if let Some(Some((chain, key))) = look.take(settings.identity()) {
        look.identity(settings, &chain, user, now);
        let made = rustls::sign::CertifiedKey::from_der(chain, key, &crate::provider());
        if let Err(error) = made {
            look.problem(settings.unfit(&error));
        }
    } else if let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) {
        // One of the two cannot be read; the other may have something to it as well.
        match settings.read_certificates(Part::Certificate, certificate) {
            Ok(chain) => look.identity(settings, &chain, user, now),
            Err(_) => drop(look.take(settings.read_key(key))),
        }
    }
    if let Some(path) = &settings.key {
        look.guarded(settings, path);
    }
    look.findings.dedup();
    look.findings
}

impl Look {
    fn take<T>(&mut self, result: Result<T, FileError>) -> Option<T> {
        result.map_err(|error| self.problem(error)).ok()
    }

    fn problem(&mut self, error: FileError) {
        self.findings.push(Finding { weight: Weight::Problem, error });
    }

    fn warning(&mut self, error: FileError) {
        self.findings.push(Finding { weight: Weight::Warning, error });
    }

    /// CAs whose time is over; a bundle with one that still holds is of use.
    fn cas(&mut self, settings: &Settings, now: Option<i64>) {
        let (Some(now), Some(path)) = (now, settings.ca.as_deref()) else {
            return;
        };
        let Ok(found) = settings.read_certificates(Part::Ca, path) else {
            return;
        };
        let facts: Vec<Facts> = found.iter().filter_map(|der| x509::read(der)).collect();
        let over: Vec<_> = facts.iter().filter(|facts| facts.not_after < now).collect();
        let Some(last) = over.iter().map(|facts| facts.not_after).max() else {
            return;
        };
        let (count, all) = (over.len(), found.len());
        let at = path.display();
        let what = format!(
            "{count} of {all} certificates in {at} are over, the last since {}",
            date(last)
        );
        let error = settings.error(Part::Ca, what);
        if count == all { self.problem(error) } else { self.warning(error) }
    }

    fn identity(
        &mut self,
        settings: &Settings,
        chain: &[CertificateDer<'_>],
        user: Option<&str>,
        now: Option<i64>,
    ) {
        let at = settings.certificate.as_deref().unwrap_or(Path::new("")).display();
        let of = |what| settings.error(Part::Certificate, what);
        let Some(facts) = chain.first().and_then(|der| x509::read(der)) else {
            return self.problem(of(format!("{at} is no X.509 certificate")));
        };
        if let Some(now) = now {
            let end = date(facts.not_after);
            if now > facts.not_after {
                self.problem(of(format!("{at} expired on {end}; it needs to be renewed")));
            } else if now < facts.not_before {
                let begin = date(facts.not_before);
                let clock = date(now);
                self.problem(of(format!(
                    "{at} is not valid before {begin}, and the clock here says {clock}"
                )));
            } else if now > facts.not_after - SOON_S {
                self.warning(of(format!("{at} expires on {end}; renew it in time")));
            }
        }
        match (user, facts.common_name.as_deref()) {
            (Some(user), Some(name)) if user != name => self.warning(of(format!(
                "{at} is for {name:?}, not for {user:?}; a broker that goes by the certificate's name \
                 (use_identity_as_username) takes this side for {name:?}"
            ))),
            (Some(user), None) => self.warning(of(format!(
                "{at} bears no common name; a broker that goes by it (use_identity_as_username) cannot \
                 take this side for {user:?}"
            ))),
            _ => {}
        }
    }

    fn guarded(&mut self, settings: &Settings, path: &Path) {
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & OTHERS_READ != 0 {
            let what = format!(
                "{at} can be read by everybody on this machine (mode {:03o}); chmod 0600 {at}",
                mode & 0o777,
                at = path.display()
            );
            self.warning(settings.error(Part::Key, what));
        }
    }
}
