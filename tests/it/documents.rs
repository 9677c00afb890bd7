//! README and ARCHITECTURE, held to the code: what they list is what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wasmferry::config::{Config, Environment, Loader, Overrides};
use wasmferry::fetch::Registry;
use wasmferry::metrics::{MessageLabels, Metrics, ReasonLabel, ServingLabel, result};
use wasmferry::wasm::Budgets;

use crate::support::agent::binary;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The text between two headings.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}")) + 1;
    let rest = &text[start..];
    rest.find("\n## ").map_or(rest, |end| &rest[..end])
}

/// The cells of each row of the tables in a text, their heads and rules left out.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = lines.map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>());
    rows.filter(|cells| cells[0].starts_with('`')).collect()
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// An agent's configuration with one key set; the place is written as in README's table.
fn with(place: &str, value: &Value) -> Value {
    let mut whole = json!({
        "version": 1,
        "listeners": [{"address": "unix:/a"}],
        "upstream": {"directory": "/p"},
    });
    let mut at = &mut whole;
    for step in place.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = match step.strip_suffix("[]") {
            Some(list) => {
                if !at[list].is_array() {
                    at[list] = json!([null]);
                }
                &mut at[list][0]
            }
            None if step == "HOST" => &mut at["registry.example"],
            None => &mut at[step],
        };
    }
    *at = value.clone();
    whole
}

/// JSON is YAML: the loader reads it as it reads any file.
fn load(whole: &Value) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    fs::write(&file, whole.to_string()).unwrap();
    let environment = Environment { cache_directory: Some("/cache".into()), ..Environment::default() };
    let loader = Loader::new(Some(file), &environment, Overrides::default());
    loader.load().map_err(|error| error.to_string())
}

/// A value as a table shows it.
fn value(shown: &str) -> Value {
    let text = shown.trim_matches('"');
    match (shown.parse::<u64>(), shown.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(boolean)) => boolean.into(),
        _ => text.into(),
    }
}

/// All keys that the schema takes, as its own errors tell them.
fn keys_of_the_schema() -> BTreeSet<String> {
    let known = |place: &str| -> Option<Vec<String>> {
        let inner = if place.is_empty() { "?".to_owned() } else { format!("{place}.?") };
        let error = load(&with(&inner, &json!(1))).unwrap_err();
        let shown = inner.replace("[]", "[0]").replace("HOST", "registry.example");
        let told = error.split(&format!(" {shown}: unknown key; known are ")).nth(1)?;
        Some(told.lines().next()?.split(", ").map(str::to_owned).collect())
    };
    let mut keys = BTreeSet::new();
    let mut left = known("").unwrap();
    while let Some(key) = left.pop() {
        let places = [key.clone(), format!("{key}[]"), format!("{key}.HOST")];
        let inner = places.iter().find_map(|place| Some((place, known(place)?)));
        match inner {
            Some((place, inner)) => left.extend(inner.iter().map(|key| format!("{place}.{key}"))),
            None => _ = keys.insert(key),
        }
    }
    keys
}

#[test]
fn the_table_of_the_configuration_has_every_key_with_its_default_and_limits() {
    let readme = document("README.md");
    let rows = rows(section(&readme, "Configuration"));
    let keys: BTreeSet<String> = rows.iter().map(|row| code(row[0])[0].to_owned()).collect();
    assert_eq!(keys, keys_of_the_schema());

    let budgets = Budgets::default();
    let budgets = BTreeMap::from([
        ("wasm.types", budgets.types.to_string()),
        ("wasm.params", budgets.params.to_string()),
        ("wasm.imports", budgets.imports.to_string()),
        ("wasm.functions", budgets.functions.to_string()),
        ("wasm.function_body_bytes", format!("{}MiB", budgets.function_body_bytes >> 20)),
    ]);
    let unset = load(&with("version", &json!(1))).unwrap();
    let (mut defaults, mut limits) = (0, 0);
    for row in &rows {
        let key = code(row[0])[0];
        if row[1].starts_with('`') {
            let default = code(row[1])[0];
            match budgets.get(key) {
                Some(budget) => assert_eq!(default, budget, "{key}"),
                None => {
                    // Health and admin have no default; a section that is there is not one that is not.
                    let set = load(&with(key, &value(default))).unwrap_or_else(|error| panic!("{error}"));
                    match key.strip_prefix("registries.HOST.") {
                        Some(_) => {
                            assert_eq!(set.registries["registry.example"], Registry::default(), "{key}");
                        }
                        None => assert_eq!(set, unset, "{key} is not {default} by default"),
                    }
                }
            }
            defaults += 1;
        }
        if let [low, high] = code(row[2])[..]
            && row[2] == format!("`{low}` to `{high}`")
        {
            for end in [low, high].into_iter().filter(|end| !keys.contains(*end)) {
                load(&with(key, &value(end))).unwrap_or_else(|error| panic!("{error}"));
            }
            limits += 1;
        }
    }
    assert!(defaults >= 15 && limits >= 10, "the table was read: {defaults} defaults, {limits} limits");
}

#[test]
fn the_table_of_metrics_has_every_metric() {
    let (metrics, registry) = Metrics::new();
    // Taken apart whole, so that a new one cannot be forgotten; a family without a label is not shown.
    let Metrics {
        streams: _,
        stream_ends,
        messages,
        resources,
        serving,
        lookups,
        fetches,
        tag_refreshes,
        credentials,
        fetch_waits,
        fetch_resumes,
        fetch_saved_bytes: _,
        fetch_retries,
        fetch_seconds: _,
        fetched_bytes: _,
        store_modules: _,
        store_dropped_records: _,
        store_bytes: _,
        store_leased: _,
        store_pinned: _,
        store_collected,
        store_damaged: _,
        lower_modules,
        shared_modules,
        store_collection_time: _,
        lease_failures: _,
        reloads,
        plugin_problems: _,
        bytes_in_flight: _,
    } = metrics;
    for family in [
        stream_ends,
        resources,
        lookups,
        fetches,
        tag_refreshes,
        credentials,
        fetch_waits,
        fetch_resumes,
        lower_modules,
        shared_modules,
        reloads,
    ] {
        family.get_or_create(&result("any")).inc();
    }
    serving.get_or_create(&ServingLabel { serving: "current" }).set(1);
    for family in [store_collected, fetch_retries] {
        family.get_or_create(&ReasonLabel { reason: "any" }).inc();
    }
    messages.get_or_create(&MessageLabels { from: "envoy", intercepted: "true" }).inc();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let shown: BTreeMap<String, String> = types
        .map(|(name, kind)| {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{suffix}"), kind.to_owned())
        })
        .collect();
    let readme = document("README.md");
    let listed: BTreeMap<String, String> = rows(section(&readme, "Metrics"))
        .iter()
        .map(|row| (code(row[0])[0].to_owned(), row[1].to_owned()))
        .collect();
    assert_eq!(listed, shown);
}

/// The text of every source file.
fn sources() -> String {
    let mut folders = vec![root().join("src"), root().join("tests")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

#[test]
fn every_invariant_names_tests_that_exist_or_says_what_is_missing() {
    let architecture = document("ARCHITECTURE.md");
    let sources = sources();
    let invariants = section(&architecture, "Invariants");
    let items: Vec<&str> = (1..)
        .map_while(|number| {
            let start = invariants.find(&format!("\n{number}. "))? + 1;
            let end = invariants.find(&format!("\n{}. ", number + 1)).unwrap_or(invariants.len());
            Some(&invariants[start..end])
        })
        .collect();
    assert_eq!(items.len(), 18);
    for item in items {
        assert!(tests_named_in(item, &sources) > 0 || item.contains("Not yet:"), "{item}");
    }
}

/// How many tests a text names. All of them are there.
fn tests_named_in(text: &str, sources: &str) -> usize {
    let tests: Vec<&str> = code(text).into_iter().filter(|word| word.matches('_').count() >= 3).collect();
    for test in &tests {
        assert!(sources.contains(&format!("fn {test}(")), "there is no test {test}");
    }
    tests.len()
}

#[test]
fn every_hostile_peer_names_tests_that_exist() {
    let architecture = document("ARCHITECTURE.md");
    let sources = sources();
    let peers: Vec<&str> = section(&architecture, "Hostile peers").split("\n- ").skip(1).collect();
    assert!(!peers.is_empty());
    for peer in peers {
        assert!(tests_named_in(peer, &sources) > 0, "{peer}");
    }
}

#[test]
fn what_check_says_in_the_readme_is_what_it_says() {
    let readme = document("README.md");
    let (_, shown) =
        readme.split_once("$ wasmferry check --config agent-config/node.yaml\n").expect("an example");
    let shown: Vec<&str> = shown.lines().take_while(|line| !line.is_empty()).collect();
    let file = root().join("agent-config/node.yaml");
    let output =
        std::process::Command::new(binary()).args(["check", "--config"]).arg(file).env_clear().output();
    let said = String::from_utf8(output.expect("wasmferry").stdout).expect("text");
    // The first line begins with the path.
    assert_eq!(shown[1..], said.lines().skip(1).collect::<Vec<_>>());
}

#[test]
fn the_documents_point_at_files_that_exist() {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = document(name);
        let targets = text.split("](").skip(1).map(|rest| &rest[..rest.find(')').unwrap()]);
        let files: Vec<PathBuf> = targets
            .filter(|target| !target.contains("://") && !target.starts_with('#'))
            .map(|target| root().join(target.split('#').next().unwrap()))
            .collect();
        for file in files {
            assert!(file.exists(), "{name} points at {}", file.display());
        }
    }
}
