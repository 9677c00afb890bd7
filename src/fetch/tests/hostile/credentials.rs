//! Servers that are after somebody's credential, or after somebody's patience.

use base64::Engine as _;

use super::*;

const SECRETS: [&str; 4] = ["hunter2", "hunter3", "hunter4", "token-of"];

fn basic() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:hunter2"))
}

/// Nothing in a request proves who asks.
fn is_anonymous(seen: &Seen) -> bool {
    let names = ["authorization", "proxy-authorization", "cookie", "x-own", "referer"];
    let text = format!("{seen:?}");
    names.iter().all(|name| seen.header(name).is_none())
        && !SECRETS.iter().any(|secret| text.contains(secret))
}

/// A request of `user` with the password `hunter2` for everything at a registry.
fn by_user(registry: &str) -> ModuleRequest {
    with_password(&format!("oci://{registry}/a/b:v1"), registry, "user", "hunter2")
}

/// A registry's headers, of its configuration.
fn with_own_header(net: Net) -> Net {
    net.config(|config| {
        let entry = config.registries.values_mut().next().unwrap();
        entry.access.headers.insert("x-own", header_value("hunter4").unwrap());
    })
}

#[tokio::test]
async fn nothing_that_proves_who_asks_goes_to_another_host_or_port_and_none_of_it_comes_back() {
    let image = Image::new("module");
    let elsewhere = Server::start(|_| Reply::ok("module")).await;
    let port = elsewhere.address.port();
    for wanted in ["/v2/a/b/manifests/v1", &image.blob_path()] {
        // To another host at the same port, to another port of the same host, and back.
        let (wanted, whole) = (wanted.to_owned(), image.clone());
        let (first, asked) = (format!("http://b.example:{port}/1"), wanted.clone());
        let server = registry(&image, move |seen| {
            let is_own = seen.header("host").unwrap().starts_with("a.example");
            match seen.target.as_str() {
                "/1" => Some(Reply::redirect("http://a.example:81/2")),
                "/2" => Some(Reply::redirect("http://a.example/3")),
                "/3" => Some(whole.reply(&Seen { target: asked.clone(), ..seen.clone() })),
                _ if is_own && seen.header("authorization") != Some(&*basic()) => {
                    Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x"))
                }
                target => (target == asked).then(|| Reply::redirect(&first)),
            }
        })
        .await;
        let net = Net::default()
            .name("a.example", &["203.0.113.1"])
            .name("b.example", &["203.0.113.2"])
            .route("203.0.113.1:80", server.address)
            .route("203.0.113.1:81", server.address)
            .route(&format!("203.0.113.2:{port}"), server.address)
            .plain("a.example");
        let fetched = fetch(&with_own_header(net).build(), &by_user("a.example")).await.unwrap();
        assert_eq!(fetched.bytes, b"module");
        let (led, own): (Vec<_>, Vec<_>) =
            server.seen().into_iter().partition(|seen| ["/1", "/2", "/3"].contains(&&*seen.target));
        assert_eq!(led.len(), 3, "{wanted}");
        assert!(led.iter().all(is_anonymous), "{led:?}");
        assert!(own.iter().all(|seen| seen.header("x-own") == Some("hunter4")));
        assert!(own.iter().any(|seen| seen.header("authorization") == Some(&*basic())));
    }
}

#[tokio::test]
async fn a_redirect_to_https_takes_no_credential_along_either() {
    let (roots, acceptor) = guard::certificates();
    let secured = Server::start_at("127.0.0.1:0", Some(acceptor), |_| Reply::ok("module")).await;
    let image = Image::new("module");
    let (to, blob) = (format!("https://{}/m", at("tls.example", &secured)), image.blob_path());
    let server = registry(&image, move |seen| match seen.header("authorization") {
        Some(_) => (seen.target == blob).then(|| Reply::redirect(&to)),
        None => Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x")),
    })
    .await;
    let name = at("tls.example", &server);
    let net = Net::default().name("tls.example", &["127.0.0.1"]).plain(&name);
    let net = with_own_header(Net { roots: Some(roots), ..net });
    assert_eq!(fetch(&net.build(), &by_user(&name)).await.unwrap().bytes, b"module");
    assert!(secured.seen().len() == 1 && secured.seen().iter().all(is_anonymous), "{:?}", secured.seen());
}

#[tokio::test]
async fn a_token_server_that_redirects_has_no_password_sent_there() {
    let image = Image::new("module");
    let thief = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let to = thief.url("/token");
    let server = registry(&image, move |seen| match (seen.path(), seen.header("authorization")) {
        ("/token", Some(sent)) if sent == basic() => Some(Reply::redirect(&to)),
        ("/token", _) => Some(Reply::new(403)),
        (_, Some("Bearer t")) => None,
        _ => Some(ask(&format!("http://{}/token", seen.header("host").unwrap()))),
    })
    .await;
    assert!(fetch(&Net::default().build(), &by_user(&server.address.to_string())).await.is_ok());
    assert!(thief.seen().len() == 1 && thief.seen().iter().all(is_anonymous), "{:?}", thief.seen());
}

#[tokio::test]
async fn a_foreign_token_server_is_asked_only_where_the_table_or_the_configuration_names_it() {
    let image = Image::new("module");
    for (registry_name, realm, configured, expected) in [
        ("docker.io", "auth.docker.io", vec![], Ok(())),
        ("docker.io", "evil.example", vec![], Err("realm")),
        ("r.example", "auth.docker.io", vec![], Err("realm")),
        ("r.example", "sso.example", vec![], Err("realm")),
        ("r.example", "sso.example", vec!["sso.example".to_owned()], Ok(())),
        ("r.example", "x.sso.example", vec!["sso.example".to_owned()], Err("realm")),
        ("r.example", "sso.example.", vec!["sso.example".to_owned()], Err("realm")),
        ("r.example", "user@sso.example", vec!["sso.example".to_owned()], Err("realm")),
        ("r.example", "sso.example@evil.example", vec!["sso.example".to_owned()], Err("realm")),
    ] {
        let challenge = format!("http://{realm}/token");
        let tokens = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
        let server = registry(&image, move |seen| {
            (seen.header("authorization") != Some("Bearer t")).then(|| ask(&challenge))
        })
        .await;
        let mut net = Net::default()
            .name("registry-1.docker.io", &["203.0.113.1"])
            .name("r.example", &["203.0.113.1"])
            .route("203.0.113.1:80", server.address)
            .route("203.0.113.2:80", tokens.address)
            .plain(registry_name)
            .config(|config| config.realms = configured);
        for name in ["auth.docker.io", "evil.example", "sso.example", "x.sso.example", "sso.example."] {
            net = net.name(name, &["203.0.113.2"]);
        }
        let outcome = fetch(&net.build(), &by_user(registry_name)).await;
        assert_eq!(outcome.map(drop).map_err(|error| error.label()), expected, "{registry_name} {realm}");
        let told: Vec<_> =
            tokens.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
        let expected = if expected.is_ok() { vec![Some(basic())] } else { vec![] };
        assert_eq!(told, expected, "{registry_name} {realm}");
    }
}

#[tokio::test]
async fn challenges_in_every_spelling_are_met() {
    let image = Image::new("module");
    let tokens = Server::start(|seen| match seen.target.contains("service=s&") {
        true => Reply::ok(r#"{"token":"t"}"#),
        false => Reply::new(400),
    })
    .await;
    let realm = tokens.url("/token");
    for challenges in [
        vec![format!(r#"Bearer realm="{realm}",service="s",scope="repository:x:push""#)],
        vec![format!(r#"BEARER REALM="{realm}",SERVICE=s,Scope=x"#)],
        vec![format!(r#"bearer service=s, realm="{realm}""#)],
        vec![format!(r#"Digest realm="x", nonce="a,b=c", Bearer realm="{realm}", service="s""#)],
        vec!["Negotiate".to_owned(), format!(r#"Bearer realm="{realm}",service="s""#)],
        vec![format!(r#"Basic realm="x", Bearer service="\s",realm="{realm}",realm="http://evil.example""#)],
        vec!["\"".to_owned(), "Bearer realm".to_owned(), format!(r#"Bearer realm="{realm}",service=s"#)],
        vec![
            r#"Bearer realm="http://evil.example/token",service="s""#.to_owned(),
            format!(r#"Bearer realm="{realm}",service="s""#),
        ],
    ] {
        let shown = challenges.clone();
        let server = registry(&image, move |seen| {
            let asks =
                || shown.iter().fold(Reply::new(401), |reply, value| reply.header("Www-Authenticate", value));
            (seen.header("authorization") != Some("Bearer t")).then(asks)
        })
        .await;
        let fetched = fetch(&Net::default().build(), &request(&image_url(&server))).await;
        assert_eq!(fetched.map(drop).map_err(|error| error.to_string()), Ok(()), "{challenges:?}");
    }
}

#[tokio::test]
async fn a_header_full_of_challenges_takes_no_time() {
    for text in [
        "Basic ",
        "Basic,",
        "Bearer a=b, ",
        "Bearer realm=\"",
        "a=b,",
        "\\",
        "\"",
        ",",
        "Bearer realm=\"x\",",
    ] {
        let challenge = text.repeat(100_000 / text.len());
        let server = Server::start(move |_| Reply::new(401).header("WWW-Authenticate", &challenge)).await;
        let begun = std::time::Instant::now();
        let label = failure(&Net::default().build(), &request(&image_url(&server))).await.0;
        assert!(matches!(label, "unauthorized" | "realm"), "{label} {text}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{text} {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn neither_a_realm_nor_a_service_gets_a_token_for_anything_else() {
    let image = Image::new("module");
    for login in [json!({"username": "user", "password": "hunter2"}), json!({"identitytoken": "hunter3"})] {
        let tokens = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
        let realm =
            tokens.url("/token?account=x&scope=repository:secret:pull&%73cope=repository:other:push#f");
        let challenge = format!(r#"Bearer realm="{realm}",service="s&scope=repository:c:pull #""#);
        let server = registry(&image, move |seen| {
            (seen.header("authorization") != Some("Bearer t"))
                .then(|| Reply::new(401).header("WWW-Authenticate", &challenge))
        })
        .await;
        let config = json!({ "auths": { server.address.to_string(): login } });
        fetch(&Net::default().build(), &with_config(&image_url(&server), config)).await.unwrap();
        let seen = tokens.seen().remove(0);
        let url = url::Url::parse(&tokens.url(&seen.target)).unwrap();
        let form = url::form_urlencoded::parse(seen.body.as_bytes());
        let pairs: Vec<(String, String)> =
            url.query_pairs().chain(form).map(|(a, b)| (a.into(), b.into())).collect();
        let all = |name: &str| -> Vec<&str> {
            pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(all("scope"), ["repository:a/b:pull"], "{pairs:?}");
        assert_eq!(all("service"), ["s&scope=repository:c:pull #"]);
        assert_eq!(all("account"), ["x"]);
    }
}

#[tokio::test]
async fn a_token_that_no_header_should_hold_is_refused_and_not_kept() {
    let image = Image::new("module");
    for token in ["t\\r\\nx-own: hunter4".to_owned(), "\\u0000".to_owned(), "t".repeat(40_000)] {
        let answer = format!(r#"{{"token":"{token}"}}"#);
        let tokens = Server::start(move |_| Reply::ok(answer.clone())).await;
        let realm = tokens.url("/token");
        let server = registry(&image, move |_| Some(ask(&realm))).await;
        assert_eq!(failure(&Net::default().build(), &request(&image_url(&server))).await.0, "token");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn what_a_server_would_have_remembered_is_never_sent_back() {
    let image = Image::new("module");
    let cookie = |reply: Reply| {
        reply.header("Set-Cookie", "who=hunter4; Path=/").header("Authorization", "Bearer hunter4")
    };
    let whole = image.clone();
    let blob = image.blob_path();
    let server = Server::start(move |seen| {
        let host = seen.header("host").unwrap();
        cookie(match (seen.path(), seen.header("authorization")) {
            ("/token", _) => Reply::ok(r#"{"token":"t"}"#),
            ("/blob", _) => Reply::ok("module"),
            (_, None) => ask(&format!("http://{host}/token")),
            (target, _) if target == blob => Reply::redirect("/blob"),
            _ => whole.reply(seen),
        })
    })
    .await;
    assert!(fetch(&Net::default().build(), &request(&image_url(&server))).await.is_ok());
    assert_eq!(server.seen().len(), 5);
    assert!(server.seen().iter().all(|seen| !format!("{seen:?}").contains("hunter4")), "{:?}", server.seen());
}

#[tokio::test]
async fn a_401_for_ever_ends_after_one_renewal_whoever_says_it_and_whoever_asks() {
    let image = Image::new("module");
    let logins = [
        json!({"username": "user", "password": "hunter2"}),
        json!({"identitytoken": "hunter3"}),
        json!({"registrytoken": "hunter4"}),
    ];
    // What is answered with 401 for ever, the tokens asked for, and the requests to the registry with one.
    for (refused, challenge, expected) in [
        ("/manifests/", "Bearer", [(2, 2), (2, 2), (0, 1)]),
        ("/blobs/", "Bearer", [(2, 3), (2, 3), (0, 2)]),
        ("/token", "Bearer", [(1, 0), (1, 0), (0, 2)]),
        ("/manifests/", "Basic", [(0, 1), (0, 0), (0, 0)]),
    ] {
        for (login, (tokens, requests)) in logins.iter().zip(expected) {
            let server = registry(&image, move |seen| {
                let realm = format!("http://{}/token", seen.header("host").unwrap());
                let again =
                    || Reply::new(401).header("WWW-Authenticate", &format!("{challenge} realm=\"{realm}\""));
                match seen.path() {
                    path if path.contains(refused) => Some(again()),
                    "/token" => Some(Reply::ok(r#"{"token":"token-of-server"}"#)),
                    _ => seen.header("authorization").is_none().then(again),
                }
            })
            .await;
            let config = json!({ "auths": { server.address.to_string(): login } });
            let outcome = fetch(&Net::default().build(), &with_config(&image_url(&server), config)).await;
            let is_let_in = refused == "/token" && login.get("registrytoken").is_some();
            assert_eq!(
                outcome.map(drop).map_err(|error| error.label()).is_ok(),
                is_let_in,
                "{refused} {login}"
            );
            let (asked, shown): (Vec<_>, Vec<_>) =
                server.seen().into_iter().partition(|seen| seen.path() == "/token");
            let shown = shown.iter().filter(|seen| seen.header("authorization").is_some()).count();
            assert_eq!((asked.len(), shown), (tokens, requests), "{refused} {challenge} {login}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_never_lets_in_an_anonymous_pull_is_asked_a_few_times() {
    let image = Image::new("module");
    let server = registry(&image, move |seen| match seen.path() {
        "/token" => Some(Reply::ok(r#"{"token":"t","expires_in":0}"#)),
        _ => Some(ask(&format!("http://{}/token", seen.header("host").unwrap()))),
    })
    .await;
    assert_eq!(failure(&Net::default().build(), &request(&image_url(&server))).await.0, "unauthorized");
    assert_eq!(server.seen().len(), 5);
}
