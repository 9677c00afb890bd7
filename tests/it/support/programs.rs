//! Programs of a test's own that the agent runs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::world::{User, World};

/// A shell script that the agent's user may run; gives its folder. Another process writes it: what is open for
/// writing here, and inherited by what another test starts, cannot be run.
pub fn script(world: &World, name: &str, text: &str) -> PathBuf {
    let folder = world.folder("programs", User::Agent, 0o755);
    let source = world.write(&format!("{name}.source"), format!("#!/bin/sh\n{text}\n"), User::Tests, 0o644);
    let file = folder.join(name);
    assert!(Command::new("cp").args([&source, &file]).status().expect("cp").success());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    folder
}
