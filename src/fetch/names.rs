//! Names to addresses, on threads of its own: `getaddrinfo` blocks for as long as the name server
//! likes, so it must have neither the runtime's threads nor those that file work needs.
//!
//! Bounded: [`MAX_THREADS`] lookups at once, [`MAX_NAMES`] names waited for. One name takes one thread
//! however many ask for it, so a dead name server holds up its own names and not the others.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

const MAX_THREADS: usize = 8;
const MAX_NAMES: usize = 256;

/// How a name is looked up: `getaddrinfo`, or what a test says.
pub(super) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// The system's lookup.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        let mut addresses: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        Ok(addresses)
    })
}

/// Looks names up. Dropping it ends its threads, those at work when their lookup ends.
pub(super) struct Names(Arc<Shared>);

struct Shared {
    lookup: Lookup,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<String>,
    /// Who waits for a name, from its queueing until its answer.
    waiting: HashMap<String, Vec<oneshot::Sender<io::Result<Vec<IpAddr>>>>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Names {
    pub(super) fn new(lookup: Lookup) -> Self {
        Names(Arc::new(Shared { lookup, state: Mutex::default(), work: Condvar::new() }))
    }

    /// The addresses of a name, never none. Has no deadline of its own: the caller gives up by
    /// dropping the future.
    pub(super) async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let answer = self.ask(name)?;
        let addresses = answer.await.map_err(io::Error::other)??;
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(addresses)
    }

    fn ask(&self, name: &str) -> io::Result<oneshot::Receiver<io::Result<Vec<IpAddr>>>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.0.lock();
        if let Some(waiting) = state.waiting.get_mut(name) {
            waiting.push(sender);
            return Ok(receiver);
        }
        if state.waiting.len() >= MAX_NAMES {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "too many names are being looked up"));
        }
        if state.idle <= state.queue.len() && state.threads < MAX_THREADS {
            let shared = self.0.clone();
            std::thread::Builder::new().name("names".to_owned()).spawn(move || shared.work())?;
            state.threads += 1;
        }
        state.waiting.insert(name.to_owned(), vec![sender]);
        state.queue.push_back(name.to_owned());
        self.0.work.notify_one();
        Ok(receiver)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(name) = self.next() {
            let answer = (self.lookup)(&name);
            let waiting = self.lock().waiting.remove(&name).unwrap_or_default();
            for waiter in waiting {
                // Fails where the one who asked has given up.
                let _ = waiter.send(match &answer {
                    Ok(addresses) => Ok(addresses.clone()),
                    Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                });
            }
        }
    }

    /// The next name that somebody still waits for; none when all is over.
    fn next(&self) -> Option<String> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let Some(name) = state.queue.pop_front() else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            let wanted = |waiting: &Vec<oneshot::Sender<_>>| waiting.iter().any(|waiter| !waiter.is_closed());
            if state.waiting.get(&name).is_some_and(wanted) {
                return Some(name);
            }
            state.waiting.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Names that begin with `dead` are answered only when the test ends.
    fn names() -> (Names, mpsc::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (end, never) = mpsc::channel::<()>();
        let never = Mutex::new(never);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let lookup: Lookup = Arc::new(move |name| {
            log.lock().unwrap().push(name.to_owned());
            if name.starts_with("dead") {
                let _ = never.lock().unwrap().recv();
            }
            Ok(vec![IpAddr::from([192, 0, 2, 1])])
        });
        (Names::new(lookup), end, asked)
    }

    #[tokio::test]
    async fn a_dead_name_server_holds_up_its_own_names_only() {
        let (names, _end, asked) = names();
        let dead: Vec<_> = (0..100).map(|_| names.ask("dead.example").unwrap()).collect();
        assert_eq!(names.lookup("live.example").await.unwrap().len(), 1);
        assert!(dead.into_iter().all(|mut answer| answer.try_recv().is_err()));
        assert!(asked.lock().unwrap().iter().filter(|name| *name == "dead.example").count() <= 1);
    }

    #[tokio::test]
    async fn threads_and_names_in_wait_are_bounded() {
        let (names, _end, _) = names();
        let waiting: Vec<_> = (0..MAX_NAMES).map(|i| names.ask(&format!("dead{i}")).unwrap()).collect();
        assert_eq!(names.0.lock().threads, MAX_THREADS);
        let error = names.lookup("one.more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(waiting);
    }

    #[tokio::test]
    async fn a_name_that_nobody_waits_for_any_more_is_not_looked_up() {
        let (names, end, asked) = names();
        let dead: Vec<_> = (0..MAX_THREADS).map(|i| names.ask(&format!("dead{i}")).unwrap()).collect();
        drop(names.ask("given.up").unwrap());
        let last = names.ask("last.one").unwrap();
        drop(end);
        last.await.unwrap().unwrap();
        drop(dead);
        assert!(!asked.lock().unwrap().contains(&"given.up".to_owned()));
    }

    #[tokio::test]
    async fn an_unknown_host_is_an_error() {
        let names = Names::new(system());
        assert!(names.lookup("no-such-host.invalid").await.is_err());
    }
}
