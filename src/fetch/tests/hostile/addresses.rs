//! Servers that lead to addresses that nobody may be led to.

use super::*;

/// How one comes to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The user names it as the source.
    Named,
    /// The server of a URL redirects to it.
    Source,
    /// A registry redirects to it, asked for the manifest, or for the layer.
    Manifest,
    Layer,
    /// A registry names it as its token server, or its own token server redirects to it.
    Realm,
    TokenServer,
}

const LED: [Way; 5] = [Way::Source, Way::Manifest, Way::Layer, Way::Realm, Way::TokenServer];

const PUBLIC: &str = "203.0.113.9";
const PRIVATE: &str = "10.0.0.1";

/// Goes that way to `host`, from a server at `origin`. What would be found there is what is wanted, so that
/// nothing but a rule about addresses keeps it out. Tells whether it was reached too.
async fn go(way: Way, origin: &str, host: &str, net: Net) -> (Result<(), &'static str>, bool) {
    let image = Image::new("module");
    let there = format!("http://{host}/there");
    let answer = match way {
        Way::Named | Way::Source | Way::Layer => Reply::ok("module"),
        Way::Manifest => Reply::ok(image.manifest.clone()),
        Way::Realm | Way::TokenServer => Reply::ok(r#"{"token":"t"}"#),
    };
    let target = Server::start(move |_| answer.clone()).await;
    let url = url::Url::parse(&there).unwrap();
    let addresses = match url.host().unwrap() {
        url::Host::Ipv4(address) => vec![IpAddr::V4(address)],
        url::Host::Ipv6(address) => vec![IpAddr::V6(address)],
        url::Host::Domain(name) => net.names[name].clone(),
    };
    let realm = url.host_str().unwrap().to_owned();

    let (blob, to) = (image.blob_path(), there.clone());
    let server = registry(&image, move |seen| {
        let is_known = seen.header("authorization").is_some();
        match (way, seen.path()) {
            (Way::Source, "/m") | (Way::Manifest, "/v2/a/b/manifests/v1") | (Way::TokenServer, "/token") => {
                Some(Reply::redirect(&to))
            }
            (Way::Layer, path) if path == blob => Some(Reply::redirect(&to)),
            (Way::Realm, _) if !is_known => Some(ask(&to)),
            (Way::TokenServer, _) if !is_known => Some(ask("http://origin.example/token")),
            _ => None,
        }
    })
    .await;
    let mut net = net
        .name("origin.example", &[origin])
        .plain("origin.example")
        .route(&format!("{origin}:80"), server.address)
        .config(|config| config.realms = vec![realm]);
    for address in addresses {
        net.routes.insert(SocketAddr::new(address, 80), target.address);
    }
    let request = match way {
        Way::Named => request(&there),
        Way::Source => request("http://origin.example/m"),
        _ => request("oci://origin.example/a/b:v1"),
    };
    let outcome = fetch(&net.build(), &request).await;
    let outcome = outcome.map(|fetched| assert_eq!(fetched.bytes, b"module")).map_err(|error| error.label());
    (outcome, !target.seen().is_empty())
}

fn names() -> Net {
    Net::default()
        .name("metadata.example", &["169.254.169.254", "::ffff:169.254.169.254"])
        .name("metadata6.example", &["64:ff9b::a9fe:a9fe", "fd00:ec2::254"])
        .name("unspecified.example", &["0.0.0.0", "::"])
        .name("inner.example", &["10.0.0.9", "fd12::9"])
        .name("localhost", &["127.0.0.1", "::1"])
        .name("public.example", &["198.51.100.7"])
}

#[tokio::test]
async fn no_spelling_of_a_blocked_address_is_reached_on_any_way_wherever_that_begins() {
    let hosts = [
        "169.254.169.254",
        "169.254.43518",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "0XA9.254.0xFEa9",
        "169.254.169.254.",
        "%31%36%39.254.169.254",
        "169%E3%80%82254%E3%80%82169%E3%80%82254",
        "%EF%BC%91%EF%BC%96%EF%BC%99.254.169.254",
        "[::ffff:169.254.169.254]",
        "[0:0:0:0:0:FFFF:A9FE:A9FE]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "[fe80::a9fe:a9fe]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[fd00:42::42]",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "0",
        "0.1.2.3",
        "[::]",
        "[::ffff:0.0.0.0]",
        "metadata.example",
        "metadata6.example",
        "unspecified.example",
    ];
    for host in hosts {
        for (origin, way) in
            LED.into_iter().flat_map(|way| [(PUBLIC, way), (PRIVATE, way)]).chain([("", Way::Named)])
        {
            let origin = if origin.is_empty() { PUBLIC } else { origin };
            let (outcome, reached) = go(way, origin, host, names()).await;
            assert_eq!((outcome, reached), (Err("blocked"), false), "{way:?} to {host} from {origin}");
        }
    }
}

#[tokio::test]
async fn a_registry_at_a_blocked_address_is_refused_however_it_is_written() {
    for host in [
        "169.254.169.254",
        "169.254.43518",
        "2852039166:80",
        "0xa9fea9fe:80",
        "0251.0376.0251.0376",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[::]:80",
        "0.0.0.0",
        "metadata.example",
    ] {
        let url = format!("oci://{host}/a/b:v1");
        assert_eq!(failure(&names().build(), &request(&url)).await.0, "blocked", "{url}");
    }
}

#[tokio::test]
async fn what_is_blocked_by_configuration_is_blocked_on_every_way_too() {
    let net = || names().config(|config| config.blocked_cidrs = vec!["198.51.100.0/24".parse().unwrap()]);
    for host in
        ["198.51.100.7", "3325256711", "[::ffff:198.51.100.7]", "[2002:c633:6407::]", "public.example"]
    {
        for (way, origin) in
            LED.into_iter().chain([Way::Named]).flat_map(|way| [(way, PUBLIC), (way, PRIVATE)])
        {
            let (outcome, reached) = go(way, origin, host, net()).await;
            assert_eq!((outcome, reached), (Err("blocked"), false), "{way:?} to {host} from {origin}");
            // It is the configuration that says so.
            let (outcome, reached) = go(way, origin, host, names()).await;
            assert_eq!((outcome, reached), (Ok(()), true), "{way:?} to {host} from {origin}");
        }
    }
}

#[tokio::test]
async fn a_public_server_leads_nobody_inward_on_any_way_and_a_private_one_and_the_user_may() {
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "localhost",
        "10.0.0.9",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "240.0.0.1",
        "[::1]",
        "[fd12::9]",
        "[::ffff:127.0.0.1]",
        "[::ffff:0:10.0.0.9]",
        "[64:ff9b::10.0.0.9]",
        "[64:ff9b:1::1.1.1.1]",
        "inner.example",
    ] {
        assert_eq!(go(Way::Named, PUBLIC, host, names()).await, (Ok(()), true), "{host}");
        for way in LED {
            assert_eq!(go(way, PUBLIC, host, names()).await, (Err("blocked"), false), "{way:?} to {host}");
            assert_eq!(go(way, PRIVATE, host, names()).await, (Ok(()), true), "{way:?} to {host}");
        }
    }
}

#[tokio::test]
async fn of_a_names_addresses_the_blocked_ones_are_never_dialled() {
    let trap = Server::start(|_| Reply::ok("module")).await;
    let good = Server::start(|_| Reply::ok("module")).await;
    let fetcher = Net::default()
        .name("both.example", &["169.254.169.254", "203.0.113.9", "::ffff:169.254.169.254"])
        .route("169.254.169.254:80", trap.address)
        .route("[::ffff:169.254.169.254]:80", trap.address)
        .route("203.0.113.9:80", good.address)
        .build();
    assert_eq!(fetch(&fetcher, &request("http://both.example/m")).await.unwrap().bytes, b"module");
    assert!(trap.seen().is_empty() && *trap.ended.borrow() == 0);
}

#[tokio::test]
async fn a_private_server_cannot_have_a_public_one_lead_back_inward() {
    // The user's own is private, and leads to a public one, which leads to another private one.
    let server = Server::start(|seen| match seen.target.as_str() {
        "/1" => Reply::redirect("http://203.0.113.8/2"),
        "/2" => Reply::redirect("http://10.0.0.9/3"),
        _ => Reply::ok("module"),
    })
    .await;
    let fetcher = Net::default()
        .route("10.0.0.1:80", server.address)
        .route("203.0.113.8:80", server.address)
        .route("10.0.0.9:80", server.address)
        .build();
    assert_eq!(failure(&fetcher, &request("http://10.0.0.1/1")).await.0, "blocked");
    assert_eq!(server.asked(), ["GET /1", "GET /2"]);
}

#[tokio::test]
async fn redirects_that_go_round_end_on_every_way() {
    let image = Image::new("module");
    for way in LED {
        let (blob, other) = (image.blob_path(), "http://b.example/round");
        // Round over two hosts.
        let server = registry(&image, move |seen| {
            let round = Some(match seen.header("host") {
                Some("a.example") => Reply::redirect(other),
                _ => Reply::redirect("http://a.example/round"),
            });
            match (way, seen.path()) {
                (_, "/round") => round,
                (Way::Source, "/m") | (Way::Manifest, "/v2/a/b/manifests/v1") => round,
                (Way::Layer, path) if path == blob => round,
                (Way::Realm | Way::TokenServer, _) if seen.header("authorization").is_none() => {
                    Some(ask("http://a.example/round"))
                }
                _ => None,
            }
        })
        .await;
        let fetcher = Net::default()
            .name("a.example", &["203.0.113.1"])
            .name("b.example", &["203.0.113.2"])
            .route("203.0.113.1:80", server.address)
            .route("203.0.113.2:80", server.address)
            .plain("a.example")
            .build();
        let url = if way == Way::Source { "http://a.example/m" } else { "oci://a.example/a/b:v1" };
        assert_eq!(failure(&fetcher, &request(url)).await.0, "redirect", "{way:?}");
        let round = server.seen().iter().filter(|seen| seen.path() == "/round").count();
        assert!((9..=11).contains(&round), "{way:?}: {round}");
    }
}

#[tokio::test]
async fn a_host_name_without_end_is_neither_looked_up_nor_told() {
    let long = "x".repeat(60_000);
    let to = format!("http://{long}.example/m");
    let redirecting = {
        let to = to.clone();
        Server::start(move |_| Reply::redirect(&to)).await
    };
    let asking = Server::start(move |_| ask(&to)).await;
    for url in [redirecting.url("/m"), image_url(&redirecting), image_url(&asking)] {
        let error = fetch(&Net::default().build(), &request(&url)).await.unwrap_err();
        let text = crate::causes::with_causes(&error).to_string();
        assert!(text.len() < 1000, "{} {}", error.label(), text.len());
    }
}
