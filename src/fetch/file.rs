//! A module from a file. A resource names a file that the agent opens with its own rights, so it may
//! name one only below folders that the configuration lists, and no link in there leads out.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::error::{FetchError, RegistryCode};

/// Which files may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileAccess {
    /// Any: what the operator names on the command line.
    Any,
    /// Those below one of these absolute folders.
    Below(Vec<PathBuf>),
}

/// Opens a regular file; returns it with its size. Blocks as file systems do.
pub(super) fn open(access: &FileAccess, path: &Path) -> Result<(File, u64), FetchError> {
    let (file, metadata) = open_any(access, path)?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(not_regular(path)),
    }
}

/// Opens a regular file in a folder that is open, through no link that leads out of that; none where there
/// is none. Blocks as file systems do.
pub(super) fn within(folder: &OwnedFd, path: &Path) -> Result<Option<File>, FetchError> {
    let file = match below(folder, path) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::XDEV | Errno::LOOP | Errno::NXIO) => return Err(not_regular(path)),
        Err(error) => return Err(FetchError::File { path: path.to_owned(), source: error.into() }),
    };
    let metadata = file.metadata().map_err(|source| FetchError::File { path: path.to_owned(), source })?;
    if metadata.is_file() { Ok(Some(file)) } else { Err(not_regular(path)) }
}

fn not_regular(path: &Path) -> FetchError {
    FetchError::FileNotAllowed { path: path.to_owned(), reason: "it is not a regular file" }
}

/// Opens a file or folder that may be read, whatever it is. Blocks as file systems do.
pub(super) fn open_any(access: &FileAccess, path: &Path) -> Result<(File, Metadata), FetchError> {
    let not_allowed = |reason| FetchError::FileNotAllowed { path: path.to_owned(), reason };
    let opened = match access {
        FileAccess::Any => openat(CWD, path, FLAGS, Mode::empty()),
        FileAccess::Below(folders) => {
            let inside = folders.iter().find_map(|folder| Some((folder, path.strip_prefix(folder).ok()?)));
            let (folder, rest) = inside.ok_or_else(|| not_allowed("it is in no allowed folder"))?;
            // The kernel would resolve `..` safely; but no honest URL has one left.
            let names_a_file = !rest.as_os_str().is_empty();
            if !names_a_file || !rest.components().all(|component| matches!(component, Component::Normal(_)))
            {
                return Err(not_allowed("its path is not that of a file in an allowed folder"));
            }
            beneath(folder, rest)
        }
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let what = format!("the file {}", path.display());
            return Err(FetchError::NotFound { what, code: RegistryCode::default() });
        }
        Err(Errno::XDEV | Errno::LOOP) => {
            return Err(not_allowed("a link in it leads out of the allowed folder"));
        }
        // A socket, or a pipe or device with nobody at its other end.
        Err(Errno::NXIO) => return Err(not_allowed("it is not a regular file")),
        Err(error) => return Err(FetchError::File { path: path.to_owned(), source: error.into() }),
    };
    let metadata = file.metadata().map_err(|source| FetchError::File { path: path.to_owned(), source })?;
    Ok((file, metadata))
}

/// A pipe must not make the open wait for a writer, nor a terminal become ours.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn beneath(folder: &Path, rest: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    below(&openat(CWD, folder, flags, Mode::empty())?, rest)
}

fn below(folder: &OwnedFd, rest: &Path) -> Result<OwnedFd, Errno> {
    /// The kernel gives up when a rename happens beside it.
    const TRIES: usize = 16;

    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(folder, rest, FLAGS, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return without_links(folder, rest),
            outcome => return outcome,
        }
    }
    Err(Errno::AGAIN)
}

/// Part by part, and through no link at all.
fn without_links(folder: &OwnedFd, rest: &Path) -> Result<OwnedFd, Errno> {
    let mut parts = rest.components().map(Component::as_os_str).peekable();
    let mut current = openat(folder, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    while let Some(part) = parts.next() {
        let flags = match parts.peek() {
            Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            None => FLAGS | OFlags::NOFOLLOW,
        };
        current = openat(&current, part, flags, Mode::empty())?;
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `allowed/{module,deep/module,in,out,out_dir,pipe}` and `secret` beside it.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let allowed = root.path().join("allowed");
        std::fs::create_dir_all(allowed.join("deep")).unwrap();
        std::fs::write(root.path().join("secret"), "secret").unwrap();
        std::fs::write(allowed.join("module"), "wasm").unwrap();
        std::fs::write(allowed.join("deep/module"), "deep").unwrap();
        symlink("deep/module", allowed.join("in")).unwrap();
        symlink("../secret", allowed.join("out")).unwrap();
        symlink(root.path().join("secret"), allowed.join("absolute")).unwrap();
        symlink("..", allowed.join("out_dir")).unwrap();
        rustix::fs::mknodat(CWD, allowed.join("pipe"), rustix::fs::FileType::Fifo, Mode::from(0o600), 0)
            .unwrap();
        (root, allowed)
    }

    fn read(access: &FileAccess, path: &Path) -> Result<String, &'static str> {
        let (mut file, size) = open(access, path).map_err(|error| error.label())?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(size, text.len() as u64);
        Ok(text)
    }

    #[test]
    fn a_file_below_an_allowed_folder_is_read_through_links_that_stay_inside() {
        let (_root, allowed) = tree();
        let access = FileAccess::Below(vec!["/nowhere".into(), allowed.clone()]);
        assert_eq!(read(&access, &allowed.join("module")).unwrap(), "wasm");
        assert_eq!(read(&access, &allowed.join("in")).unwrap(), "deep");
        assert_eq!(read(&access, &allowed.join("missing")), Err("not_found"));
    }

    #[test]
    fn nothing_leads_out_of_an_allowed_folder() {
        let (root, allowed) = tree();
        let access = FileAccess::Below(vec![allowed.clone()]);
        for path in ["out", "absolute", "out_dir/secret", "../secret", "deep/../../secret", "", "deep"] {
            assert_eq!(read(&access, &allowed.join(path)), Err("file_not_allowed"), "{path}");
        }
        for path in [root.path().join("secret"), root.path().join("allowed_too"), "/etc/passwd".into()] {
            assert_eq!(read(&access, &path), Err("file_not_allowed"), "{path:?}");
        }
        assert_eq!(read(&FileAccess::Below(vec![]), &allowed.join("module")), Err("file_not_allowed"));
    }

    #[test]
    fn without_openat2_no_link_is_followed_at_all() {
        let (_root, allowed) = tree();
        let open = |rest: &str| {
            let folder = openat(CWD, &allowed, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
            without_links(&folder, Path::new(rest)).map(drop)
        };
        assert_eq!(open("deep/module"), Ok(()));
        for rest in ["in", "out", "absolute", "out_dir/secret"] {
            assert!(open(rest).is_err(), "{rest}");
        }
    }

    #[test]
    fn a_pipe_or_a_device_is_refused_at_once() {
        let (_root, allowed) = tree();
        assert_eq!(read(&FileAccess::Any, &allowed.join("pipe")), Err("file_not_allowed"));
        assert_eq!(read(&FileAccess::Any, Path::new("/dev/zero")), Err("file_not_allowed"));
        assert_eq!(read(&FileAccess::Any, &allowed), Err("file_not_allowed"));
        assert_eq!(read(&FileAccess::Any, &allowed.join("out")).unwrap(), "secret", "the operator may");
    }
}
