#![allow(clippy::unwrap_used)]

use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use super::super::fake;
use super::super::protocol::{encode_run, read_frame};
use super::*;

/// A worker on a thread of this process, and the agent's end of its socket.
struct Rig {
    socket: UnixStream,
    life: PipeWriter,
    worker: JoinHandle<i32>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn start(hook: impl ComputeHook + Send + 'static) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let (lives, life) = io::pipe().unwrap();
        let rig = Self {
            socket,
            life,
            worker: thread::spawn(move || serve(theirs, lives, Box::new(hook), fake::load)),
            folder: tempfile::tempdir().unwrap(),
        };
        rig.greeted();
        rig
    }

    /// Hears the worker out that says its version.
    fn greeted(&self) {
        let body = read_frame(&mut &self.socket).unwrap().unwrap();
        assert_eq!(Hello::expect(&body), Ok(Hello::own()));
    }

    fn loaded(hook: impl ComputeHook + Send + 'static) -> Self {
        let mut rig = Self::start(hook);
        let reply = rig.load("2");
        assert!(matches!(reply, Message::Loaded(_)), "{reply:?}");
        rig
    }

    fn load(&mut self, model: &str) -> Message {
        let path = self.folder.path().join("model");
        std::fs::write(&path, model).unwrap();
        let options = engine::EngineOptions::new(engine::EngineKind::Tract);
        let load = LoadRequest { engine: "fake".to_owned(), ..LoadRequest::new(path, &options) };
        self.ask(&Message::Load(load).encode().unwrap()).unwrap()
    }

    fn ask(&mut self, frame: &[u8]) -> Option<Message> {
        self.socket.write_all(frame).unwrap();
        let body = read_frame(&mut self.socket).unwrap()?;
        Some(Message::decode(&body).unwrap())
    }

    fn run(&mut self, first: f32) -> Message {
        let frame = encode_run(5, &fake::row(first, 1.0)).unwrap();
        self.ask(&frame).unwrap()
    }

    /// The exit code of a worker that ends by itself: it is let go of when it has closed its socket.
    fn ended(mut self) -> i32 {
        // Nothing more comes: half a frame stays half a frame.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        let rest = self.socket.read_to_end(&mut Vec::new());
        assert!(rest.is_ok() || rest.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
        self.end()
    }

    fn end(self) -> i32 {
        drop((self.socket, self.life));
        self.worker.join().unwrap()
    }
}

#[test]
fn orders_that_come_together_and_in_pieces_are_answered_one_by_one() {
    let mut rig = Rig::loaded(NoHook);
    let frames: Vec<u8> = [1.0, 2.0, 3.0]
        .iter()
        .flat_map(|&first| encode_run(5, &fake::row(first, 1.0)).unwrap())
        .collect();
    let (some, rest) = frames.split_at(frames.len() / 2);
    rig.socket.write_all(some).unwrap();
    let mut answers = Vec::new();
    for more in [rest, &[], &[]] {
        rig.socket.write_all(more).unwrap();
        let body = read_frame(&mut rig.socket).unwrap().unwrap();
        let Message::Ran { tensors, .. } = Message::decode(&body).unwrap() else {
            panic!("not an answer");
        };
        answers.push(tensors[0].1.to_f32().unwrap()[0]);
    }
    assert_eq!(answers, [2.0, 4.0, 6.0]);
    assert_eq!(rig.end(), EXIT_CLOSED);
}

#[test]
fn a_worker_whose_standard_output_cannot_be_read_says_so() {
    let (_socket, theirs) = UnixStream::pair().unwrap();
    let (_lives, life) = io::pipe().unwrap();
    let wrong = PipeReader::from(OwnedFd::from(life));
    assert_eq!(serve(theirs, wrong, Box::new(NoHook), fake::load), EXIT_SOCKET);
}

/// Reports how long the name of the model's file is.
#[derive(Default)]
struct Made(u64);

impl ComputeHook for Made {
    fn loading(&mut self, model: &Path) {
        self.0 = model.file_name().unwrap().len() as u64;
    }

    fn after_run(&mut self, _: Took) -> Duration {
        Duration::from_micros(self.0)
    }
}

#[test]
fn a_model_is_loaded_and_run_and_the_worker_ends_with_its_socket() {
    let mut rig = Rig::loaded(NoHook);
    let Message::Ran { id, tensors, .. } = rig.run(4.0) else {
        panic!("not an answer");
    };
    assert_eq!(id, 5);
    assert_eq!(tensors[0].1.to_f32().unwrap(), [8.0, 2.0]);
    assert_eq!(rig.end(), EXIT_CLOSED);
}

#[test]
fn the_hook_sees_the_model_and_says_which_compute_time_is_reported() {
    let mut rig = Rig::loaded(Made::default());
    let answer = rig.run(4.0);
    assert!(matches!(answer, Message::Ran { compute_us: 5, .. }), "{answer:?}");
}

#[test]
fn a_failed_run_is_reported_and_the_next_one_works() {
    let mut rig = Rig::loaded(NoHook);
    let Message::Failed(failure) = rig.run(fake::FAIL) else {
        panic!("not a failure");
    };
    assert_eq!((failure.id, failure.kind), (5, FailureKind::Engine));
    assert_eq!(failure.error, "asked to fail");
    assert!(matches!(rig.run(1.0), Message::Ran { .. }));
}

#[test]
fn wrong_inputs_are_the_requests_fault() {
    let mut rig = Rig::loaded(NoHook);
    let frame = encode_run(5, &[]).unwrap();
    let Some(Message::Failed(failure)) = rig.ask(&frame) else {
        panic!("not a failure");
    };
    assert_eq!(failure.kind, FailureKind::Input);
    assert!(failure.error.contains("\"x\" is missing"), "{}", failure.error);
}

#[test]
fn a_panic_in_the_engine_is_reported_and_ends_the_worker() {
    let mut rig = Rig::loaded(NoHook);
    let Message::Failed(failure) = rig.run(fake::PANIC) else {
        panic!("not a failure");
    };
    assert_eq!(failure.kind, FailureKind::Fatal);
    assert_eq!(failure.error, "the engine panicked: asked to panic");
    assert_eq!(rig.ended(), EXIT_PANIC);
}

#[test]
fn a_model_that_cannot_be_loaded_is_reported_and_ends_the_worker() {
    for (model, fault, reason) in [
        ("rubbish", LoadFault::Model, "`rubbish` is no model"),
        ("panic", LoadFault::Device, "the engine panicked"),
    ] {
        let mut rig = Rig::start(NoHook);
        let Message::LoadFailed(failure) = rig.load(model) else {
            panic!("not a failure");
        };
        assert!(failure.error.contains(reason), "{failure:?}");
        assert_eq!(failure.fault, fault);
        assert_eq!(rig.ended(), EXIT_LOAD);
    }
}

#[test]
fn a_run_before_a_model_is_loaded_ends_the_worker() {
    let mut rig = Rig::start(NoHook);
    assert!(matches!(rig.run(1.0), Message::Failed(_)));
    assert_eq!(rig.ended(), EXIT_PANIC);
}

#[test]
fn hostile_frames_end_the_worker_with_the_protocols_exit_code() {
    let answer = Message::LoadFailed(device(String::new())).encode().unwrap();
    let frames: [&[u8]; 6] = [
        &[0, 0, 0, 0],
        &[255, 255, 255, 255, 1],
        &[1, 0, 0, 0, 99],
        &[5, 0, 0, 0, 1, b'{', b'}', b' ', b' '],
        &[9, 0, 0, 0, 2, 1],
        &answer,
    ];
    for frame in frames {
        let rig = Rig::start(NoHook);
        (&rig.socket).write_all(frame).unwrap();
        assert_eq!(rig.ended(), EXIT_PROTOCOL, "{frame:?}");
    }
}

#[test]
fn a_worker_in_the_middle_of_an_inference_ends_when_the_agent_lets_go() {
    let folder = tempfile::tempdir().unwrap();
    let config = fake::config(folder.path());
    let gate = std::os::unix::net::UnixListener::bind(folder.path().join("gate")).unwrap();
    let (socket, theirs) = UnixStream::pair().unwrap();
    let (lives, life) = io::pipe().unwrap();
    let mut child = Command::new(&config.worker_program)
        .args(&config.worker_args)
        .current_dir(folder.path())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(lives)))
        .spawn()
        .unwrap();
    let mut rig = Rig { socket, life, worker: thread::spawn(|| 0), folder };
    rig.greeted();
    assert!(matches!(rig.load("2"), Message::Loaded(_)));
    rig.socket.write_all(&encode_run(5, &fake::row(fake::GATE, 1.0)).unwrap()).unwrap();
    let _inside = gate.accept().unwrap();
    drop((rig.socket, rig.life));
    assert_eq!(child.wait().unwrap().code(), Some(EXIT_CLOSED));
}

/// Runs everything three times, and passes on what that took.
struct Thrice(std::sync::mpsc::Sender<Took>);

impl ComputeHook for Thrice {
    fn repeats(&self) -> usize {
        2
    }

    fn after_run(&mut self, took: Took) -> Duration {
        self.0.send(took).unwrap();
        took.wall
    }
}

#[test]
fn of_repeated_runs_the_fastest_counts_and_the_last_one_answers() {
    let (sender, seen) = channel();
    let mut rig = Rig::loaded(Thrice(sender));
    let Message::Ran { tensors, .. } = rig.run(4.0) else { panic!("not an answer") };
    assert_eq!(tensors[0].1.to_f32().unwrap(), [8.0, 2.0]);
    let took = seen.recv().unwrap();
    assert!(took.all_runs >= 3 * took.wall && took.wall > Duration::ZERO, "{took:?}");
    rig.run(5.0);
    assert_eq!(seen.recv().unwrap().shapes, took.shapes);
    let Message::Failed(failure) = rig.run(fake::FAIL) else { panic!("not a failure") };
    assert_eq!(failure.error, "asked to fail");
    assert_eq!(rig.end(), EXIT_CLOSED);
}
