//! What a failed handshake means: which side refused, and why.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use rustls::AlertDescription as Alert;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, InvalidMessage};

use crate::calendar::date;
use crate::files::Settings;

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// This side, as in "this device".
    pub here: &'a str,
    /// The other side, as in "the broker 10.0.0.1:8883".
    pub there: &'a str,
    /// What the connection is made with.
    pub settings: &'a Settings,
}

/// Which side refused and why, where the error has a TLS error in it.
#[must_use]
pub fn explain(error: &(dyn Error + 'static), parties: Parties<'_>) -> Option<String> {
    let error = find(error)?;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => unsure(why, parties),
        rustls::Error::AlertReceived(alert) => refused(*alert, parties),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!("{} does not speak TLS: is the port the right one?", parties.there)
        }
        other => format!("no TLS with {}: {other}", parties.there),
    })
}

/// The TLS error in an error. IO errors carry others within them, beside what they give as their source.
pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

/// This side does not trust the other.
fn unsure(why: &CertificateError, parties: Parties<'_>) -> String {
    let Parties { here, there, settings } = parties;
    let ca = settings.ca_file().display();
    let why = match why {
        CertificateError::ExpiredContext { time, not_after } => {
            format!("it expired on {}, and the clock here says {}", told(not_after), told(time))
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "it is not valid before {}, and the clock here says {}; was the clock ever set?",
            told(not_before),
            told(time)
        ),
        CertificateError::UnknownIssuer => {
            format!("none of the CAs in {ca} ({}) signed it", settings.names.ca)
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "it is for {}, not for {} ({} can name another)",
            names(presented),
            expected.to_str(),
            settings.names.server_name
        ),
        other => other.to_string(),
    };
    format!("{here} refuses the certificate of {there}: {why}")
}

/// The other side does not trust this one.
fn refused(alert: Alert, parties: Parties<'_>) -> String {
    let Parties { here, there, settings } = parties;
    let (certificate, key) = (settings.names.certificate, settings.names.key);
    let sent = settings.certificate.is_some();
    let why = match alert {
        Alert::CertificateRequired | Alert::HandshakeFailure | Alert::NoCertificate if !sent => {
            format!("it may want a certificate, and none is set ({certificate}, {key})")
        }
        Alert::CertificateExpired => format!("the certificate of {certificate} is over for it"),
        Alert::CertificateRevoked => format!("the certificate of {certificate} is revoked"),
        Alert::UnknownCA => {
            format!("it does not know the CA that signed the certificate of {certificate}")
        }
        Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate => {
            format!("it does not take the certificate of {certificate}")
        }
        Alert::UnrecognisedName => {
            format!("it does not go by that name ({})", settings.names.server_name)
        }
        Alert::ProtocolVersion => {
            "no version of TLS is known to both (1.2 and 1.3 here)".to_owned()
        }
        _ => "its log may say more".to_owned(),
    };
    format!("{there} refuses {here}: {why} (TLS alert {alert:?})")
}

fn told(time: &UnixTime) -> String {
    date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// The first few names of a certificate, as rustls gives them: `DnsName("host")`.
fn names(presented: &[String]) -> String {
    const MOST: usize = 4;
    if presented.is_empty() {
        return "no host at all (it has no subjectAltName)".to_owned();
    }
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
        inner.trim_end_matches(')').trim_matches('"').to_owned()
    };
    let mut text = presented.iter().take(MOST).map(bare).collect::<Vec<_>>().join(", ");
    if presented.len() > MOST {
        let _ = write!(text, " and {} more", presented.len() - MOST);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::files::Names;

    const NAMES: Names = Names {
        ca: "t.ca_file",
        certificate: "t.cert_file",
        key: "t.key_file",
        server_name: "t.name",
    };

    fn said(error: rustls::Error, sent: bool) -> String {
        let certificate = sent.then(|| "c.pem".into());
        let settings = Settings { certificate, names: NAMES, ..Settings::default() };
        let parties = Parties { here: "this device", there: "the broker b:1", settings: &settings };
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        explain(&wrapped, parties).unwrap()
    }

    #[test]
    fn the_side_that_refuses_and_its_reason_are_told() {
        let alert = |alert| rustls::Error::AlertReceived(alert);
        let at = |s| UnixTime::since_unix_epoch(std::time::Duration::from_secs(s));
        let expired = CertificateError::ExpiredContext { time: at(86_400), not_after: at(0) };
        for (error, sent, parts) in [
            (alert(Alert::UnknownCA), true, ["the broker b:1 refuses this device", "t.cert_file"]),
            (
                alert(Alert::CertificateRequired),
                false,
                ["refuses this device", "none is set (t.cert_file"],
            ),
            (alert(Alert::CertificateExpired), true, ["refuses this device", "is over"]),
            (
                rustls::Error::InvalidCertificate(expired),
                false,
                ["this device refuses the certificate of the broker b:1", "expired on 1970-01-01"],
            ),
            (
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
                false,
                ["this device refuses", "/etc/ssl/certs/ca-certificates.crt (t.ca_file)"],
            ),
        ] {
            let text = said(error, sent);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn an_error_that_is_none_of_tls_is_not_explained() {
        let settings = Settings::default();
        let parties = Parties { here: "h", there: "t", settings: &settings };
        assert_eq!(explain(&io::Error::other("x"), parties), None);
        assert_eq!(explain(&io::Error::from(io::ErrorKind::NotFound), parties), None);
    }
}
