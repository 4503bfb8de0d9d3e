//! A folder on a disk that promises no more than POSIX does: what a file holds is durable once the file was synced, which
//! names a folder holds once the folder was, and nothing else is; what was not synced may be there all the same.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::trace::Call;

/// What a crash leaves: folders, and files with their content.
pub(in crate::shell) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// What of that which was not synced is there after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shell) enum Loss {
    /// All of it: the process was killed, the system lived on.
    Nothing,
    /// None of it.
    All,
    /// The names, and not what the files hold.
    Contents,
    /// The names, and half of what was added to the files.
    Half,
    /// What the files hold, and not the names.
    Names,
}

impl Loss {
    pub(in crate::shell) const EVERY: [Self; 5] =
        [Self::Nothing, Self::All, Self::Contents, Self::Half, Self::Names];
}

/// What is there now, and what is durable of it.
#[derive(Debug, Clone)]
enum Node {
    File { now: Vec<u8>, safe: Vec<u8> },
    Folder { now: BTreeMap<String, usize>, safe: BTreeMap<String, usize> },
}

#[derive(Debug)]
struct Open {
    node: usize,
    at: usize,
    append: bool,
}

/// A folder that calls are applied to. Its own name is durable.
#[derive(Debug)]
pub(in crate::shell) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    open: HashMap<i64, Open>,
}

impl Disk {
    /// The empty folder `root`.
    pub(in crate::shell) fn new(root: &Path) -> Self {
        let empty = Node::Folder { now: BTreeMap::new(), safe: BTreeMap::new() };
        Self { root: root.to_owned(), nodes: vec![empty], open: HashMap::new() }
    }

    /// Does one call; whether it was one on this folder that can leave another image.
    pub(in crate::shell) fn apply(&mut self, call: &Call) -> bool {
        match call {
            Call::Open { fd, path, append, truncate } => {
                let opened = self.inside(path);
                self.open.remove(fd);
                let Some(path) = opened else { return false };
                let node = self.find(&path).unwrap_or_else(|| self.make(&path, Node::file()));
                if let (true, Node::File { now, .. }) = (*truncate, &mut self.nodes[node]) {
                    now.clear();
                }
                self.open.insert(*fd, Open { node, at: 0, append: *append });
            }
            Call::Seek { fd, to } => {
                if let Some(open) = self.open.get_mut(fd) {
                    open.at = usize::try_from(*to).unwrap();
                }
                return false;
            }
            Call::Write { fd, path, data } => {
                if self.inside(path).is_none() {
                    return false;
                }
                let open =
                    self.open.get_mut(fd).unwrap_or_else(|| panic!("{path:?} was not opened"));
                let Node::File { now, .. } = &mut self.nodes[open.node] else { panic!("{path:?}") };
                let at = if open.append { now.len() } else { open.at };
                now.resize(now.len().max(at + data.len()), 0);
                now[at..at + data.len()].copy_from_slice(data);
                open.at = at + data.len();
            }
            Call::Truncate { path, length } => {
                let Some(path) = self.inside(path) else { return false };
                let node = self.there(&path);
                let Node::File { now, .. } = &mut self.nodes[node] else { panic!("{path:?}") };
                now.resize(usize::try_from(*length).unwrap(), 0);
            }
            Call::Sync { path } => {
                let Some(path) = self.inside(path) else { return false };
                let node = self.there(&path);
                match &mut self.nodes[node] {
                    Node::File { now, safe } => safe.clone_from(now),
                    Node::Folder { now, safe } => safe.clone_from(now),
                }
            }
            Call::Rename { from, to } => {
                let (Some(from), Some(to)) = (self.inside(from), self.inside(to)) else {
                    return false;
                };
                let node = self.unlink(&from);
                let (folder, name) = self.parent(&to);
                self.entries(folder).insert(name, node);
            }
            Call::Remove { path } => {
                let Some(path) = self.inside(path) else { return false };
                self.unlink(&path);
            }
            Call::MakeFolder { path } => {
                let Some(path) = self.inside(path) else { return false };
                let empty = Node::Folder { now: BTreeMap::new(), safe: BTreeMap::new() };
                self.make(&path, empty);
            }
            // What the agent does not use must not pass unseen: nothing is known of it here.
            Call::Other { name, path } => {
                assert!(self.inside(path).is_none(), "{name} of {path:?} is not modelled");
                return false;
            }
        }
        true
    }

    /// What a crash leaves now.
    pub(in crate::shell) fn image(&self, loss: Loss) -> Image {
        let mut image = Image::new();
        self.collect(0, Path::new(""), loss, &mut image);
        image
    }

    fn collect(&self, folder: usize, at: &Path, loss: Loss, image: &mut Image) {
        let Node::Folder { now, safe } = &self.nodes[folder] else { return };
        let names = if matches!(loss, Loss::All | Loss::Names) { safe } else { now };
        for (name, node) in names {
            let path = at.join(name);
            match &self.nodes[*node] {
                Node::File { now, safe } => {
                    let content = match loss {
                        Loss::Nothing | Loss::Names => now.clone(),
                        Loss::All | Loss::Contents => safe.clone(),
                        Loss::Half => half(now, safe),
                    };
                    image.insert(path, Some(content));
                }
                Node::Folder { .. } => {
                    image.insert(path.clone(), None);
                    self.collect(*node, &path, loss, image);
                }
            }
        }
    }

    /// The path below the root.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.components().try_fold(0, |node, part| {
            let (Component::Normal(name), Node::Folder { now, .. }) = (part, &self.nodes[node])
            else {
                return None;
            };
            now.get(name.to_str()?).copied()
        })
    }

    fn there(&self, path: &Path) -> usize {
        self.find(path).unwrap_or_else(|| panic!("the model of the disk has no {path:?}"))
    }

    fn parent(&self, path: &Path) -> (usize, String) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (self.there(path.parent().unwrap()), name)
    }

    fn entries(&mut self, folder: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[folder] {
            Node::Folder { now, .. } => now,
            Node::File { .. } => panic!("a file is no folder"),
        }
    }

    fn make(&mut self, path: &Path, node: Node) -> usize {
        let (folder, name) = self.parent(path);
        self.nodes.push(node);
        let made = self.nodes.len() - 1;
        self.entries(folder).insert(name, made);
        made
    }

    fn unlink(&mut self, path: &Path) -> usize {
        let (folder, name) = self.parent(path);
        let gone = self.entries(folder).remove(&name);
        gone.unwrap_or_else(|| panic!("the model of the disk has no {path:?}"))
    }
}

impl Node {
    fn file() -> Self {
        Self::File { now: Vec::new(), safe: Vec::new() }
    }
}

/// What is durable, and half of what was added; half of it all where it was not added to.
fn half(now: &[u8], safe: &[u8]) -> Vec<u8> {
    let common = if now.starts_with(safe) { safe.len() } else { 0 };
    now[..common + (now.len() - common).div_ceil(2)].to_vec()
}

/// Lays an image out in `folder`.
pub(in crate::shell) fn lay_out(image: &Image, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (path, content) in image {
        let path = folder.join(path);
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::create_dir(path).unwrap(),
        }
    }
}

#[test]
fn only_what_was_synced_survives_the_worst_crash() {
    let path = |name: &str| PathBuf::from(name);
    let open = |fd, name: &str| Call::Open { fd, path: path(name), append: true, truncate: false };
    let write =
        |fd, name: &str, data: &[u8]| Call::Write { fd, path: path(name), data: data.to_vec() };
    let mut disk = Disk::new(Path::new("/s"));
    for call in [
        open(1, "/s/a"),
        write(1, "/s/a", b"safe"),
        Call::Sync { path: path("/s/a") },
        Call::Sync { path: path("/s") },
        write(1, "/s/a", b"lost"),
        open(2, "/s/b"),
        write(2, "/s/b", b"gone"),
        Call::Rename { from: path("/s/b"), to: path("/s/c") },
        open(3, "/elsewhere"),
        write(3, "/elsewhere", b"-"),
    ] {
        disk.apply(&call);
    }
    let image = |loss| {
        let text = |c: Option<Vec<u8>>| String::from_utf8(c.unwrap()).unwrap();
        let image = disk.image(loss).into_iter();
        image.map(|(path, c)| format!("{}={}", path.display(), text(c))).collect::<Vec<_>>()
    };
    assert_eq!(image(Loss::Nothing), ["a=safelost", "c=gone"]);
    assert_eq!(image(Loss::All), ["a=safe"]);
    assert_eq!(image(Loss::Contents), ["a=safe", "c="]);
    assert_eq!(image(Loss::Half), ["a=safelo", "c=go"]);
    assert_eq!(image(Loss::Names), ["a=safelost"]);
}
