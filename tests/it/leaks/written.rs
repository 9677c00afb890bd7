//! All that a run has written, and where.

use std::fs;
use std::path::Path;

use crate::support::agent::{Agent, command};
use crate::support::pulls::tree;
use crate::support::world::World;

/// What was written, and where.
#[derive(Default)]
pub struct Written(pub Vec<(String, Vec<u8>)>);

impl Written {
    pub fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// Runs a command and gives its exit code.
    pub async fn command(&mut self, world: &World, args: &[&str], env: &[(&str, &str)]) -> Option<i32> {
        let output = command(world, args.iter().copied(), env).await;
        for (stream, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
            self.add(format!("{stream} of {}", args[0]), bytes);
        }
        output.status.code()
    }

    /// Every page of a running agent.
    pub async fn pages(&mut self, agent: &Agent) {
        for path in ["/", "/healthz", "/readyz", "/metrics", "/state", "/nothing"] {
            self.add(format!("the health listener's {path}"), agent.health(path).await.body);
            self.add(format!("the administrator's {path}"), agent.admin(path).await.body);
        }
    }

    /// All files below a folder: their names and what is in them.
    pub fn folder(&mut self, folder: &Path) {
        for (name, entry) in tree(folder) {
            self.add(format!("the name of {name}"), name.as_bytes());
            if !entry.folder {
                self.add(format!("the file {name}"), fs::read(folder.join(&name)).unwrap());
            }
        }
    }

    pub fn all(&self, place: &str) -> String {
        let of_place = self.0.iter().filter(|(at, _)| at.contains(place));
        of_place.map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect()
    }
}
