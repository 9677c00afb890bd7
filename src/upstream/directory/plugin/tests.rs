use super::*;

const FULL: &str = r#"
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: openid-connect
  namespace: istio-ingress
  labels: {any: thing}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  url: oci://private.example:5000/openid/filter:v3
  sha256: 1ef0c9a92b0420cf25f7fe5d481b231464bc88f486ca3b9c83ed5cc21d2f6210
  imagePullPolicy: Always
  imagePullSecret: registry.key
  verificationKey: ""
  pluginConfig:
    openid_server: authn
    retries: 3
    ratio: 0.5
    whole: 2.0
    nested: {b: [1, true, null], a: "2"}
  pluginName: openid
  failStrategy: FAIL_OPEN
  phase: AUTHN
  priority: -10
  type: HTTP
  match: [{mode: SERVER, ports: [{number: 443}]}]
  vmConfig:
    env:
    - {name: POD_NAME, valueFrom: HOST}
    - {name: TRUST_DOMAIN, value: "cluster.local"}
    - {name: EMPTY}
status: {}
"#;

fn read_one(text: &str) -> WasmPlugin {
    let mut plugins = parse(Path::new("dir/p.yaml"), text).unwrap();
    assert_eq!(plugins.len(), 1);
    plugins.remove(0)
}

fn problem(text: &str) -> Problem {
    parse(Path::new("p.yaml"), text).unwrap_err().into()
}

/// A plugin with these lines in its spec, the first of them in line 5.
fn with_spec(lines: &str) -> String {
    let spec = lines.replace('\n', "\n  ");
    format!(
        "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: a}}\nspec:\n  {spec}\n"
    )
}

#[test]
fn every_field_of_a_plugin_is_read() {
    let plugin = read_one(FULL);
    assert_eq!(plugin.full_name(), "istio-ingress.openid-connect");
    assert_eq!(plugin.url, "oci://private.example:5000/openid/filter:v3");
    assert_eq!(plugin.module.to_string(), plugin.url);
    assert_eq!(plugin.policy, Some(PullPolicy::Always));
    assert_eq!(plugin.secret_name.as_deref(), Some("registry.key"));
    assert_eq!(plugin.secret, PullSecret::Unavailable, "until it is read");
    assert_eq!(
        plugin.configuration.as_deref(),
        Some(
            r#"{"nested":{"a":"2","b":[1,true,null]},"openid_server":"authn","ratio":0.5,"retries":3,"whole":2}"#
        )
    );
    assert_eq!(plugin.root_id, "openid");
    assert_eq!(plugin.fail_strategy, FailStrategy::Open);
    assert_eq!(plugin.kind, PluginType::Http);
    assert_eq!(plugin.host_env, ["POD_NAME"]);
    let env: Vec<_> = plugin.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(env, [("EMPTY", ""), ("TRUST_DOMAIN", "cluster.local")]);
    assert_eq!(plugin.line, 2);

    let request = plugin.request();
    assert_eq!(
        request.expected.unwrap(),
        ExpectedDigest::from_hex("1ef0c9a92b0420cf25f7fe5d481b231464bc88f486ca3b9c83ed5cc21d2f6210").unwrap()
    );
    assert_eq!(request.policy, PullPolicy::Always);
    assert_eq!(request.resource_version.as_deref(), Some(plugin.resource_version.as_str()));
}

#[test]
fn what_is_not_given_has_its_default() {
    let plugin = read_one(&with_spec("url: ghcr.io/a/b:latest\nsha256: ''\npriority: ~"));
    assert_eq!(plugin.full_name(), "default.a");
    assert_eq!(plugin.url, "oci://ghcr.io/a/b:latest", "a URL without a scheme is OCI");
    assert_eq!(plugin.request().policy, PullPolicy::Always, "of the tag latest");
    assert_eq!(plugin.request().secret, PullSecret::None);
    assert_eq!(plugin.request().expected, None);
    assert_eq!(plugin.fail_strategy, FailStrategy::Close);
    assert_eq!(plugin.kind, PluginType::Http);
    assert_eq!(plugin.configuration, None);
}

#[test]
fn the_resource_version_follows_the_content_unless_it_is_given() {
    let version = |text: &str| read_one(text).resource_version;
    let first = version(&with_spec("url: r.io/a:v1"));
    assert_eq!(first, version(&with_spec("# a comment\nurl:   'r.io/a:v1'")), "the same content");
    assert_ne!(first, version(&with_spec("url: r.io/a:v1\npriority: 1")));
    let given = with_spec("url: r.io/a:v1").replace("{name: a}", "{name: a, resourceVersion: '17'}");
    assert_eq!(version(&given), "17");
}

#[test]
fn documents_of_other_kinds_and_empty_ones_are_skipped() {
    let text = format!(
        "---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\n---\n{}---\n\
         apiVersion: extensions.higress.io/v1alpha1\nkind: WasmPlugin\nspec: {{whatever: 1}}\n",
        with_spec("url: r.io/a:v1")
    );
    assert_eq!(read_one(&text).full_name(), "default.a");
    assert_eq!(parse(Path::new("p.yaml"), "# nothing but a comment\n").unwrap(), []);
}

#[test]
fn lists_and_json_are_read_too() {
    let item = |name: &str| {
        format!(
            r#"{{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
                "metadata": {{"name": "{name}"}},
                "spec": {{"url": "https:\/\/h\/a.wasm", "pluginConfig": {{"smile": "\ud83d\ude00"}}}}}}"#
        )
    };
    let (a, b) = (item("a"), item("b"));
    for text in [
        format!("[{a},\n\t{b}]"),
        format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{a}, {b}]}}"#),
        format!(
            r#"{{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPluginList", "items": [{a}, {b}]}}"#
        ),
    ] {
        let plugins = parse(Path::new("p.json"), &text).unwrap();
        let names: Vec<_> = plugins.iter().map(WasmPlugin::full_name).collect();
        assert_eq!(names, ["default.a", "default.b"], "{text}");
        assert_eq!(plugins[1].url, "https://h/a.wasm");
        assert_eq!(plugins[0].configuration.as_deref(), Some(r#"{"smile":"😀"}"#));
    }
}

#[test]
fn each_mistake_is_reported_with_its_line_and_field() {
    let long = "x".repeat(2049);
    let host_value = "url: r.io/a:v1\nvmConfig:\n  env:\n  - name: A\n    valueFrom: HOST\n    value: b";
    let twice = "url: r.io/a:v1\nvmConfig:\n  env:\n  - name: A\n  - name: A\n    valueFrom: HOST";
    let reserved =
        "url: r.io/a:v1\nvmConfig:\n  env:\n  - name: ISTIO_META_WASM_IMAGE_PULL_SECRET\n    value: ''";
    let long_value = format!("url: r.io/a:v1\nvmConfig: {{env: [{{name: A, value: {long}}}]}}");
    let cases = [
        ("pluginName: a", 4, "spec.url", "is required"),
        ("url: ''", 5, "spec.url", "must not be empty"),
        ("url: ftp://h/x", 5, "spec.url", "scheme"),
        ("url: 7", 5, "spec.url", "expected a string, found a number; quote it"),
        ("url: r.io/a:v1\nsha256: nil", 6, "spec.sha256", "64 lower-case hex digits"),
        (
            "url: r.io/a:v1\nfailStrategy: FAIL_OPN",
            6,
            "spec.failStrategy",
            "\"FAIL_OPN\" is not one of FAIL_CLOSE, ",
        ),
        ("url: r.io/a:v1\nimagePullPolicy: always", 6, "spec.imagePullPolicy", "not one of"),
        ("url: r.io/a:v1\ntype: TCP", 6, "spec.type", "not one of"),
        ("url: r.io/a:v1\nphase: AUTH", 6, "spec.phase", "not one of"),
        ("url: r.io/a:v1\npriority: 2147483648", 6, "spec.priority", "2147483647"),
        ("url: r.io/a:v1\npriority: high", 6, "spec.priority", "found a string"),
        ("url: r.io/a:v1\nfailstrategy: FAIL_OPEN", 6, "spec.failstrategy", "not a known field"),
        ("url: r.io/a:v1\npluginConfig: text", 6, "spec.pluginConfig", "expected a map, found a string"),
        ("url: r.io/a:v1\nimagePullSecret: ../../etc/passwd", 6, "spec.imagePullSecret", "must be of"),
        ("url: r.io/a:v1\nimagePullSecret: ..", 6, "spec.imagePullSecret", "must be of"),
        ("url: r.io/a:v1\nmatch: {mode: SERVER}", 6, "spec.match", "expected a list, found a map"),
        (host_value, 10, "spec.vmConfig.env[0].value", "HOST"),
        (twice, 9, "spec.vmConfig.env[1].name", "twice"),
        (reserved, 8, "spec.vmConfig.env[0].name", "reserved"),
        (&long_value, 6, "spec.vmConfig.env[0].value", "longer than 2048 bytes"),
        ("url: r.io/a:v1\n\"a\\nb\": 1", 6, "spec.a\\nb", "not a known field"),
    ];
    for (spec, line, field, why) in cases {
        let problem = problem(&with_spec(spec));
        assert_eq!((problem.line, problem.field.as_deref()), (Some(line), Some(field)), "{spec}: {problem}");
        assert!(problem.why.contains(why), "{spec}: {problem}");
        assert!(!problem.to_string().contains('\n'), "{problem}");
    }
}

#[test]
fn mistakes_outside_of_the_spec_are_reported_too() {
    let good = with_spec("url: r.io/a:v1");
    let cases = [
        (good.replace("name: a", "labels: {}"), 3, "metadata.name"),
        (good.replace("name: a", "name: A_b"), 3, "metadata.name"),
        (good.replace("name: a", "name: a, namespace: a.b"), 3, "metadata.namespace"),
        (good.replace("v1alpha1", "v1beta1"), 1, "apiVersion"),
        (good.replace("kind: WasmPlugin\n", ""), 1, "kind"),
        (good.replace("spec:", "specs:"), 4, "spec"),
        (format!("{good}extra: 1\n"), 6, "extra"),
    ];
    for (text, line, field) in cases {
        let problem = problem(&text);
        // What is missing is reported where its map begins.
        let line = if field == "spec" { 1 } else { line };
        assert_eq!((problem.line, problem.field.as_deref()), (Some(line), Some(field)), "{text}: {problem}");
    }
}

#[test]
fn an_error_names_the_document_s_own_line_in_a_file_of_several() {
    let text = format!("{}---\n{}", with_spec("url: r.io/a:v1"), with_spec("url: r.io/a:v1\ntype: X"));
    assert_eq!(problem(&text).line, Some(12));
}

#[test]
fn broken_yaml_is_reported_with_its_line_and_without_its_content() {
    for (text, line) in
        [("a: 1\nb: [1, 2", 2), ("a: 1\na: hunter2", 2), ("a: \"hunter2\" hunter2", 1), ("a: *hunter", 1)]
    {
        let problem = problem(text);
        assert_eq!(problem.line, Some(line), "{problem}");
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
        assert!(problem.why.starts_with("not valid YAML: "), "{problem}");
    }
}

#[test]
fn a_document_that_unfolds_without_end_is_refused() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, inner) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
        let items = vec![format!("*{inner}"); 10].join(", ");
        bomb += &format!("{name}: &{name} [{items}]\n");
    }
    assert!(problem(&bomb).why.starts_with("not valid YAML: "));
    let long = "x".repeat(100_000);
    let anchors: String = (0..200).map(|n| format!("- &n{n} x\n")).collect();
    let bomb = format!("a:\n- &a {long}\n{anchors}{}", "- *a\n".repeat(1500));
    assert!(problem(&bomb).why.starts_with("not valid YAML: "));
    let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(problem(&deep).why.starts_with("not valid YAML: "));
}

#[test]
fn neither_an_error_nor_debug_shows_a_value() {
    let plugin = read_one(&with_spec("url: r.io/a:v1\npluginConfig: {token: hunter2}"));
    assert_eq!(format!("{plugin:?}"), "WasmPlugin(default.a)");
    for spec in ["url: https://u:hunter2@h/a", "url: r.io/a:v1\nsha256: hunter2", "url: {hunter2: 1}"] {
        assert!(!problem(&with_spec(spec)).to_string().contains("hunter2"), "{spec}");
    }
}

#[test]
fn a_pull_secret_is_read_from_where_it_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, with_spec("url: r.io/a:v1\nimagePullSecret: key")).unwrap();
    let secret = || parse_file(&file).unwrap().remove(0).request().secret;
    assert_eq!(secret(), PullSecret::Unavailable);

    std::fs::create_dir(folder.path().join("key")).unwrap();
    std::fs::write(folder.path().join("key/.dockerconfigjson"), r#"{"auths":{}}"#).unwrap();
    assert_eq!(secret(), PullSecret::DockerConfig(Secret::new(r#"{"auths":{}}"#.to_owned())));

    std::fs::write(folder.path().join("key.dockerconfigjson"), "{}").unwrap();
    assert_eq!(
        secret(),
        PullSecret::DockerConfig(Secret::new("{}".to_owned())),
        "the plain file comes first"
    );

    std::fs::write(folder.path().join("key.dockerconfigjson"), " \n").unwrap();
    std::fs::remove_dir_all(folder.path().join("key")).unwrap();
    assert_eq!(secret(), PullSecret::Unavailable, "an empty secret is none");
}

#[test]
fn a_file_that_is_empty_too_large_or_no_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let label = || parse_file(&path).unwrap_err().label();
    assert_eq!(label(), "unreadable");
    std::fs::write(&path, "").unwrap();
    assert_eq!(label(), "empty");
    std::fs::write(&path, " ".repeat(MAX_FILE_BYTES as usize + 1)).unwrap();
    assert_eq!(label(), "too_large");
    std::fs::write(&path, b"a: \xff").unwrap();
    assert_eq!(label(), "unreadable");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(label(), "unreadable", "and it does not wait for a writer");
}
