//! Small files that the configuration names or that lie where containerd's do: read whole, for each pull.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Certificates, keys and `hosts.toml` are never larger.
const MAX: u64 = 1 << 20;

/// All of a file. It may hold a key: what is read is wiped.
pub(super) fn read_small(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}
