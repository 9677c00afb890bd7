//! An agent in the tests' own process, by a clock that the test moves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use wasmferry::app::App;
use wasmferry::clock::{Clock, ManualClock};
use wasmferry::config::{Environment, Loader, Overrides};
use wasmferry::xds::frame::STALL_LIMIT;

use super::envoy::Xds;
use super::world::World;
use super::{client, eventually};

pub struct Timed {
    pub clock: ManualClock,
    pub xds: Xds,
    pub tcp: SocketAddr,
    pub health: SocketAddr,
    pub stop: Arc<Notify>,
    pub running: JoinHandle<bool>,
}

impl Timed {
    /// With more lines for its configuration.
    pub async fn start(world: &World, control_plane: &Xds, more: &str) -> Timed {
        let Xds::Tcp(upstream) = control_plane else { panic!("a TCP address") };
        let (tcp, health) = (world.address(), world.address());
        let cache = world.path().join("cache");
        let yaml = format!(
            "version: 1\nlisteners: [{{address: \"{tcp}\"}}]\nupstream: {{address: \"http://{upstream}\"}}\n\
             cache: {{directory: {}}}\nhealth: {{listen: \"{health}\"}}\nshutdown: {{timeout: 1h}}\n{more}\n",
            cache.display()
        );
        let file = world.path().join("timed.yaml");
        std::fs::write(&file, yaml).expect("a file");
        let loader = Loader::new(Some(file), &Environment::default(), Overrides::default());
        let config = loader.load_agent().expect("a configuration");
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH);
        let app = App::build(config, Clock::Manual(clock.clone())).await.expect("an agent");
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone().notified_owned();
        let running = tokio::spawn(app.run(std::future::pending, async move {
            stopped.await;
            "the test"
        }));
        Timed { clock, xds: Xds::Tcp(tcp), tcp, health, stop, running }
    }

    /// Moves the clock until something has happened that time brings.
    pub async fn passes<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        self.passes_by(STALL_LIMIT, what, future).await
    }

    /// The same in steps of this length.
    pub async fn passes_by<T>(&self, step: Duration, what: &str, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        eventually(what, async || {
            tokio::select! {
                biased;
                output = &mut future => Some(output),
                () = tokio::task::yield_now() => {
                    self.clock.advance(step);
                    None
                }
            }
        })
        .await
    }

    /// A sample of the metrics; 0 where there is none yet.
    pub async fn metric(&self, sample: &str) -> u64 {
        let text = client::get(self.health, "/metrics").await.expect("the health listener").text();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a whole number"))
    }
}
