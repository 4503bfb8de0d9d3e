//! What `strace` wrote down, as calls that change a file system.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is traced: everything by which a folder or a file in it is changed or made durable.
const TRACED: &str = "open,openat,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,\
    copy_file_range,sendfile,splice,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
    unlink,unlinkat,mkdir,mkdirat,rmdir";
/// The longest string written down whole.
const MAX_STRING: &str = "16777216";

/// A call that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::shell) enum Call {
    /// A file was opened for writing.
    Open {
        fd: i64,
        path: PathBuf,
        append: bool,
        truncate: bool,
    },
    /// The place at which it is written next.
    Seek {
        fd: i64,
        to: u64,
    },
    Write {
        fd: i64,
        path: PathBuf,
        data: Vec<u8>,
    },
    Truncate {
        path: PathBuf,
        length: u64,
    },
    /// A file's content or a folder's entries became durable.
    Sync {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    MakeFolder {
        path: PathBuf,
    },
    /// Any other, on what its first argument stands for.
    Other {
        name: String,
        path: PathBuf,
    },
}

/// A command that runs `program` and writes its calls down in `log`.
pub(in crate::shell) fn traced(program: &Path, log: &Path) -> Command {
    let mut command = Command::new("strace");
    // With its paths behind descriptors, all processes, all strings in hexadecimal.
    command.args(["-f", "-y", "-xx", "-s", MAX_STRING, "-e", &format!("trace={TRACED}"), "-o"]);
    command.arg(log).arg(program);
    command
}

/// The calls of all processes in the order in which they returned.
pub(in crate::shell) fn calls(log: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((process, rest)) = line.split_once(char::is_whitespace) else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(process, start);
        } else if let Some((_, end)) =
            rest.strip_prefix("<... ").and_then(|r| r.split_once("resumed>"))
        {
            let start = begun.remove(process).unwrap_or_default();
            calls.extend(call(&format!("{start}{end}")));
        } else {
            calls.extend(call(rest));
        }
    }
    calls
}

/// One line, `name(argument, …) = result`; none where it failed or changes nothing.
fn call(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ").or_else(|| {
        // Strace pads short calls.
        let (arguments, result) = rest.rsplit_once(" = ")?;
        Some((arguments.trim_end().strip_suffix(')')?, result))
    })?;
    let returned: i64 =
        result.split(|c: char| !c.is_ascii_digit() && c != '-').next()?.parse().ok()?;
    if returned < 0 {
        return None;
    }
    // Strings are hexadecimal, so no comma stands in one.
    let arguments: Vec<&str> = arguments.split(", ").map(str::trim).collect();
    let at = |i: usize| arguments.get(i).copied().unwrap_or_default();
    Some(match name {
        "open" | "creat" | "openat" => {
            let (path, flags) = match name {
                "openat" => (below(at(0), at(1)), at(2)),
                "creat" => (text(at(0)), "O_WRONLY|O_CREAT|O_TRUNC"),
                _ => (text(at(0)), at(1)),
            };
            let has = |flag: &str| flags.split('|').any(|f| f == flag);
            if !has("O_WRONLY") && !has("O_RDWR") {
                return None;
            }
            Call::Open { fd: returned, path, append: has("O_APPEND"), truncate: has("O_TRUNC") }
        }
        "lseek" => Call::Seek { fd: descriptor(at(0)).0, to: returned.unsigned_abs() },
        "write" => {
            let (fd, path) = descriptor(at(0));
            let mut data = bytes(at(1));
            data.truncate(usize::try_from(returned).ok()?);
            Call::Write { fd, path, data }
        }
        "truncate" => Call::Truncate { path: text(at(0)), length: at(1).parse().ok()? },
        "ftruncate" => Call::Truncate { path: descriptor(at(0)).1, length: at(1).parse().ok()? },
        "fsync" | "fdatasync" => Call::Sync { path: descriptor(at(0)).1 },
        "rename" => Call::Rename { from: text(at(0)), to: text(at(1)) },
        "renameat" | "renameat2" => {
            Call::Rename { from: below(at(0), at(1)), to: below(at(2), at(3)) }
        }
        "unlink" | "rmdir" => Call::Remove { path: text(at(0)) },
        "unlinkat" => Call::Remove { path: below(at(0), at(1)) },
        "mkdir" => Call::MakeFolder { path: text(at(0)) },
        "mkdirat" => Call::MakeFolder { path: below(at(0), at(1)) },
        _ => Call::Other { name: name.to_owned(), path: descriptor(at(0)).1 },
    })
}

/// `7</path>`.
fn descriptor(argument: &str) -> (i64, PathBuf) {
    let (fd, rest) = argument.split_once('<').unwrap_or((argument, ""));
    (fd.parse().unwrap_or(-1), PathBuf::from(string(&unescaped(rest.trim_end_matches('>')))))
}

/// The path `name` in the folder of a descriptor.
fn below(folder: &str, name: &str) -> PathBuf {
    descriptor(folder).1.join(text(name))
}

fn text(argument: &str) -> PathBuf {
    PathBuf::from(string(&bytes(argument)))
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A string in quotes, which must be whole.
fn bytes(argument: &str) -> Vec<u8> {
    assert!(!argument.ends_with("..."), "a string that strace cut off");
    unescaped(argument.trim_matches('"'))
}

fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.split("\\x").filter(|part| !part.is_empty());
    bytes.map(|part| u8::from_str_radix(part, 16).unwrap_or_else(|_| panic!("{text}"))).collect()
}

#[test]
fn lines_of_strace_are_understood() {
    let hex = |text: &str| text.bytes().map(|b| format!("\\x{b:02x}")).collect::<String>();
    let (a, b, d) = (hex("/s/a"), hex("/s/b"), hex("/s"));
    let log = format!(
        "7 openat(AT_FDCWD<{d}>, \"{a}\", O_WRONLY|O_CREAT|O_APPEND|O_CLOEXEC, 0666) = 9<{a}>\n\
         7 openat(AT_FDCWD<{d}>, \"{a}\", O_RDONLY|O_CLOEXEC) = 10<{a}>\n\
         7 write(9<{a}>, \"{}\", 3 <unfinished ...>\n\
         8 mkdir(\"{b}\", 0777) = -1 EEXIST (File exists)\n\
         7 <... write resumed>)              = 2\n\
         7 fsync(9<{a}>)                     = 0\n\
         7 rename(\"{a}\", \"{b}\") = 0\n\
         7 unlinkat(4<{d}>, \"{}\", AT_REMOVEDIR) = 0\n\
         7 +++ exited with 0 +++\n",
        hex("xyz"),
        hex("e"),
    );
    let path = |name: &str| PathBuf::from(name);
    let wanted = [
        Call::Open { fd: 9, path: path("/s/a"), append: true, truncate: false },
        Call::Write { fd: 9, path: path("/s/a"), data: b"xy".to_vec() },
        Call::Sync { path: path("/s/a") },
        Call::Rename { from: path("/s/a"), to: path("/s/b") },
        Call::Remove { path: path("/s/e") },
    ];
    assert_eq!(calls(&log), wanted);
}
