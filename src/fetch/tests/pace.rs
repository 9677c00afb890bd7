//! Servers that send, but hardly.

use super::*;

const WINDOW: Duration = Duration::from_secs(1);
const DRIP: Duration = Duration::from_millis(50);

/// A window is short here, and 1,000 bytes have to come in one.
fn net() -> Net {
    Net::default().config(|config| {
        config.progress_timeout = WINDOW;
        config.min_rate = 1000;
        config.retries = Retries { most: 2, within: Duration::from_secs(60) };
    })
}

#[tokio::test]
async fn a_server_that_drips_is_given_up_with_its_rate_and_not_asked_again() {
    let image = Image::new(vec![7; 100_000]);
    let dripping = |part: &'static str, drip| {
        let served = image.clone();
        registry(&image, move |seen| {
            let reply = if part == "/m" { Reply::ok(vec![7; 100_000]) } else { served.reply(seen) };
            seen.target.contains(part).then(|| reply.fault(Fault::Drip(drip)))
        })
    };
    let attempt = async |part, drip: Duration| {
        let server = dripping(part, drip).await;
        let url = if part == "/m" { server.url("/m") } else { image_url(&server) };
        let began = Instant::now();
        let (label, text) = failure(&net().build(), &request(&url)).await;
        assert_eq!(label, "slow", "{part}: {text}");
        let (bytes, rest) =
            text.split_once(" sends too slowly: ").unwrap().1.split_once(" bytes in 1s").unwrap();
        let most = WINDOW.as_millis() / drip.as_millis() + 1;
        assert!((1..=most).contains(&bytes.parse().unwrap()), "{text}");
        assert_eq!(rest, ", and 1000 bytes a second are the least");
        assert!((WINDOW..4 * WINDOW).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert_eq!(server.asked().iter().filter(|asked| asked.contains(part)).count(), 1);
    };
    // Silence is never as long as it may be.
    let hardly = WINDOW * 9 / 10;
    tokio::join!(
        attempt("/blobs/", DRIP),
        attempt("/blobs/", hardly),
        attempt("/manifests/", DRIP),
        attempt("/m", DRIP),
        attempt("/m", hardly),
    );
}

#[tokio::test]
async fn a_token_server_that_drips_is_given_up_too() {
    let server = Server::start(|seen| match seen.target.starts_with("/token") {
        true => Reply::ok(json!({ "token": "x".repeat(2000) }).to_string()).fault(Fault::Drip(DRIP)),
        false => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            Reply::new(401).header("WWW-Authenticate", &realm)
        }
    })
    .await;
    assert_eq!(failure(&net().build(), &request(&image_url(&server))).await.0, "slow");
}

#[tokio::test]
async fn where_no_rate_is_asked_for_a_drip_is_waited_for() {
    let image = Image::new(vec![7; 40]);
    let path = image.blob_path();
    let served = image.clone();
    let server = registry(&image, move |seen| {
        (seen.target == path).then(|| served.reply(seen).fault(Fault::Drip(DRIP)))
    })
    .await;
    let began = Instant::now();
    let fetcher = net().config(|config| config.min_rate = 0).build();
    assert_eq!(fetch(&fetcher, &request(&image_url(&server))).await.unwrap().bytes, image.layer);
    assert!(began.elapsed() > WINDOW, "longer than a window");
}

#[tokio::test]
async fn a_reader_that_is_slow_itself_gives_nobody_up() {
    let server = Server::start(|_| Reply::ok(vec![7; 8 << 20])).await;
    let fetcher = net().config(|config| config.min_rate = 1 << 30).build();
    let request = request(&server.url("/m"));
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
    let mut body = fetcher.open(located, deadline).await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        body.read_exact(&mut [0; 1000]).unwrap();
        std::thread::sleep(WINDOW * 2);
        body.read_to_end(&mut Vec::new()).unwrap()
    });
    assert_eq!(reading.await.unwrap(), (8 << 20) - 1000);
}

#[tokio::test]
async fn what_a_mirror_drips_is_asked_of_the_next_host() {
    let image = Image::new(vec![7; 100_000]);
    let origin = registry(&image, |_| None).await;
    let served = image.clone();
    let mirror = Server::start(move |seen| {
        let target = seen.path().to_owned();
        let reply = served.reply(&Seen { target: target.clone(), ..seen.clone() });
        if target.contains("/blobs/") { reply.fault(Fault::Drip(DRIP)) } else { reply }
    })
    .await;
    let net = mirrors::net(&origin, &[&mirror]).config(|config| {
        config.progress_timeout = WINDOW;
        config.min_rate = 1000;
    });
    assert_eq!(mirrors::bytes(net, &origin).await, image.layer);
    assert_eq!(origin.asked(), [format!("GET {}", image.blob_path())]);
}
