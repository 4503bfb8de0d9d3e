//! The few facts of a certificate that people ask about: whose it is and how long it is valid
//! (RFC 5280, section 4.1). Whether it can be trusted is for rustls to say, not for this file.

use crate::calendar;

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The subject's common name, which brokers take for the user's name.
    pub(crate) common_name: Option<String>,
    /// Not valid before, in Unix seconds.
    pub(crate) not_before: i64,
    /// Not valid after, in Unix seconds.
    pub(crate) not_after: i64,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The kinds of text that are plain UTF-8 or a part of it: UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// Reads a DER certificate; none where it is not one.
pub(crate) fn read(der: &[u8]) -> Option<Facts> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let mut body = Der(certificate.expect(SEQUENCE)?);
    if body.peek() == Some(VERSION) {
        body.next()?;
    }
    for _serial_algorithm_issuer in 0..3 {
        body.next()?;
    }
    let mut validity = Der(body.expect(SEQUENCE)?);
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let common_name = common_name(body.expect(SEQUENCE)?);
    Some(Facts { common_name, not_before, not_after })
}

fn common_name(subject: &[u8]) -> Option<String> {
    let mut parts = Der(subject);
    while let Some(part) = parts.expect(SET) {
        let mut attribute = Der(Der(part).expect(SEQUENCE)?);
        let id = attribute.expect(OBJECT_ID)?;
        let (kind, value) = attribute.next()?;
        if id == COMMON_NAME && TEXTS.contains(&kind) {
            return String::from_utf8(value.to_vec()).ok();
        }
    }
    None
}

/// `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ`.
fn time((kind, text): (u8, &[u8])) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |from: usize, to: usize| -> Option<i64> {
        std::str::from_utf8(digits.get(from..to)?).ok()?.parse().ok()
    };
    let (year, rest) = match (kind, digits.len()) {
        (UTC_TIME, 12) => match number(0, 2)? {
            short @ 0..50 => (2000 + short, 2),
            short => (1900 + short, 2),
        },
        (GENERALIZED_TIME, 14) => (number(0, 4)?, 4),
        _ => return None,
    };
    let at = |i: usize| number(rest + 2 * i, rest + 2 * i + 2);
    calendar::unix(year, at(0)?, at(1)?, at(2)?, at(3)?, at(4)?)
}

/// What is left of a row of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value, if it is of that kind.
    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (kind, value) = self.next()?;
        (kind == wanted).then_some(value)
    }

    /// The next value and its kind. Lengths above four bytes are no certificate's.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&kind, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            short @ 0..=0x7f => (usize::from(short), rest),
            long @ 0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                let number = bytes.iter().fold(0_u64, |n, byte| (n << 8) | u64::from(*byte));
                (usize::try_from(number).ok()?, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((kind, value))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn made(name: Option<&str>, until: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["host".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "an organisation");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.not_before = date_time_ymd(2020, 1, 2);
        params.not_after = date_time_ymd(until, 3, 4);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn name_and_validity_are_read_in_both_forms_of_time() {
        for until in [2031, 2061] {
            let facts = read(&made(Some("dévice-1"), until)).unwrap();
            assert_eq!(facts.common_name.as_deref(), Some("dévice-1"));
            assert_eq!(facts.not_before, calendar::unix(2020, 1, 2, 0, 0, 0).unwrap());
            assert_eq!(facts.not_after, calendar::unix(i64::from(until), 3, 4, 0, 0, 0).unwrap());
        }
        assert_eq!(read(&made(None, 2031)).unwrap().common_name, None);
    }

    #[test]
    fn what_is_cut_short_or_bent_is_no_certificate_and_no_crash() {
        let whole = made(Some("d"), 2031);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        for place in 0..whole.len() {
            let mut bent = whole.clone();
            bent[place] ^= 0xff;
            let _ = read(&bent);
        }
    }
}
