//! The container image, packed from the binary under test.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::world::{User, World, is_root};

/// Runs a command with a container storage of this world's own, and gives what it printed.
async fn run(world: &World, program: &str, args: &[&str]) -> String {
    let storage = world.path().join("storage.conf");
    let output = Command::new(program)
        .args(args)
        .env("CONTAINERS_STORAGE_CONF", storage)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

#[tokio::test]
async fn the_image_holds_the_binary_and_certificates_and_runs_as_nobody_special() {
    if !(is_root() && on_path("buildah")) {
        eprintln!("not run: needs buildah, and root for it");
        return;
    }
    let world = World::new();
    let storage = world.folder("storage", User::Tests, 0o700).display().to_string();
    let config = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{storage}/graph\"\nrunroot = \"{storage}/run\"\n"
    );
    world.write("storage.conf", config, User::Tests, 0o600);
    run(&world, "scripts/image.sh", &[env!("CARGO_BIN_EXE_wasmferry"), "wasmferry:test"]).await;

    let image = run(&world, "buildah", &["inspect", "--type=image", "wasmferry:test"]).await;
    let config = &serde_json::from_str::<Value>(&image).unwrap()["Docker"]["config"];
    assert_eq!(config["User"], "1337:1337");
    assert_eq!(config["Entrypoint"], json!(["/usr/bin/wasmferry"]));
    assert_eq!(config["Cmd"], json!(["run"]));
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD", "/usr/bin/wasmferry", "health"]));

    let container = run(&world, "buildah", &["from", "--pull-never", "wasmferry:test"]).await;
    let root = PathBuf::from(run(&world, "buildah", &["mount", &container]).await);
    let is = |path: &str| {
        let metadata = std::fs::metadata(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(is("usr/bin/wasmferry"), (0o755, 0, 0));
    assert_eq!(is("etc/ssl/certs/ca-certificates.crt"), (0o644, 0, 0));
    assert_eq!([is("run"), is("var/lib"), is("usr/bin")], [(0o755, 0, 0); 3]);
    assert_eq!([is("run/wasmferry"), is("var/lib/wasmferry")], [(0o755, 1337, 1337); 2]);
    assert_eq!(files(&root), 2, "nothing but the binary and the certificates");
    let certificates = std::fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(certificates.contains("BEGIN CERTIFICATE"));
    run(&world, "buildah", &["rm", &container]).await;
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}
