//! Where resources come from: a control plane, or a directory of plugin files that takes its place.

pub mod directory;
