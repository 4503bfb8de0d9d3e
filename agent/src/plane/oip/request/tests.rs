#![allow(clippy::unwrap_used)]

use axum::http::StatusCode;
use proptest::prelude::*;

use super::*;

fn interface() -> Interface {
    let port = |name: &str, dtype, dims: &[Option<usize>]| IoSpec {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
    };
    Interface {
        inputs: vec![port("x", ElementType::I32, &[None, Some(2)])],
        outputs: vec![
            port("y", ElementType::F32, &[None, Some(2)]),
            port("h", ElementType::F16, &[None]),
        ],
        engine_version: "fake 1".to_owned(),
    }
}

fn decode(json: &str) -> Result<InferRequest, OipError> {
    InferRequest::decode(json.as_bytes(), None)
}

/// The error of a request with this one input.
fn input_error(input: &str) -> String {
    let error = decode(&format!(r#"{{"inputs":[{input}]}}"#)).unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    error.message().to_owned()
}

fn check_error(json: &str) -> String {
    let request = decode(json).unwrap();
    let error = request.check(&request.inputs, &interface()).unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    error.message().to_owned()
}

#[test]
fn json_and_binary_tensors_are_the_same_request() {
    let json = decode(
        r#"{"id":"a","inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","data":[[5,-6]]}]}"#,
    )
    .unwrap();
    let head = r#"{"id":"a","inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","parameters":{"binary_data_size":8}}]}"#;
    let mut body = head.as_bytes().to_vec();
    body.extend(5_i32.to_le_bytes());
    body.extend((-6_i32).to_le_bytes());
    let binary = InferRequest::decode(&body, Some(head.len())).unwrap();
    assert_eq!(json, binary);
    assert_eq!(json.inputs[0].1.to_i32().unwrap(), [5, -6]);
    assert_eq!(json.id.as_deref(), Some("a"));
}

#[test]
fn binary_tensors_follow_each_other_in_the_order_of_the_inputs() {
    let head = r#"{"inputs":[
        {"name":"a","shape":[2],"datatype":"UINT8","parameters":{"binary_data_size":2}},
        {"name":"j","shape":[1],"datatype":"UINT8","data":[9]},
        {"name":"b","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]}"#;
    let body = [head.as_bytes(), &[1, 2, 3]].concat();
    let request = InferRequest::decode(&body, Some(head.len())).unwrap();
    let data: Vec<_> = request.inputs.iter().map(|(_, t)| t.data.clone()).collect();
    assert_eq!(data, [vec![1, 2], vec![9], vec![3]]);
    let long = [body.as_slice(), &[4]].concat();
    let error = InferRequest::decode(&long, Some(head.len())).unwrap_err();
    assert!(error.message().contains("1 bytes of binary data belong to no input"));
    let short = &body[..body.len() - 1];
    let error = InferRequest::decode(short, Some(head.len())).unwrap_err();
    assert_eq!(error.message(), "input `b`: binary_data_size is 1, 0 bytes are left in the body");
}

#[test]
fn the_bytes_of_all_tensors_are_asked_for_before_any_is_made() {
    let head = r#"{"inputs":[
        {"data":[[1,2],[3,4]],"name":"a","shape":[2,2],"datatype":"FP64"},
        {"name":"b","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}}]}"#;
    let body = [head.as_bytes(), &[1, 2, 3]].concat();
    let mut asked = None;
    let request = InferRequest::decode_within(&body, Some(head.len()), |bytes| {
        asked = Some(bytes);
        Ok(())
    });
    assert_eq!(asked, Some(4 * 8 + 3));
    let (_, a) = &request.unwrap().inputs[0];
    assert_eq!(a.data.capacity(), 4 * 8, "nothing is kept beside the bytes themselves");
    assert_eq!(a.to_f64_lossy().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let refused =
        InferRequest::decode_within(&body, Some(head.len()), |_| Err(OipError::too_large(7)));
    assert_eq!(refused.unwrap_err().status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[test]
fn a_header_length_beyond_the_body_is_refused() {
    let error = InferRequest::decode(b"{}", Some(3)).unwrap_err();
    assert_eq!(error.message(), "Inference-Header-Content-Length is 3, the body has 2 bytes");
    let error = InferRequest::decode(b"{}", Some(usize::MAX)).unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
}

#[test]
fn what_is_wrong_with_an_input_is_said_with_its_name() {
    let with = |rest: &str| input_error(&format!(r#"{{"name":"x",{rest}}}"#));
    assert_eq!(
        with(r#""shape":[1,3],"datatype":"INT32","data":[1,2]"#),
        "input `x`: shape [1, 3] wants 3 elements, got 2"
    );
    assert_eq!(
        with(r#""shape":[1,2],"datatype":"INT32","data":[1,2.5]"#),
        "input `x`: element 1 is 2.5, wanted INT32"
    );
    assert_eq!(
        with(r#""shape":[2,1],"datatype":"INT32","data":[[1,2]]"#),
        "input `x`: the data is nested as [1, 2], the shape is [2, 1]"
    );
    assert_eq!(
        with(r#""shape":[-1,2],"datatype":"INT32","data":[1,2]"#),
        "input `x`: shape [-1, 2] has a negative dimension"
    );
    assert_eq!(
        with(r#""shape":[1],"datatype":"INT99","data":[1]"#),
        "input `x`: there is no datatype `INT99`"
    );
    assert_eq!(
        with(r#""shape":[2],"datatype":"BYTES","data":["a",1]"#),
        "input `x`: element 1 is 1, wanted BYTES"
    );
    assert!(with(r#""shape":[1],"datatype":"FP16","data":[1]"#).contains("has no JSON form"));
    assert!(
        with(r#""shape":[1],"datatype":"INT32""#).contains("neither data nor binary_data_size")
    );
    assert!(
        with(r#""shape":[1],"datatype":"INT8","data":[1],"parameters":{"binary_data_size":1}"#)
            .contains("both data and binary_data_size")
    );
    assert!(
        with(r#""shape":[1],"datatype":"INT8","parameters":{"binary_data_size":-1}"#)
            .contains("binary_data_size is -1, not a size")
    );
    assert!(
        with(r#""shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r"}"#)
            .contains("shared memory is not served")
    );
    assert!(
        with(r#""shape":[9223372036854775807,9223372036854775807],"datatype":"INT8","data":[]"#)
            .contains("wants too many elements")
    );
    let head = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"INT32","parameters":{"binary_data_size":4}}]}"#;
    let body = [head, "abcd"].concat();
    let error = InferRequest::decode(body.as_bytes(), Some(head.len())).unwrap_err();
    assert_eq!(error.message(), "tensor `x`: INT32 [2] wants 8 bytes, got 4");
}

#[test]
fn what_is_not_json_is_refused_with_its_place() {
    for text in [
        "",
        "[]",
        "{",
        "{}",
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#,
        r#"{"inputs":[],"parameters":{"binary_data_output":"yes"}}"#,
        r#"{"inputs":[],"parameters":{"timeout":-5}}"#,
    ] {
        assert_eq!(decode(text).unwrap_err().status(), StatusCode::BAD_REQUEST, "{text}");
    }
    let error = decode(r#"{"inputs": [NaN]}"#).unwrap_err();
    assert!(error.message().contains("line 1 column"), "{}", error.message());
}

#[test]
fn a_request_that_does_not_fit_the_model_says_what_was_wanted_and_what_came() {
    let x = |rest: &str| format!(r#"{{"inputs":[{{"name":{rest}}}]}}"#);
    assert!(check_error(r#"{"inputs":[]}"#).contains("input \"x\" is missing"));
    assert!(
        check_error(&x(r#""z","shape":[1],"datatype":"INT32","data":[1]"#))
            .contains("no input \"z\"")
    );
    assert_eq!(
        check_error(&x(r#""x","shape":[1,2],"datatype":"FP32","data":[1,2]"#)),
        "input \"x\" wants INT32, got FP32"
    );
    assert_eq!(
        check_error(&x(r#""x","shape":[2,1],"datatype":"INT32","data":[1,2]"#)),
        "input \"x\" wants shape [?, 2], got [2, 1]"
    );
}

#[test]
fn wanted_outputs_are_checked_and_chosen() {
    let request = |outputs: &str, parameters: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"INT32","data":[1,2]}}],"outputs":{outputs},"parameters":{parameters}}}"#
        )
    };
    assert!(
        check_error(&request(r#"[{"name":"q"}]"#, "{}"))
            .contains("no output `q`; the model has `y`, `h`")
    );
    assert!(
        check_error(&request(r#"[{"name":"y"},{"name":"y"}]"#, "{}")).contains("asked for twice")
    );
    assert!(check_error(&request("null", "{}")).contains("`h` is FP16, which has no JSON form"));
    let all_binary = decode(&request("null", r#"{"binary_data_output":true}"#)).unwrap();
    all_binary.check(&all_binary.inputs, &interface()).unwrap();
    let mixed = decode(&request(
        r#"[{"name":"y","parameters":{"binary_data":false}},{"name":"h"}]"#,
        r#"{"binary_data_output":true,"timeout":2500}"#,
    ))
    .unwrap();
    mixed.check(&mixed.inputs, &interface()).unwrap();
    assert!(!mixed.wants_binary("y") && mixed.wants_binary("h"));
    assert_eq!(mixed.timeout(), Some(Duration::from_micros(2500)));
    let classify = decode(&request(r#"[{"name":"y","parameters":{"classification":3}}]"#, "{}"));
    assert!(classify.unwrap_err().message().contains("classification is not served"));
}

#[test]
fn a_long_name_is_not_sent_back_whole() {
    let name = "n".repeat(5000);
    let error =
        input_error(&format!(r#"{{"name":"{name}","shape":[1],"datatype":"INT8","data":[1]}}"#));
    assert!(error.contains("a name of 5000 bytes") && error.len() < 300, "{error}");
}

proptest! {
    #[test]
    fn no_body_makes_decoding_panic(body in proptest::collection::vec(any::<u8>(), 0..120), length in proptest::option::of(0_usize..130)) {
        let _ = InferRequest::decode(&body, length);
    }

    #[test]
    fn no_damage_makes_decoding_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut body = br#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","data":[[1,2]],"parameters":{"a":1}}],"outputs":[{"name":"y"}]}"#.to_vec();
        let at = at.index(body.len());
        body[at] = to;
        let _ = InferRequest::decode(&body, None);
    }
}
