//! A model of a POSIX file system that loses what was not synced, in every way that it may:
//!
//! - of a file, what was written since its last sync: none of it, some first part, all of it, or zeros in
//!   its place; and apart from that its new mode and its new time;
//! - of a folder, each name that was made, moved here, linked or removed since its last sync, in any
//!   combination. A rename is one step, in both folders at once, which the sync of where it leads to ends.
//!
//! A file's sync says nothing of its names, nor a name's of the file's bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::recording::{Event, Inode, Place};

type Id = usize;

/// What is on disk or on its way there.
#[derive(Clone, Debug)]
pub(in crate::store) struct Disk {
    nodes: Vec<Node>,
    /// Which node the kernel calls so at the moment.
    ids: HashMap<Inode, Id>,
    /// Operations on names since the last sync of the folder that they happened in, in order.
    open: Vec<(Id, Change)>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    /// The modes that it may have after a crash, the newest last. The same of times.
    modes: Vec<u32>,
    stamps: Vec<Option<u64>>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The contents that were there since the last sync, the synced one first.
    File(Vec<Vec<u8>>),
    /// The names now, and after the last sync.
    Folder { now: BTreeMap<String, Id>, synced: BTreeMap<String, Id> },
}

/// What happened in a folder.
#[derive(Clone, Debug)]
enum Change {
    Add(String, Id),
    /// From the folder and name.
    Move(Id, String, String, Id),
    Remove(String),
}

/// What is there after a crash, by path. Files with the same number are one file.
pub(super) type Tree = BTreeMap<String, Entry>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Folder { mode: u32 },
    File { number: usize, content: Vec<u8>, mode: u32, stamp: Option<u64> },
}

const ROOT: Id = 0;

impl Disk {
    /// A folder as it is, all of it synced.
    pub(super) fn read(folder: &Path) -> Self {
        let mut disk = Self { nodes: Vec::new(), ids: HashMap::new(), open: Vec::new() };
        disk.read_node(folder);
        disk
    }

    fn read_node(&mut self, path: &Path) -> Id {
        let found = fs::symlink_metadata(path).unwrap();
        if let Some(id) = self.ids.get(&found.ino()) {
            return *id;
        }
        let (mode, is_folder) = (found.mode() & 0o7777, found.is_dir());
        let id = self.add(found.ino(), mode, is_folder);
        if is_folder {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let child = self.read_node(&entry.path());
                let name = entry.file_name().into_string().unwrap();
                let (now, synced) = self.names(id);
                now.insert(name.clone(), child);
                synced.insert(name, child);
            }
        } else {
            let is_use = path.ancestors().any(|above| above.ends_with("content/uses"));
            self.nodes[id].stamps = vec![is_use.then(|| u64::try_from(found.mtime()).unwrap())];
            self.nodes[id].kind = Kind::File(vec![fs::read(path).unwrap()]);
        }
        id
    }

    fn add(&mut self, inode: Inode, mode: u32, is_folder: bool) -> Id {
        let kind = match is_folder {
            true => Kind::Folder { now: BTreeMap::new(), synced: BTreeMap::new() },
            false => Kind::File(vec![Vec::new()]),
        };
        self.nodes.push(Node { kind, modes: vec![mode], stamps: vec![None] });
        self.ids.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn names(&mut self, id: Id) -> (&mut BTreeMap<String, Id>, &mut BTreeMap<String, Id>) {
        match &mut self.nodes[id].kind {
            Kind::Folder { now, synced } => (now, synced),
            Kind::File(_) => panic!("node {id} is no folder"),
        }
    }

    fn contents(&mut self, inode: Inode) -> &mut Vec<Vec<u8>> {
        let id = self.ids[&inode];
        match &mut self.nodes[id].kind {
            Kind::File(contents) => contents,
            Kind::Folder { .. } => panic!("node {id} is no file"),
        }
    }

    fn at(&mut self, (folder, name): &Place) -> (Id, Id) {
        let folder = self.ids[folder];
        (folder, self.names(folder).0[name])
    }

    /// One thing more happens.
    pub(super) fn happen(&mut self, event: &Event) {
        match event {
            Event::MakeFolder((folder, name), inode, mode) | Event::Create((folder, name), inode, mode) => {
                let folder = self.ids[folder];
                let id = self.add(*inode, *mode, matches!(event, Event::MakeFolder(..)));
                self.names(folder).0.insert(name.clone(), id);
                self.open.push((folder, Change::Add(name.clone(), id)));
            }
            Event::Write(file, bytes) => {
                let contents = self.contents(*file);
                let mut newest = contents.last().unwrap().clone();
                newest.extend_from_slice(bytes);
                contents.push(newest);
            }
            Event::Truncate(file, size) => {
                let contents = self.contents(*file);
                let mut newest = contents.last().unwrap().clone();
                newest.resize(usize::try_from(*size).unwrap(), 0);
                contents.push(newest);
            }
            Event::SetMode(of, mode) => {
                let id = self.ids[of];
                add_new(&mut self.nodes[id].modes, *mode);
            }
            Event::Stamp(place, seconds) => {
                let (_, id) = self.at(place);
                add_new(&mut self.nodes[id].stamps, Some(*seconds));
            }
            Event::Sync(of) => self.sync(self.ids[of]),
            Event::Link(from, (to, new)) => {
                let (_, id) = self.at(from);
                let to = self.ids[to];
                self.names(to).0.insert(new.clone(), id);
                self.open.push((to, Change::Add(new.clone(), id)));
            }
            Event::Rename(from, (to, new)) => {
                let (folder, id) = self.at(from);
                let to = self.ids[to];
                self.names(folder).0.remove(&from.1);
                self.names(to).0.insert(new.clone(), id);
                self.open.push((to, Change::Move(folder, from.1.clone(), new.clone(), id)));
            }
            Event::Remove((folder, name)) => {
                let folder = self.ids[folder];
                self.names(folder).0.remove(name);
                self.open.push((folder, Change::Remove(name.clone())));
            }
            Event::Flushed(disk) => self.clone_from(disk),
            Event::Asked(..) | Event::Promised(..) => {}
        }
    }

    fn sync(&mut self, id: Id) {
        let node = &mut self.nodes[id];
        node.modes.drain(..node.modes.len() - 1);
        node.stamps.drain(..node.stamps.len() - 1);
        if let Kind::File(contents) = &mut node.kind {
            contents.drain(..contents.len() - 1);
            return;
        }
        let mut folders: Vec<_> = self.nodes.iter().map(Node::synced).collect();
        let (settled, open) =
            std::mem::take(&mut self.open).into_iter().partition(|(folder, _)| *folder == id);
        self.open = open;
        let settled: Vec<(Id, Change)> = settled;
        for (folder, change) in &settled {
            change.apply(*folder, &mut folders);
            // That it ever had its old name is past, too.
            if let Change::Move(from, old, ..) = change {
                let is_old = |(folder, open): &(Id, Change)| {
                    folder == from && matches!(open, Change::Add(name, _) if name == old)
                };
                self.open.retain(|open| !is_old(open));
            }
        }
        for (node, names) in self.nodes.iter_mut().zip(folders) {
            if let Kind::Folder { synced, .. } = &mut node.kind {
                *synced = names;
            }
        }
    }

    /// All is on disk.
    pub(super) fn flush(&mut self) {
        (0..self.nodes.len()).for_each(|id| self.sync(id));
    }

    /// How many outcomes each of the things has that a crash may lose.
    pub(super) fn outcomes(&self) -> Vec<usize> {
        let names = self.open.iter().map(|_| 2);
        let others = self.nodes.iter().flat_map(|node| {
            let contents = if let Kind::File(contents) = &node.kind { survivors(contents).len() } else { 1 };
            [contents, node.modes.len(), node.stamps.len()]
        });
        names.chain(others.filter(|outcomes| *outcomes > 1)).collect()
    }

    /// What is there after a crash with these outcomes: 0 is that all of it is lost.
    pub(super) fn crashed(&self, outcomes: &[usize]) -> Tree {
        let mut outcomes = outcomes.iter().copied();
        let mut folders: Vec<_> = self.nodes.iter().map(Node::synced).collect();
        for (folder, change) in &self.open {
            if outcomes.next() == Some(1) {
                change.apply(*folder, &mut folders);
            }
        }
        let mut next = |of: usize| if of > 1 { outcomes.next().expect("an outcome for each") } else { 0 };
        let entries: Vec<Entry> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(number, node)| {
                let content = match &node.kind {
                    Kind::File(contents) => {
                        let mut survivors = survivors(contents);
                        let chosen = next(survivors.len());
                        Some(survivors.swap_remove(chosen))
                    }
                    Kind::Folder { .. } => None,
                };
                let (mode, stamp) =
                    (node.modes[next(node.modes.len())], node.stamps[next(node.stamps.len())]);
                match content {
                    Some(content) => Entry::File { number, content, mode, stamp },
                    None => Entry::Folder { mode },
                }
            })
            .collect();
        let mut tree = Tree::new();
        let mut to_do = vec![(ROOT, String::new())];
        while let Some((id, path)) = to_do.pop() {
            to_do.extend(folders[id].iter().map(|(name, child)| (*child, format!("{path}/{name}"))));
            tree.insert(path, entries[id].clone());
        }
        tree
    }
}

impl Node {
    fn synced(&self) -> BTreeMap<String, Id> {
        match &self.kind {
            Kind::Folder { synced, .. } => synced.clone(),
            Kind::File(_) => BTreeMap::new(),
        }
    }
}

impl Change {
    fn apply(&self, folder: Id, folders: &mut [BTreeMap<String, Id>]) {
        match self {
            Self::Add(name, id) => drop(folders[folder].insert(name.clone(), *id)),
            Self::Move(from, old, new, id) => {
                if folders[*from].get(old) == Some(id) {
                    folders[*from].remove(old);
                }
                folders[folder].insert(new.clone(), *id);
            }
            Self::Remove(name) => drop(folders[folder].remove(name)),
        }
    }
}

fn add_new<T: PartialEq>(all: &mut Vec<T>, new: T) {
    if all.last() != Some(&new) {
        all.push(new);
    }
}

/// What may be left of a file that had these contents, the synced one first: that, any of the others, and
/// of the newest what was synced with half of the rest, or zeros for it.
fn survivors(contents: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let [synced, .., newest] = contents else { return contents.to_vec() };
    let mut survivors: Vec<Vec<u8>> = Vec::new();
    let rest = newest.len().saturating_sub(synced.len());
    let half = newest[..newest.len() - rest / 2].to_vec();
    let zeros: Vec<u8> = synced.iter().copied().chain(std::iter::repeat(0)).take(newest.len()).collect();
    for content in contents.iter().cloned().chain([half, zeros]) {
        if !survivors.contains(&content) {
            survivors.push(content);
        }
    }
    survivors
}

/// Puts it where nothing is yet.
pub(super) fn materialise(tree: &Tree, at: &Path) {
    let mut written: HashMap<usize, std::path::PathBuf> = HashMap::new();
    for (path, entry) in tree {
        let path = at.join(path.trim_start_matches('/'));
        match entry {
            Entry::Folder { mode } => {
                fs::create_dir(&path).unwrap();
                super::chmod(&path, *mode);
            }
            Entry::File { number, content, mode, stamp } => {
                if let Some(first) = written.get(number) {
                    fs::hard_link(first, &path).unwrap();
                    continue;
                }
                fs::write(&path, content).unwrap();
                if let Some(stamp) = stamp {
                    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*stamp);
                    fs::File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
                }
                super::chmod(&path, *mode);
                written.insert(*number, path);
            }
        }
    }
}
