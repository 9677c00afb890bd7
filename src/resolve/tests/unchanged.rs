//! URLs that are asked again, and servers that say that nothing has changed.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A server of one module under a weak ETag, at a fresh URL.
struct Host {
    module: watch::Sender<usize>,
    /// The status of each answer.
    answers: watch::Sender<Vec<u16>>,
    url: String,
    _server: AbortOnDropHandle<()>,
}

impl Host {
    async fn new() -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/module.wasm", listener.local_addr().unwrap());
        let (module, answers) = (watch::Sender::new(0), watch::Sender::new(Vec::new()));
        let (offered, told) = (module.subscribe(), answers.clone());
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let offered = *offered.borrow();
                let etag = format!("W/\"{offered}\"");
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let (status, body) = match head.contains(&format!("if-none-match: w/\"{offered}\"\r\n")) {
                    true => (304, &b""[..]),
                    false => (200, MODULES[offered]),
                };
                let length =
                    if status == 200 { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
                let answer =
                    format!("HTTP/1.1 {status} x\r\nETag: {etag}\r\nConnection: close\r\n{length}\r\n");
                told.send_modify(|answers| answers.push(status));
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(body).await.unwrap();
            }
        });
        Host { module, answers, url, _server: AbortOnDropHandle::new(server) }
    }

    fn request(&self) -> ModuleRequest {
        ModuleRequest { policy: PullPolicy::Always, ..ModuleRequest::new(self.url.parse().unwrap()) }
    }

    fn answers(&self) -> Vec<u16> {
        self.answers.borrow().clone()
    }
}

#[tokio::test]
async fn a_url_under_always_is_downloaded_again_only_where_it_has_changed() {
    let (place, host) = (Place::new(4).await, Host::new().await);
    let [first, second] = MODULES.map(PayloadDigest::of);
    let ask = async |request: ModuleRequest| place.resolver.resolve(request).await.unwrap();
    assert_eq!(ask(host.request()).await.payload, first);
    for _ in 0..2 {
        let module = ask(host.request()).await;
        assert_eq!((module.payload, module.cached), (first, true));
    }
    assert_eq!(host.answers(), [200, 304, 304]);

    // A version that it was asked for under is written down, also with nothing downloaded.
    let versioned = ModuleRequest { resource_version: Some("1".to_owned()), ..host.request() };
    ask(versioned.clone()).await;
    ask(versioned).await;
    assert_eq!(host.answers(), [200, 304, 304, 304]);

    host.module.send_replace(1);
    let module = ask(host.request()).await;
    assert_eq!((module.payload, module.cached), (second, false));
    // After a restart too, and for who only wants to have it.
    let restarted = place.restarted();
    assert_eq!(restarted.resolve(host.request()).await.unwrap().payload, second);
    let present = ModuleRequest { policy: PullPolicy::IfNotPresent, ..host.request() };
    assert_eq!(restarted.resolve(present).await.unwrap().payload, second);
    assert_eq!(host.answers(), [200, 304, 304, 304, 200, 304]);
}

#[tokio::test]
async fn what_is_expected_of_a_url_is_asked_for_by_its_own_validators() {
    let (place, host) = (Place::new(4).await, Host::new().await);
    let expected = ExpectedDigest::from_hex(&PayloadDigest::of(MODULES[0]).hex()).unwrap();
    let pinned = ModuleRequest { expected: Some(expected), ..host.request() };
    place.resolver.resolve(pinned.clone()).await.unwrap();
    place.resolver.resolve(pinned.clone()).await.unwrap();
    // Who expects nothing knows of it too.
    place.resolver.resolve(host.request()).await.unwrap();
    assert_eq!(host.answers(), [200, 304, 304]);
    host.module.send_replace(1);
    assert_eq!(label(place.resolver.resolve(pinned).await), "digest_mismatch");
}

#[tokio::test]
async fn a_module_that_is_gone_is_downloaded_whatever_its_record_says() {
    let (place, host) = (Place::new(4).await, Host::new().await);
    let module = place.resolver.resolve(host.request()).await.unwrap();
    std::fs::remove_file(&module.path).unwrap();
    assert!(!place.restarted().resolve(host.request()).await.unwrap().cached);
    assert_eq!(host.answers(), [200, 200]);
}
