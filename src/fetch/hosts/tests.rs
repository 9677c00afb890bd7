//! Whom a registry's images are asked of, from the configuration and from containerd's folders.

use std::fs;
use std::path::Path;

use super::*;

/// Each host in order: where its repository is, `ns`, and what it may be asked and told.
async fn of(registries: &[(&str, Registry)], folders: &[PathBuf], registry: &str) -> Vec<String> {
    let registries = registries.iter().map(|(host, entry)| ((*host).to_owned(), entry.clone())).collect();
    let found = endpoints(&registries, folders, registry).await.unwrap();
    let show = |endpoint: &Arc<Endpoint>| {
        let (url, _) = endpoint.repository("a/b").unwrap();
        let mut text = url.to_string();
        text += &endpoint.namespace.as_ref().map(|ns| format!(" ns={ns}")).unwrap_or_default();
        text += if endpoint.credentials { " told" } else { "" };
        text + if endpoint.resolve { "" } else { " by digest" }
    };
    found.iter().map(show).collect()
}

fn mirror(url: &str) -> Mirror {
    Mirror { url: Url::parse(url).unwrap(), credentials: false, access: Access::default() }
}

fn with_hosts(folder: &Path, name: &str, text: &str) {
    fs::create_dir_all(folder.join(name)).unwrap();
    fs::write(folder.join(name).join("hosts.toml"), text).unwrap();
}

#[tokio::test]
async fn a_registry_that_nothing_names_is_asked_itself() {
    assert_eq!(of(&[], &[], "r.io").await, ["https://r.io/v2/a/b/ told"]);
    assert_eq!(of(&[], &[], "docker.io").await, ["https://registry-1.docker.io/v2/a/b/ told"]);
    assert_eq!(of(&[], &[], "127.0.0.1:5000").await, ["http://127.0.0.1:5000/v2/a/b/ told"]);
    assert_eq!(of(&[], &[], "r.io:443").await, ["https://r.io/v2/a/b/ told"]);
}

#[tokio::test]
async fn mirrors_come_first_in_order_with_the_registrys_name_and_without_its_credentials() {
    let trusted = Mirror { credentials: true, ..mirror("http://m2.io:8080/prefix/") };
    let mirrors = vec![mirror("https://m1.io"), trusted, mirror("https://h.io/v2/project")];
    let entry = Registry { mirrors, ..Registry::default() };
    assert_eq!(
        of(&[("r.io", entry.clone())], &[], "R.io").await,
        [
            "https://m1.io/v2/a/b/ ns=r.io",
            "http://m2.io:8080/prefix/v2/a/b/ ns=r.io told",
            "https://h.io/v2/project/a/b/ ns=r.io",
            "https://r.io/v2/a/b/ told",
        ]
    );
    // A proxy cache's scope names its project.
    let found = endpoints(&[("r.io".to_owned(), entry)].into(), &[], "r.io").await.unwrap();
    let names: Vec<_> = found.iter().map(|endpoint| endpoint.repository("a/b").unwrap().1).collect();
    assert_eq!(names, ["a/b", "a/b", "project/a/b", "a/b"]);
}

#[tokio::test]
async fn an_entry_of_its_own_goes_before_a_folder_and_both_before_what_is_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [folder.path().to_owned()];
    let entry = |url| Registry { mirrors: vec![mirror(url)], ..Registry::default() };
    let all = [("own.io", entry("https://1.io")), (DEFAULT, entry("https://2.io"))];
    with_hosts(folder.path(), "own.io", "[host.'https://3.io']");
    with_hosts(folder.path(), "folder.io", "[host.'https://4.io']");
    with_hosts(folder.path(), "_default", "[host.'https://5.io']");
    let first = async |registries: &[(&str, Registry)], registry: &str| {
        of(registries, &folders, registry).await.swap_remove(0)
    };
    assert!(first(&all, "own.io").await.starts_with("https://1.io"));
    assert!(first(&all, "folder.io").await.starts_with("https://4.io"));
    assert!(first(&all, "other.io").await.starts_with("https://2.io"));
    assert!(first(&[], "other.io").await.starts_with("https://5.io"));
    assert_eq!(of(&all, &folders, "127.0.0.1:5000").await[1], "http://127.0.0.1:5000/v2/a/b/ told");
}

#[tokio::test]
async fn a_folder_is_found_by_both_spellings_of_a_port_and_read_anew_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [folder.path().join("missing"), folder.path().to_owned()];
    with_hosts(folder.path(), "r.io:5000", "server = 'https://colon.io'");
    assert_eq!(of(&[], &folders, "r.io:5000").await, ["https://colon.io/v2/a/b/ ns=r.io:5000"]);
    with_hosts(folder.path(), "r.io_5000_", "server = 'https://underscore.io'");
    assert_eq!(of(&[], &folders, "r.io:5000").await, ["https://underscore.io/v2/a/b/ ns=r.io:5000"]);
    with_hosts(folder.path(), "r.io_5000_", "");
    assert_eq!(of(&[], &folders, "r.io:5000").await, ["https://r.io:5000/v2/a/b/ told"]);
}

#[tokio::test]
async fn a_hosts_file_means_what_containerd_says_it_means() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [folder.path().to_owned()];
    let text = r#"
        server = "https://docker.io"
        ca = "root.pem"
        unknown = 7

        [host."https://z.io"]
          capabilities = ["pull"]
        [host."http://a.io:5000/path"]
          capabilities = ["pull", "resolve", "push"]
          skip_verify = true
          dial_timeout = "1.5s"
          [host."http://a.io:5000/path".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."m.io/v2/project"]
          override_path = true
          ca = ["one.pem", "/two.pem"]
          client = [["c.pem", "k.pem"], ["other.pem", ""]]
        [host."https://push.io"]
          capabilities = ["push"]
    "#;
    with_hosts(folder.path(), "docker.io", text);
    assert_eq!(
        of(&[], &folders, "docker.io").await,
        [
            "https://z.io/v2/a/b/ ns=docker.io by digest",
            "https://a.io:5000/path/v2/a/b/ ns=docker.io",
            "http://a.io:5000/path/v2/a/b/ ns=docker.io",
            "https://m.io/v2/project/a/b/ ns=docker.io",
            "https://registry-1.docker.io/v2/a/b/ told",
        ]
    );
    let found = endpoints(&BTreeMap::new(), &folders, "docker.io").await.unwrap();
    let file = |name: &str| folder.path().join("docker.io").join(name);
    let access = &found[1].access;
    assert!(access.skip_verify && access.connect_timeout == Some(Duration::from_millis(1500)));
    let headers: Vec<_> =
        access.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("x-one", "1"), ("x-two", "2"), ("x-two", "3")]);
    assert!(access.headers.values().all(http::HeaderValue::is_sensitive));
    let access = &found[3].access;
    assert_eq!(access.ca_files, [file("one.pem"), "/two.pem".into()]);
    assert_eq!(access.client_certificate, Some(KeyPair { certificate: file("c.pem"), key: file("k.pem") }));
    assert_eq!(found[4].access.ca_files, [file("root.pem")]);
}

#[tokio::test]
async fn certificates_alone_are_taken_as_docker_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("r.io");
    fs::create_dir(&own).unwrap();
    for name in ["ca.crt", "client.cert", "client.key", "readme"] {
        fs::write(own.join(name), "").unwrap();
    }
    let found = endpoints(&BTreeMap::new(), &[folder.path().to_owned()], "r.io").await.unwrap();
    assert_eq!(found[0].access.ca_files, [own.join("ca.crt")]);
    let pair = KeyPair { certificate: own.join("client.cert"), key: own.join("client.key") };
    assert_eq!(found[0].access.client_certificate, Some(pair));
}

#[tokio::test]
async fn a_broken_file_is_an_error_with_its_line_and_no_way_around_it() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [folder.path().to_owned()];
    let deep = format!("x = {}", "[".repeat(100_000));
    for (text, expected) in [
        ("server = ", "line 1: is no TOML"),
        ("\n\nserver = 7", "line 3: server should be a text"),
        ("[host.'https://m.io']\nskip_verify = 'yes'", "line 2: skip_verify should be true or false"),
        ("[host.'https://m.io']\ncapabilities = ['fly']", "line 2: unknown capability"),
        ("[host.'ftp://m.io']", "line 1: not a host"),
        ("[host.'https://u:hunter2@m.io']", "line 1: not a host"),
        (
            "[host.'https://m.io'.header]\nauthorization = \"hunter2\\n\"",
            "line 2: holds what a header cannot carry",
        ),
        ("[host.'https://m.io'.header]\nhost = 'x'", "line 2: this header is wasmferry's own"),
        ("server = 'p.io'\ncapabilities = ['push']", "leaves no host to pull r.io from"),
        (&deep, "too many brackets"),
    ] {
        with_hosts(folder.path(), "r.io", text);
        let error = endpoints(&BTreeMap::new(), &folders, "r.io").await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.to_string().contains("hunter2") && error.label() == "hosts", "{error}");
    }
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, millis) in [("15s", 15_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("300ms", 300)] {
        assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "15", "s", "-1s", "0s", "1d", "1e9s", "99999999999999999999999h", "1..2s"] {
        assert_eq!(go_duration(text), None, "{text}");
    }
}
