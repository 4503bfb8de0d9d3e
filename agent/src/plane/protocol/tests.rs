#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::super::frames::Frames;
use super::*;

fn example() -> Vec<Message> {
    let tensors = vec![
        ("x".to_owned(), Tensor::from_f32(vec![1, 2], &[1.5, -2.0]).unwrap()),
        ("scalar".to_owned(), Tensor::from_i64(vec![], &[7]).unwrap()),
        ("none".to_owned(), Tensor::from_f32(vec![0, 3], &[]).unwrap()),
    ];
    let port =
        PortSpec { name: "x".to_owned(), dtype: "FP32".to_owned(), dims: vec![None, Some(2)] };
    vec![
        Message::Load(LoadRequest {
            model: "/models/m.onnx".into(),
            engine: "ort".to_owned(),
            threads: 2,
            ort_library: Some("/lib/ort.so".into()),
        }),
        Message::Run { id: 9, tensors: tensors.clone() },
        Message::Loaded(LoadedReply {
            inputs: vec![port.clone()],
            outputs: vec![port],
            engine_version: "ort 1.26.0".to_owned(),
        }),
        Message::LoadFailed(LoadFailure { fault: LoadFault::Model, error: "no".to_owned() }),
        Message::Ran { id: 9, compute_us: 1234, tensors },
        Message::Failed(Failure { id: 9, kind: FailureKind::Engine, error: "no".to_owned() }),
    ]
}

#[test]
fn every_message_survives_the_socket() {
    for message in example() {
        let frame = message.encode().unwrap();
        let mut stream = frame.as_slice();
        let body = read_frame(&mut stream).unwrap().unwrap();
        assert_eq!(Message::decode(&body).unwrap(), message);
        assert!(read_frame(&mut stream).unwrap().is_none(), "one frame only");
    }
}

#[test]
fn a_frame_that_ends_early_is_truncated_wherever_it_ends() {
    for message in example() {
        let frame = message.encode().unwrap();
        for cut in 1..frame.len() {
            let error = read_frame(&mut &frame[..cut]).unwrap_err();
            assert!(matches!(error, FrameError::Truncated { missing } if missing > 0), "{error}");
        }
    }
}

#[test]
fn a_body_that_ends_early_is_malformed_wherever_it_ends() {
    for message in example() {
        let frame = message.encode().unwrap();
        for cut in 4..frame.len() {
            assert!(Message::decode(&frame[4..cut]).is_err(), "{message:?} cut at {cut}");
        }
    }
}

#[test]
fn an_announced_length_over_the_limit_is_refused_before_it_is_read() {
    let frame = u32::MAX.to_le_bytes();
    let error = read_frame(&mut frame.as_slice()).unwrap_err();
    assert!(error.to_string().contains("MAX_FRAME_BYTES"), "{error}");
}

#[test]
fn what_is_announced_inside_a_frame_is_checked_before_it_is_allocated() {
    let run = |rest: &[u8]| {
        let mut body = vec![RUN];
        body.extend_from_slice(&1_u64.to_le_bytes());
        body.extend_from_slice(rest);
        Message::decode(&body).unwrap_err().to_string()
    };
    assert!(run(&[255, 255]).contains("65535 tensors"));
    assert!(run(&[1, 0, 255, 255]).contains("a name of 65535 bytes"));
    assert!(run(b"\x01\0\x01\0\xff\x04FP32").contains("not UTF-8"));
    assert!(run(b"\x01\0\x01\0x\x04FP99").contains("unknown data type `FP99`"));
    assert!(run(b"\x01\0\x01\0x\x04FP32\xff\xff").contains("65535 dimensions"));
    let huge = b"\x01\0\x01\0x\x04FP32\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
    assert!(run(huge).contains("0 are left"));
    let overflow = [
        b"\x01\0\x01\0x\x04FP32\x02\0".as_slice(),
        &u64::MAX.to_le_bytes(),
        &u64::MAX.to_le_bytes(),
        &0_u64.to_le_bytes(),
    ]
    .concat();
    assert!(run(&overflow).contains("more than fit in memory"));
    assert!(run(b"\x00\0more").contains("4 bytes after the last tensor"));
}

#[test]
fn a_tensor_whose_bytes_do_not_fill_its_shape_is_named() {
    let error = tensor_from_parts("x", ElementType::F32, vec![2], vec![0; 7]).unwrap_err();
    assert_eq!(error, "tensor `x`: FP32 [2] wants 8 bytes, got 7");
    let error = tensor_from_parts("s", ElementType::String, vec![1], vec![9, 0, 0, 0]).unwrap_err();
    assert!(error.starts_with("tensor `s`: element 0 has 9 bytes"), "{error}");
}

#[test]
fn strings_survive_a_frame_between_other_tensors() {
    let strings = Tensor::from_strings(vec![2], vec!["é".into(), String::new()]).unwrap();
    let numbers = Tensor::from_i64(vec![1], &[7]).unwrap();
    let all = [("s", &strings), ("n", &numbers), ("t", &strings)];
    let tensors = all.map(|(name, tensor)| (name.to_owned(), tensor.clone())).to_vec();
    let message = Message::Ran { id: 1, compute_us: 2, tensors };
    let frame = message.encode().unwrap();
    assert_eq!(Message::decode(&frame[4..]).unwrap(), message);
}

#[test]
fn a_large_tensor_is_a_piece_of_its_own_and_the_frame_is_the_same() {
    let tensor = |count: usize| Tensor::from_f32(vec![count], &vec![0.5; count]).unwrap();
    let tensors = [("a", 3), ("b", 5000), ("c", 2), ("d", 4097), ("e", 4096)];
    let tensors: NamedTensors =
        tensors.map(|(name, count)| (name.to_owned(), tensor(count))).to_vec();
    let pieces = run_pieces(9, &tensors).unwrap();
    let borrowed: Vec<usize> = pieces
        .iter()
        .filter(|piece| matches!(piece, Cow::Borrowed(_)))
        .map(|piece| piece.len())
        .collect();
    assert_eq!(borrowed, [20_000, 4 * 4097]);
    let frame = pieces.concat();
    let body = read_frame(&mut frame.as_slice()).unwrap().unwrap();
    assert_eq!(Message::decode(&body).unwrap(), Message::Run { id: 9, tensors });
}

#[test]
fn what_a_peer_would_refuse_is_not_sent() {
    let tensors = (0..=MAX_TENSORS)
        .map(|n| (n.to_string(), Tensor::from_i64(vec![], &[0]).unwrap()))
        .collect::<Vec<_>>();
    let error = encode_run(1, &tensors).unwrap_err().to_string();
    assert!(error.contains("257 tensors, at most 256"), "{error}");
}

#[test]
fn frames_in_pieces_are_read_as_those_of_a_stream() {
    for message in example() {
        let frame = message.encode().unwrap();
        for cut in 0..=frame.len() {
            let whole = read_frame(&mut &frame[..cut]);
            let mut frames = Frames::default();
            frames.room().extend_from_slice(&frame[..cut]);
            let body = frames.next().unwrap().map(<[u8]>::to_vec);
            let pieces = match frames.cut() {
                Some(error) => Err(error),
                None => Ok(body),
            };
            assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(&body);
        let _ = read_frame(&mut body.as_slice());
    }

    #[test]
    fn no_damage_makes_decoding_panic(which in 0_usize..6, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut frame = example()[which].encode().unwrap();
        let at = at.index(frame.len());
        frame[at] = to;
        if let Ok(Some(body)) = read_frame(&mut frame.as_slice()) {
            let _ = Message::decode(&body);
        }
    }
}
