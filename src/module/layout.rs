//! Reads what names an image in an OCI image layout on this machine: `/PATH[:TAG|@DIGEST]`. By the letter:
//! nothing in it stands for another character.

use std::path::PathBuf;

use super::reference::is_tag;
use crate::digest::SourceDigest;

/// Which image of a layout is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayoutImage {
    /// What `org.opencontainers.image.ref.name` calls so.
    Tag(String),
    /// A manifest's or an index's.
    Digest(SourceDigest),
}

pub(super) fn parse(text: &str) -> Result<(PathBuf, Option<LayoutImage>), &'static str> {
    let (folder, last) = text.rsplit_once('/').ok_or("it needs an absolute path")?;
    let (name, image) = match (last.split_once('@'), last.split_once(':')) {
        (Some((name, digest)), _) => {
            let digest = digest.parse();
            let digest = digest.map_err(|_| "the digest is not `sha256:` and 64 lower-case hex digits")?;
            (name, Some(LayoutImage::Digest(digest)))
        }
        (None, Some((name, tag))) if is_tag(tag) => (name, Some(LayoutImage::Tag(tag.to_owned()))),
        (None, Some(_)) => return Err("the tag is not 1 to 128 letters, digits, `_`, `.` and `-`"),
        (None, None) => (last, None),
    };
    if !text.starts_with('/') || matches!(name, "" | "." | "..") {
        return Err("it needs an absolute path and no host, as in oci-layout:///dir/image.tar:v1");
    }
    // Line breaks and the like would be printed with the path.
    if text.contains(char::is_control) {
        return Err("its path is no printable text");
    }
    Ok((PathBuf::from(format!("{folder}/{name}")), image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_named_by_its_path_and_a_tag_or_digest_behind_it() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let tag = |tag: &str| Some(LayoutImage::Tag(tag.to_owned()));
        for (text, path, image) in [
            ("/a/b", "/a/b", None),
            ("/a/b.tar:v1", "/a/b.tar", tag("v1")),
            ("/a:b/c d%20:v1", "/a:b/c d%20", tag("v1")),
            (&format!("/a/b@{digest}"), "/a/b", Some(LayoutImage::Digest(digest.parse().unwrap()))),
        ] {
            assert_eq!(parse(text), Ok((path.into(), image)), "{text}");
        }
        for text in
            ["", "a", "a/b", "host/a:v1", "/", "/a/", "/a/..", "/a:", "/a:b:c", "/a@v1", "/a:v1@v1", "/a\nb"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
