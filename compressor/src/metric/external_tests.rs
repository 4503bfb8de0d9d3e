use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::*;

fn shell(script: &str) -> External {
    External {
        command: vec!["sh".into(), "-c".into(), script.into(), "evaluator".into()],
        timeout: Duration::from_secs(60),
    }
}

fn evaluate(script: &str) -> Result<Evaluation, EvaluateError> {
    shell(script).evaluate(Path::new("m.onnx"), Some(Path::new("d.npz")), &|| false)
}

fn failure(script: &str) -> Failure {
    evaluate(script).unwrap_err().failure
}

#[test]
fn a_command_is_given_both_paths_and_its_object_is_read() {
    let got = evaluate(
        r#"test "$1 $2 $#" = "m.onnx d.npz 2" && echo '{"metric": 0.5, "per_sample": [0, 1], "higher_is_better": true}'"#,
    );
    let wanted =
        Evaluation { metric: 0.5, per_sample: Some(vec![0.0, 1.0]), higher_is_better: true };
    assert_eq!(got.unwrap(), wanted);
    let alone = shell(r#"test $# = 1 && echo '{"metric": -2, "higher_is_better": false}'"#);
    assert_eq!(alone.evaluate(Path::new("m.onnx"), None, &|| false).unwrap().metric, -2.0);
}

#[test]
fn an_exit_code_and_a_signal_come_with_the_last_words() {
    let got = failure("echo 'no such label' >&2; exit 3");
    assert!(matches!(&got, Failure::ExitCode { code: 3, words } if words == "no such label"));
    let got = failure("kill -TERM $$");
    assert!(matches!(&got, Failure::Signal { signal: 15, .. }), "{got}");
    let error = evaluate("exit 1").unwrap_err().to_string();
    assert!(error.contains("`sh` on m.onnx") && error.contains("exit code 1"), "{error}");
}

#[test]
fn what_is_no_such_object_is_refused_and_shown() {
    for script in [
        "echo hello",
        "true",
        r#"echo '{"metric": 1}'"#,
        r#"echo '{"metric": "high", "higher_is_better": true}'"#,
        r#"echo '{"metric": 1, "higher_is_better": true} and more'"#,
        r#"echo '{"metric": 1e999, "higher_is_better": true}'"#,
        r#"echo '{"metric": null, "higher_is_better": true}'"#,
        r#"echo '{"metric": 1, "higher_is_better": true, "perSample": [1]}'"#,
    ] {
        let got = failure(script);
        assert!(matches!(&got, Failure::Malformed { .. }), "{script}: {got}");
    }
    assert!(failure("echo hello").to_string().contains("\"hello\""));
}

#[test]
fn numbers_that_are_none_are_named() {
    for value in ["NaN", "-Infinity"] {
        let got = failure(&format!(r#"echo '{{"metric": {value}, "higher_is_better": true}}'"#));
        assert!(matches!(&got, Failure::NotFinite { .. }), "{got}");
    }
    let got = failure(r#"echo '{"metric": 1, "per_sample": [], "higher_is_better": true}'"#);
    assert!(matches!(got, Failure::NoSamples));
}

#[test]
fn output_without_end_is_cut_off() {
    assert!(matches!(failure("yes"), Failure::TooMuchOutput));
}

#[test]
fn a_flood_of_words_keeps_only_the_last() {
    let got = failure("yes wrong | head -c 3000000 >&2; echo end >&2; exit 1");
    let Failure::ExitCode { words, .. } = got else { panic!("{got}") };
    assert!(words.len() <= SHOWN_BYTES && words.ends_with("end"), "{words}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let none = External { command: vec!["/no/such/program".into()], timeout: Duration::MAX };
    let error = none.evaluate(Path::new("m.onnx"), None, &|| false).unwrap_err();
    assert!(matches!(error.failure, Failure::Start(_)) && error.to_string().contains("/no/such"));
    let empty = External { command: Vec::new(), timeout: Duration::MAX };
    let error = empty.evaluate(Path::new("m.onnx"), None, &|| false).unwrap_err();
    assert!(matches!(error.failure, Failure::NoCommand));
}

/// Runs a script whose grandchild holds a FIFO open for writing: reading it to its end returns once
/// nobody is left. `run` is given the script's beginning and whether the grandchild has started.
fn with_grandchild(run: impl FnOnce(&str, &AtomicBool)) {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("alive");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let started = std::sync::Arc::new(AtomicBool::new(false));
    let (told, ended) = mpsc::channel();
    let (path, flag) = (fifo.clone(), started.clone());
    std::thread::spawn(move || {
        let mut pipe = File::open(path).unwrap();
        flag.store(pipe.read_exact(&mut [0u8]).is_ok(), Ordering::SeqCst);
        pipe.read_to_end(&mut Vec::new()).unwrap();
        told.send(()).unwrap();
    });
    run(&format!("exec 3>'{}'; echo x >&3; sleep 1000 & ", fifo.display()), &started);
    // Lets the reader go on if the script was ended before it came this far.
    drop(File::options().read(true).write(true).open(&fifo).unwrap());
    ended.recv_timeout(Duration::from_secs(30)).expect("a grandchild outlived its command");
}

#[test]
fn cancelling_ends_the_whole_group() {
    with_grandchild(|grandchild, started| {
        let external = shell(&format!("{grandchild} wait"));
        let cancelled = || started.load(Ordering::SeqCst);
        let error = external.evaluate(Path::new("m"), None, &cancelled).unwrap_err();
        assert!(matches!(error.failure, Failure::Cancelled), "{error}");
    });
}

#[test]
fn a_timeout_ends_the_whole_group() {
    with_grandchild(|grandchild, _| {
        let timeout = Duration::from_millis(300);
        let external = External { timeout, ..shell(&format!("{grandchild} wait")) };
        let error = external.evaluate(Path::new("m"), None, &|| false).unwrap_err();
        assert!(matches!(error.failure, Failure::Timeout(_)), "{error}");
    });
}

#[test]
fn what_a_command_leaves_behind_is_ended_with_it() {
    with_grandchild(|grandchild, _| {
        let object = r#"{"metric": 1, "higher_is_better": true}"#;
        assert_eq!(evaluate(&format!("{grandchild} echo '{object}'")).unwrap().metric, 1.0);
    });
}
