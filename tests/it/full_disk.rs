//! A file system that really is full, and one that becomes read-only while an agent runs: what Envoy has it
//! keeps, what is there is served, and all goes on by itself when that has passed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::envoy::{self, Envoy, Variant};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::pulls::{self, prefetch};
use crate::support::registry::{Access, Layout};
use crate::support::resources::{Kind, lds_type};
use crate::support::traffic::in_short;
use crate::support::world::User;

const MODULE: usize = 200_000;
/// Room for three of them, and for what else the store writes.
const ROOM: usize = 800 << 10;

/// A file system of its own in the place of a folder.
struct Mounted(PathBuf);

impl Mounted {
    /// None where nobody may mount anything, which is said.
    fn over(folder: &Path) -> Option<Self> {
        let owner = match User::Agent.ids() {
            Some((uid, gid, _)) => format!(",uid={uid},gid={gid}"),
            None => String::new(),
        };
        let options = format!("size={ROOM},mode=0711{owner}");
        if !mount(&["-t", "tmpfs", "-o", &options, "tmpfs", folder.to_str().unwrap()]) {
            eprintln!("NOT SHOWN: this machine lets nobody mount, so nothing here was tested");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    /// Makes it read-only, or not any more.
    async fn read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        // Not while something is being written.
        eventually("the mount", async || mount(&["-o", options, self.0.to_str().unwrap()]).then_some(()))
            .await;
    }

    /// Fills it up to so many bytes.
    fn fill(&self, leaving: u64) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while self.free() > leaving {
            let some = vec![0; usize::try_from(self.free() - leaving).unwrap().min(4096)];
            if ballast.write_all(&some).is_err() {
                return;
            }
        }
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        found.f_bavail * found.f_frsize
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever still has something open in it keeps it for as long.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(args: &[&str]) -> bool {
    let output = Command::new("mount").args(args).output();
    output.is_ok_and(|output| output.status.success())
}

fn padded_module(fixture: &str, number: usize) -> Vec<u8> {
    padded(&module(fixture), MODULE + number)
}

async fn publish(mesh: &Mesh, fixture: &str, number: usize) -> String {
    let (repository, module) = (format!("sized-{number}"), padded_module(fixture, number));
    mesh.registry.publish(&repository, "v1", Layout::Artifact, &module).await;
    mesh.registry.url(&repository, "v1")
}

async fn answers(envoy: &Envoy, name: &str) -> String {
    in_short(&envoy::request(envoy.listener(name).await).await)
}

/// What the agent says is wrong with a resource.
async fn complaint(mesh: &Mesh, resource: &str) -> String {
    eventually("a failed fetch", async || {
        mesh.state(resource).await?["last_error"].as_str().map(str::to_owned)
    })
    .await
}

fn unfinished(mesh: &Mesh) -> usize {
    pulls::unfinished(&mesh.agent.cache).len()
}

#[tokio::test]
async fn on_a_full_file_system_envoy_keeps_what_it_runs_and_gets_what_is_new_when_there_is_room() {
    let mut mesh = Mesh::start_with(Access::Anonymous, |options| options.with_cache("min_free: 0B")).await;
    mesh.agent.kill();
    let Some(disk) = Mounted::over(&mesh.agent.cache) else { return };
    mesh.agent.resume(&mesh.world).await;
    let (old, new) = (publish(&mesh, "add-header-v1", 1).await, publish(&mesh, "add-header-v2", 2).await);
    let unused = publish(&mesh, "add-header-v1", 3).await;
    prefetch(&mesh.world, [unused.as_str()], &[]).await.module(&unused, &padded_module("add-header-v1", 3));
    mesh.control_plane
        .set_all([listener("web", &[], &["filter"]), from_istio(Kind::Http, &old).resource("filter")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    envoy.live().await;
    assert_eq!(answers(&envoy, "web").await, "200 v1");

    // Half a module fits.
    disk.fill(MODULE as u64 / 2);
    mesh.control_plane.set(from_istio(Kind::Http, &new).resource("filter"));
    let said = complaint(&mesh, "filter").await;
    assert!(
        said.contains("no space, or no quota, is left for") && said.contains("/v1/content/ingest/"),
        "{said}"
    );
    assert!(mesh.agent.metric(r#"wasmferry_fetches_total{result="store_no_space"}"#).await > 0);
    assert_eq!(answers(&envoy, "web").await, "200 v1");
    assert_eq!(unfinished(&mesh), 0, "nothing is left behind");

    // Not even a lease does. Who comes now is given what is there all the same.
    disk.fill(0);
    let failures = mesh.agent.metric("wasmferry_store_lease_failures_total").await;
    mesh.control_plane.set_all([
        listener("web", &[], &["filter"]),
        listener("more", &[], &["filter", "again"]),
        from_istio(Kind::Http, &new).resource("filter"),
        from_istio(Kind::Http, &unused).resource("again"),
    ]);
    eventually("the second listener", async || {
        (answers(&envoy, "more").await.starts_with("200 v1")).then_some(())
    })
    .await;
    assert!(mesh.agent.metric("wasmferry_store_lease_failures_total").await > failures);
    assert_eq!(unfinished(&mesh), 0);

    disk.make_room();
    eventually("the new module, of itself", async || {
        (answers(&envoy, "web").await == "200 v2").then_some(())
    })
    .await;
    assert_eq!(mesh.control_plane.nacks(&lds_type()), [] as [String; 0]);
    eventually("the lease", async || {
        let leases = mesh.agent.cache.join("v1/content/leases");
        let lease = fs::read_dir(&leases).ok()?.next()?.ok()?.path();
        fs::read_to_string(lease).ok()?.contains("\"again\"").then_some(())
    })
    .await;
    drop(envoy);
    drop(disk);
}

#[tokio::test]
async fn on_a_file_system_that_becomes_read_only_what_is_there_is_served() {
    let mut mesh = Mesh::start_with(Access::Anonymous, |options| options.with_cache("min_free: 0B")).await;
    mesh.agent.kill();
    let Some(disk) = Mounted::over(&mesh.agent.cache) else { return };
    mesh.agent.resume(&mesh.world).await;
    let (old, new) = (publish(&mesh, "add-header-v1", 1).await, publish(&mesh, "add-header-v2", 2).await);
    mesh.control_plane
        .set_all([listener("web", &[], &["filter"]), from_istio(Kind::Http, &old).resource("filter")]);
    let first = mesh.envoy(Variant::Delta).await;
    first.live().await;
    assert_eq!(answers(&first, "web").await, "200 v1");
    drop(first);
    // What it has made it has open to write, which keeps the file system writable.
    assert_eq!(mesh.agent.stop().await, Some(0));
    mesh.agent.resume(&mesh.world).await;

    assert!(mesh.agent.log().contains("the store is on tmpfs"), "{}", mesh.agent.log());

    disk.read_only(true).await;
    let before = mesh.registry.pulls().await.len();
    let envoy = mesh.envoy(Variant::SotwUnified).await;
    envoy.live().await;
    assert_eq!(answers(&envoy, "web").await, "200 v1");
    assert_eq!(mesh.registry.pulls().await.len(), before, "a hit");
    mesh.control_plane.set(from_istio(Kind::Http, &new).resource("filter"));
    let said = complaint(&mesh, "filter").await;
    assert!(said.contains("is on a read-only file system, and the store must be written to"), "{said}");
    assert!(mesh.agent.metric(r#"wasmferry_fetches_total{result="store_read_only"}"#).await > 0);
    assert_eq!(answers(&envoy, "web").await, "200 v1");

    disk.read_only(false).await;
    eventually("the new module, of itself", async || {
        (answers(&envoy, "web").await == "200 v2").then_some(())
    })
    .await;
    assert_eq!(unfinished(&mesh), 0);
    drop(envoy);
    drop(disk);
}
