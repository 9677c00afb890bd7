//! Small files that the configuration names or that lie where containerd's do: read whole, for each pull.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Certificates, keys, credentials and `hosts.toml` are never larger.
const MAX: u64 = 1 << 20;

/// All of a file, of 1 MiB at most. It may hold a secret: what is read is wiped.
pub(super) fn read_small(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Opening a named pipe that nobody writes to must not block.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let too_large = || io::Error::other("it is larger than 1 MiB");
    if found.len() > MAX {
        return Err(too_large());
    }
    // Of one size from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(found.len() as usize + 1));
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(too_large());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_refused_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, b"text").unwrap();
        assert_eq!(read_small(&file).unwrap().as_slice(), b"text");
        std::fs::write(&file, vec![0; MAX as usize + 1]).unwrap();
        let pipe = folder.path().join("p");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for (path, why) in [
            (file.as_path(), "it is larger than 1 MiB"),
            (folder.path(), "it is not a regular file"),
            (&pipe, "it is not a regular file"),
        ] {
            assert_eq!(read_small(path).unwrap_err().to_string(), why);
        }
    }
}
