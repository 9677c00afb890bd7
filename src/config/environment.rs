//! The environment, read once. Nothing else in wasmferry looks at it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use directories::ProjectDirs;

use super::variables::ISTIO;
use crate::fetch::ProgramEnvironment;
use crate::secret::Secret;

/// What the environment says. A variable that is empty counts as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `WASMFERRY_CONFIG`: the configuration where no `--config` is given.
    pub config_file: Option<PathBuf>,
    /// The docker configuration of the user: `config.json` in `DOCKER_CONFIG`, else in `~/.docker`.
    /// It need not exist.
    pub docker_config: Option<PathBuf>,
    /// Where the store is when `cache.directory` is unset: the user's cache directory. None where the
    /// user has no home.
    pub cache_directory: Option<PathBuf>,
    /// `RUST_LOG`, as it is.
    pub rust_log: Option<String>,
    /// `PATH` and `HOME`, which programs that give credentials find in theirs.
    pub programs: ProgramEnvironment,
    /// `NO_COLOR` is set.
    pub no_color: bool,
    /// `HTTP_PROXY` or `http_proxy`, which may hold a password.
    pub http_proxy: Option<Secret>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https_proxy: Option<Secret>,
    /// `NO_PROXY` or `no_proxy`.
    pub no_proxy: Option<String>,
    /// Those of the variables of Istio's agent that mean something here.
    pub istio: BTreeMap<&'static str, String>,
}

impl Environment {
    /// Reads this process's environment.
    pub fn of_process() -> Self {
        // `directories` looks at HOME and XDG_CACHE_HOME, and at the user's entry in the system.
        let cache = ProjectDirs::from("", "", "wasmferry").map(|dirs| dirs.cache_dir().to_owned());
        Self::read(|name| std::env::var(name).ok(), cache)
    }

    /// Reads the variables through `variable`.
    pub fn read(variable: impl Fn(&str) -> Option<String>, cache_directory: Option<PathBuf>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let docker = set("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".docker")));
        // As Go reads them, in the order in which it looks.
        let either = |upper: &str, lower: &str| set(upper).or_else(|| set(lower));
        Self {
            http_proxy: either("HTTP_PROXY", "http_proxy").map(Secret::new),
            https_proxy: either("HTTPS_PROXY", "https_proxy").map(Secret::new),
            no_proxy: either("NO_PROXY", "no_proxy"),
            istio: ISTIO.into_iter().filter_map(|name| Some((name, set(name)?))).collect(),
            config_file: set("WASMFERRY_CONFIG").map(PathBuf::from),
            docker_config: docker.map(|folder| folder.join("config.json")),
            cache_directory,
            rust_log: set("RUST_LOG"),
            programs: ProgramEnvironment { path: set("PATH"), home: set("HOME").map(PathBuf::from) },
            no_color: set("NO_COLOR").is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Environment::read(get, None)
    }

    #[test]
    fn docker_config_names_a_folder_and_wins_over_home() {
        let both = read(&[("DOCKER_CONFIG", "/d"), ("HOME", "/h")]);
        assert_eq!(both.docker_config, Some("/d/config.json".into()));
        assert_eq!(read(&[("HOME", "/h")]).docker_config, Some("/h/.docker/config.json".into()));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let names =
            ["WASMFERRY_CONFIG", "DOCKER_CONFIG", "HOME", "PATH", "RUST_LOG", "NO_COLOR", "HTTPS_PROXY"];
        assert_eq!(read(&names.map(|name| (name, ""))), Environment::default());
        assert_eq!(read(&ISTIO.map(|name| (name, ""))), Environment::default());
    }
}
