//! Through a forward proxy, as far as addresses can be checked there.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A proxy that leads everything to one server, and keeps what it was asked.
struct Forward {
    address: SocketAddr,
    heads: Arc<std::sync::Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Forward {
    async fn start(target: SocketAddr, status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let log = heads.clone();
        let task = tokio::spawn(async move {
            let mut ways = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let log = log.clone();
                ways.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        stream.read_line(&mut head).await.unwrap();
                    }
                    log.lock().unwrap().push(head.clone());
                    let mut server = TcpStream::connect(target).await.unwrap();
                    match head.starts_with("CONNECT ") {
                        true => {
                            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
                            let answer =
                                if status == 200 { "HTTP/1.1 200 x\r\n\r\n".to_owned() } else { answer };
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                        false => server.write_all(head.as_bytes()).await.unwrap(),
                    }
                    let _ = copy_bidirectional(&mut stream, &mut server).await;
                });
            }
        });
        Forward { address, heads, _task: AbortOnDropHandle::new(task) }
    }

    /// The first line of each request that began a connection, and what it proved itself with.
    fn seen(&self) -> Vec<(String, bool)> {
        let heads = self.heads.lock().unwrap();
        let login =
            |head: &String| head.to_ascii_lowercase().contains("proxy-authorization: basic dtpodw50zxiy");
        heads.iter().map(|head| (head.lines().next().unwrap().to_owned(), login(head))).collect()
    }
}

fn through(proxy: &Forward, no_proxy: &str) -> Net {
    let proxy = Proxy::parse(&format!("http://u:hunter2@{}", proxy.address)).unwrap();
    Net::default().config(|config| config.proxies = Proxies::new(Some(proxy.clone()), Some(proxy), no_proxy))
}

#[tokio::test]
async fn http_goes_through_a_proxy_with_its_whole_url_and_the_name_is_not_looked_up() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let proxy = Forward::start(server.address, 200).await;
    let fetcher = through(&proxy, "").build();
    assert_eq!(fetch(&fetcher, &request("http://unknown.test/m?a=b")).await.unwrap().bytes, b"module");
    assert_eq!(proxy.seen(), [("GET http://unknown.test/m?a=b HTTP/1.1".to_owned(), true)]);
    assert_eq!(server.seen()[0].header("host"), Some("unknown.test"));
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_the_servers_own_certificate_counts() {
    let (roots, acceptor) = guard::certificates();
    let image = Image::new("module");
    let served = image.clone();
    let server = Server::start_at("127.0.0.1:0", Some(acceptor), move |seen| served.reply(seen)).await;
    let proxy = Forward::start(server.address, 200).await;
    let net = || Net { roots: Some(roots.clone()), ..through(&proxy, "") };
    let fetched = fetch(&net().build(), &request("oci://tls.example/a/b:v1")).await.unwrap();
    assert_eq!(fetched.bytes, b"module");
    assert_eq!(proxy.seen(), [("CONNECT tls.example:443 HTTP/1.1".to_owned(), true)]);
    // The password is for the proxy alone.
    assert!(server.seen().iter().all(|seen| seen.header("proxy-authorization").is_none()));
    assert_eq!(failure(&net().build(), &request("oci://evil.example/a/b:v1")).await.0, "tls");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_without_its_password() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let proxy = Forward::start(server.address, 407).await;
    let error = fetch(&through(&proxy, "").build(), &request("https://a.test/m")).await.unwrap_err();
    assert_eq!(error.label(), "proxy");
    let text = format!("{error} {error:?}");
    assert!(text.contains("status 407") && text.contains("a.test") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn literal_addresses_are_checked_behind_a_proxy_too() {
    let server = Server::start(|_| Reply::redirect("http://10.0.0.9/m")).await;
    let proxy = Forward::start(server.address, 200).await;
    for url in ["http://169.254.169.254/m", "https://169.254.169.254/m", "http://[fd00:ec2::254]/m"] {
        assert_eq!(failure(&through(&proxy, "").build(), &request(url)).await.0, "blocked", "{url}");
    }
    assert!(proxy.seen().is_empty());
    // Where a name leads is unknown, so it counts as a public one.
    assert_eq!(failure(&through(&proxy, "").build(), &request("http://a.test/m")).await.0, "blocked");
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test]
async fn this_machine_and_what_is_exempt_are_reached_directly() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let proxy = Forward::start(server.address, 200).await;
    let net = through(&proxy, "near.test").name("near.test", &["127.0.0.1"]).build();
    for url in [server.url("/m"), format!("http://near.test:{}/m", server.address.port())] {
        assert_eq!(fetch(&net, &request(&url)).await.unwrap().bytes, b"module", "{url}");
    }
    assert!(proxy.seen().is_empty());
}
