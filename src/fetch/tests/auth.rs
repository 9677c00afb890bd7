//! Who is shown which credential.

use std::sync::Mutex;

use base64::Engine as _;

use super::*;

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A registry that asks for a token, and the token server on the same host: it gives `token-N` to
/// `user:hunter2`, and `anonymous-N` to nobody in particular.
struct Guarded {
    registry: Server,
    tokens: Server,
}

impl Guarded {
    /// `good(token, target)`: whether the registry takes a token.
    async fn new(image: &Image, good: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        let count = Mutex::new(0);
        let tokens = Server::start(move |seen| {
            let mut count = count.lock().unwrap();
            *count += 1;
            let name = match seen.header("authorization") {
                None if seen.method == "GET" => "anonymous",
                None if seen.body.contains("refresh_token=hunter3") => "refreshed",
                Some(header) if header == basic("user", "hunter2") => "token",
                _ => return Reply::new(401),
            };
            Reply::ok(json!({ "token": format!("{name}-{count}"), "expires_in": 300 }).to_string())
        })
        .await;
        let challenge = format!(
            r#"Bearer realm="{}",service="the registry",scope="repository:x:push""#,
            tokens.url("/token")
        );
        let registry = registry(image, move |seen| {
            let token = seen.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
            match token.is_some_and(|token| good(token, &seen.target)) {
                true => None,
                false => Some(Reply::new(401).header("WWW-Authenticate", &challenge)),
            }
        })
        .await;
        Guarded { registry, tokens }
    }

    fn request(&self, user: &str, password: &str) -> ModuleRequest {
        with_password(&image_url(&self.registry), &self.registry.address.to_string(), user, password)
    }

    fn config(&self, entry: serde_json::Value) -> ModuleRequest {
        with_config(
            &image_url(&self.registry),
            json!({ "auths": { self.registry.address.to_string(): entry } }),
        )
    }
}

#[tokio::test]
async fn a_token_is_had_with_the_password_and_shown_to_the_registry() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, _| token.starts_with("token-")).await;
    let fetched = fetch(&Net::default().build(), &guarded.request("user", "hunter2")).await.unwrap();
    assert_eq!(fetched.bytes, b"module");
    let asked = guarded.tokens.seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].target, "/token?service=the+registry&scope=repository%3Aa%2Fb%3Apull");
    let shown: Vec<Option<String>> =
        guarded.registry.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(shown, [None, Some("Bearer token-1".to_owned()), Some("Bearer token-1".to_owned())]);
}

#[tokio::test]
async fn a_public_image_needs_an_anonymous_token_at_most() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, _| token.starts_with("anonymous-")).await;
    assert!(fetch(&Net::default().build(), &request(&image_url(&guarded.registry))).await.is_ok());
}

#[tokio::test]
async fn tokens_are_kept_for_their_login_and_for_their_time() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |_, _| true).await;
    let closed = Guarded::new(&image, |token, _| token != "none").await;
    drop(guarded);
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let known = closed.request("user", "hunter2");
    fetch(&fetcher, &known).await.unwrap();
    fetch(&fetcher, &known).await.unwrap();
    assert_eq!(closed.tokens.seen().len(), 1, "the second pull has the first one's token");
    fetch(&fetcher, &request(&image_url(&closed.registry))).await.unwrap();
    assert_eq!(closed.tokens.seen().len(), 2, "nobody else has it");
    assert_eq!(failure(&fetcher, &closed.request("user", "wrong")).await.0, "unauthorized");
    manual.advance(Duration::from_secs(300));
    fetch(&fetcher, &known).await.unwrap();
    assert_eq!(closed.tokens.seen().len(), 4, "it has expired");
}

#[tokio::test]
async fn a_token_that_expires_in_mid_pull_is_renewed_once() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, target| match target.contains("/blobs/") {
        true => token == "token-2",
        false => token == "token-1",
    })
    .await;
    assert!(fetch(&Net::default().build(), &guarded.request("user", "hunter2")).await.is_ok());
    assert_eq!(guarded.tokens.seen().len(), 2);
}

#[tokio::test]
async fn a_token_whose_time_is_over_is_renewed_without_using_up_the_forced_renewal() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, target| match target.contains("/blobs/") {
        true => token == "token-3",
        false => token == "token-1",
    })
    .await;
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let request =
        ModuleRequest { timeout: Some(Duration::from_secs(3600)), ..guarded.request("user", "hunter2") };
    let (deadline, credential) = (fetcher.deadline(&request), fetcher.credential(&request).await.unwrap());
    let located = fetcher.locate(&request, &credential, deadline).await.unwrap();
    manual.advance(Duration::from_secs(300));
    // It has run out; the next one is refused all the same.
    let body = fetcher.open(located, deadline).await.unwrap();
    assert_eq!(read(body).await.unwrap().bytes, b"module");
    assert_eq!(guarded.tokens.seen().len(), 3);
}

#[tokio::test]
async fn a_registry_that_is_never_content_is_asked_a_bounded_number_of_times() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |_, _| false).await;
    let (label, text) = failure(&Net::default().build(), &guarded.request("user", "hunter2")).await;
    assert_eq!(label, "unauthorized");
    assert!(text.contains("a/b") && !text.contains("hunter2"));
    assert_eq!((guarded.registry.seen().len(), guarded.tokens.seen().len()), (3, 2));
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, _| token.starts_with("token-")).await;
    let error = fetch(&Net::default().build(), &guarded.request("user", "hunter9")).await.unwrap_err();
    assert_eq!(error.label(), "unauthorized");
    assert!(!format!("{error} {error:?}").contains("hunter"));
    assert_eq!(
        failure(&Net::default().build(), &request(&image_url(&guarded.registry))).await.0,
        "unauthorized"
    );
}

#[tokio::test]
async fn all_matching_logins_are_tried_in_their_order() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, _| token.starts_with("token-")).await;
    let host = guarded.registry.address.to_string();
    let entry = |password: &str| json!({ "username": "user", "password": password });
    let config = json!({ "auths": { format!("{host}/a/b"): entry("wrong"), host: entry("hunter2") } });
    assert!(
        fetch(&Net::default().build(), &with_config(&image_url(&guarded.registry), config)).await.is_ok()
    );
    let shown: Vec<_> =
        guarded.tokens.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(shown, [basic("user", "wrong"), basic("user", "hunter2")]);
}

#[tokio::test]
async fn identity_and_registry_tokens_are_used_each_in_its_way() {
    let image = Image::new("module");
    let guarded = Guarded::new(&image, |token, _| token.starts_with("refreshed-")).await;
    fetch(&Net::default().build(), &guarded.config(json!({ "identitytoken": "hunter3" }))).await.unwrap();
    let asked = guarded.tokens.seen();
    assert_eq!(asked[0].method, "POST");
    assert!(!asked[0].target.contains("hunter3"));
    assert!(
        asked[0].body.contains("grant_type=refresh_token")
            && asked[0].body.contains("scope=repository%3Aa%2Fb%3Apull")
    );

    let guarded = Guarded::new(&image, |token, _| token == "hunter4").await;
    fetch(&Net::default().build(), &guarded.config(json!({ "registrytoken": "hunter4" }))).await.unwrap();
    assert!(guarded.tokens.seen().is_empty());
    let refused = guarded.config(json!({ "registrytoken": "hunter5" }));
    assert_eq!(failure(&Net::default().build(), &refused).await.0, "unauthorized");
    assert!(guarded.tokens.seen().is_empty());
}

/// A registry that takes a password, and asks for it as told.
async fn basic_registry(image: &Image, challenges: &'static [&'static str]) -> Server {
    registry(image, move |seen| match seen.header("authorization") {
        Some(header) if header == basic("user", "hunter2") => None,
        _ => Some(
            challenges.iter().fold(Reply::new(401), |reply, value| reply.header("WWW-Authenticate", value)),
        ),
    })
    .await
}

#[tokio::test]
async fn a_password_is_shown_where_it_is_asked_for() {
    let image = Image::new("module");
    let plain = &[r#"Basic realm="x""#][..];
    let several = &["Negotiate", "Bearer realm=\"http://evil.example/token\"", "BASIC Realm=x"][..];
    for challenges in [plain, several] {
        let server = basic_registry(&image, challenges).await;
        let host = server.address.to_string();
        let url = image_url(&server);
        let right = with_password(&url, &host, "user", "hunter2");
        assert!(fetch(&Net::default().build(), &right).await.is_ok());
        assert_eq!(server.seen()[0].header("authorization"), None, "the first try is anonymous");
        let before = server.seen().len();
        let wrong = with_password(&url, &host, "user", "wrong");
        assert_eq!(failure(&Net::default().build(), &wrong).await.0, "unauthorized");
        assert_eq!(server.seen().len(), before + 2, "a password is not renewed");
    }
    let server = basic_registry(&image, plain).await;
    assert_eq!(failure(&Net::default().build(), &request(&image_url(&server))).await.0, "unauthorized");
}

#[tokio::test]
async fn a_foreign_token_server_is_never_asked() {
    let image = Image::new("module");
    let evil = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let realm = format!("Bearer realm=\"http://evil.example:{}/token?x=hunter2\"", evil.address.port());
    let server = registry(&image, move |_| Some(Reply::new(401).header("WWW-Authenticate", &realm))).await;
    let fetcher = Net::default().name("evil.example", &["127.0.0.1"]).build();
    let url = image_url(&server);
    for request in [request(&url), with_password(&url, &server.address.to_string(), "user", "hunter2")] {
        let (label, text) = failure(&fetcher, &request).await;
        assert_eq!(label, "realm");
        assert!(text.contains("evil.example") && !text.contains("hunter2"), "{text}");
    }
    assert!(evil.seen().is_empty());
}

#[tokio::test]
async fn a_credential_does_not_follow_a_redirect_to_another_host() {
    let image = Image::new("module");
    let store = Server::start(|_| Reply::ok("module")).await;
    let target = store.url("/blob");
    let path = image.blob_path();
    let server = registry(&image, move |seen| match seen.header("authorization") {
        Some(header) if header == basic("user", "hunter2") => {
            (seen.target == path).then(|| Reply::redirect(&target))
        }
        _ => Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x")),
    })
    .await;
    let request = with_password(&image_url(&server), &server.address.to_string(), "user", "hunter2");
    assert!(fetch(&Net::default().build(), &request).await.is_ok());
    let seen = store.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None);
}

#[tokio::test]
async fn one_that_was_redirected_to_may_not_ask_for_a_credential() {
    let image = Image::new("module");
    let thief = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=x")).await;
    let target = thief.url("/blob");
    let path = image.blob_path();
    let server = registry(&image, move |seen| (seen.target == path).then(|| Reply::redirect(&target))).await;
    let request = with_password(&image_url(&server), &server.address.to_string(), "user", "hunter2");
    assert_eq!(failure(&Net::default().build(), &request).await.0, "unauthorized");
    assert!(server.seen().iter().chain(&thief.seen()).all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn a_token_server_may_not_pass_a_refresh_token_on() {
    let image = Image::new("module");
    let tokens = Server::start(|_| Reply::new(307).header("Location", "http://127.0.0.1:1/")).await;
    let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/token"));
    let server =
        registry(&image, move |_| Some(Reply::new(401).header("WWW-Authenticate", &challenge))).await;
    let config = json!({ "auths": { server.address.to_string(): { "identitytoken": "hunter3" } } });
    assert_eq!(
        failure(&Net::default().build(), &with_config(&image_url(&server), config)).await.0,
        "redirect"
    );
}

#[tokio::test]
async fn token_answers_that_are_no_good_are_refused() {
    let image = Image::new("module");
    for (reply, expected) in [
        (Reply::ok(r#"{"token":"#).fault(Fault::None), "token"),
        (Reply::ok("{}"), "token"),
        (Reply::ok(r#"{"token":"a\nb"}"#), "token"),
        (Reply::ok(r#"{"token":""}"#), "token"),
        (Reply::ok(vec![b' '; 65 * 1024]), "too_large"),
        (Reply::ok(vec![b' '; 65536]).fault(Fault::Endless), "too_large"),
        (Reply::new(403), "denied"),
        (Reply::new(404), "token"),
        (Reply::new(429), "rate_limited"),
        (Reply::new(500), "unavailable"),
    ] {
        let answer = reply.clone();
        let tokens = Server::start(move |_| answer.clone()).await;
        let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/token"));
        let server =
            registry(&image, move |_| Some(Reply::new(401).header("WWW-Authenticate", &challenge))).await;
        let (label, _) = failure(&Net::default().build(), &request(&image_url(&server))).await;
        assert_eq!(label, expected, "{:?}", reply.status);
    }
    let tokens = Server::start(|_| Reply::ok(r#"{"access_token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/token"));
    let served = registry(&image, move |seen| {
        (seen.header("authorization") != Some("Bearer t"))
            .then(|| Reply::new(401).header("WWW-Authenticate", &challenge))
    })
    .await;
    assert!(fetch(&Net::default().build(), &request(&image_url(&served))).await.is_ok());
}

#[tokio::test]
async fn a_pull_secret_that_is_missing_or_malformed_is_never_an_anonymous_pull() {
    let fetcher = Net::default().build();
    for url in ["oci://r.io/a:v1", "https://r.io/a", "file:///a"] {
        let request = ModuleRequest { secret: PullSecret::Unavailable, ..request(url) };
        assert_eq!(fetcher.credential(&request).await.unwrap_err().label(), "secret_unavailable");
    }
    let malformed = PullSecret::DockerConfig(Secret::new("hunter2".to_owned()));
    let request = ModuleRequest { secret: malformed, ..request("oci://r.io/a:v1") };
    let error = fetcher.credential(&request).await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
    let other = json!({ "auths": { "other.io": { "username": "u", "password": "hunter2" } } });
    let error = fetcher.credential(&with_config("oci://r.io/a:v1", other)).await.unwrap_err();
    assert_eq!(error.label(), "secret_unmatched");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_docker_config_says_nothing_about_http_sources() {
    let fetcher = Net::default().build();
    let config = json!({ "auths": { "r.io": { "username": "u", "password": "p" } } });
    let identity = async |url: &str| {
        let credential = fetcher.credential(&with_config(url, config.clone())).await.unwrap();
        credential.identity().map(<[u8]>::to_vec)
    };
    assert_eq!(identity("https://r.io/a").await, None);
    assert!(identity("oci://r.io/a:v1").await.is_some());
}
