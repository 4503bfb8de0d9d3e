//! Bundles as archives, and the files of theirs that are read: the self-test and the reference.

use bundle::{Limits, Reference, SelfTest, pack, unpack};

use crate::{Verdict, scratch};

/// What an archive begins with at least.
const TAR_BLOCK: usize = 512;

/// Reads bytes as each of them.
///
/// # Panics
/// When what was accepted is not read back as the same, or when a refused archive left something behind.
pub fn take(bytes: &[u8]) -> Verdict {
    let verdicts = [self_test(bytes), reference(bytes), archive(bytes)];
    verdicts.into_iter().find(|it| *it == Verdict::Accepted).unwrap_or(Verdict::Refused)
}

fn self_test(bytes: &[u8]) -> Verdict {
    let read = SelfTest::from_bytes(bytes);
    if let Ok(test) = &read {
        let written = test.to_bytes().expect("what was read can be written");
        let again = SelfTest::from_bytes(&written).expect("what was written can be read");
        assert_eq!(again.to_bytes().expect("it was read"), written);
    }
    Verdict::of(&read)
}

fn reference(bytes: &[u8]) -> Verdict {
    let read = Reference::from_bytes(bytes);
    if let Ok(reference) = &read {
        let written = reference.to_bytes().expect("what was read can be written");
        let again = Reference::from_bytes(&written).expect("what was written can be read");
        assert_eq!(&again, reference);
        // Where a device's numbers are counted is a cell that there is.
        for feature in reference.tensors.iter().flat_map(|tensor| &tensor.features) {
            for value in [0.0, -1.5, 3.0, f64::MAX, f64::NAN, f64::NEG_INFINITY] {
                assert!(feature.cell(value) < feature.counts.len());
            }
        }
    }
    Verdict::of(&read)
}

fn archive(bytes: &[u8]) -> Verdict {
    if bytes.len() < TAR_BLOCK {
        return Verdict::Refused;
    }
    let folder = scratch();
    let limits = Limits::default();
    let to = folder.path().join("bundle");
    let taken = unpack(bytes, &to, &limits);
    let left = std::fs::read_dir(folder.path()).expect("the folder is ours").count();
    let Ok(bundle) = &taken else {
        assert_eq!(left, 0, "what was refused leaves nothing");
        return Verdict::Refused;
    };
    assert_eq!(left, 1, "the bundle and nothing else");
    let (test, known) = (bundle.selftest(), bundle.reference());
    let mut packed = Vec::new();
    pack(&to, &mut packed).expect("what was unpacked can be packed");
    let again = folder.path().join("again");
    let again =
        unpack(packed.as_slice(), &again, &limits).expect("what was packed can be unpacked");
    assert_eq!(again.digest, bundle.digest);
    let alike =
        [again.selftest().is_ok() == test.is_ok(), again.reference().is_ok() == known.is_ok()];
    assert!(alike.iter().all(|same| *same));
    Verdict::Accepted
}
