//! A registry and file server that says back whatever it is told, and puts secrets of its own into whatever may
//! be printed.

use std::net::SocketAddr;

use serde_json::json;

use super::secrets::{Secrets, in_url};
use crate::support::bad_server::{BadServer, Fault, Reply, Seen};
use crate::support::fixtures::module;
use crate::support::registry::{OCI_MANIFEST, digest};
use crate::support::world::World;

pub struct Hostile(BadServer);

/// What it is made of.
struct Words {
    address: SocketAddr,
    /// Where nobody listens.
    nowhere: SocketAddr,
    module: Vec<u8>,
    /// A token of its own, a signature in a URL, and what stands where a stranger may write.
    token: String,
    signature: String,
    words: String,
}

impl Hostile {
    /// Those for which it wants a password, and whether their module arrives.
    pub const REPOSITORIES: [(&str, bool); 20] = [
        ("basic-then-signed", true),
        ("token-then-signed", true),
        ("signed-denied", false),
        ("signed-blocked", false),
        ("signed-in-a-circle", false),
        ("signed-to-nowhere", false),
        ("signed-with-a-user", false),
        ("signed-without-sense", false),
        ("signed-and-cut", false),
        ("wrong-digest", false),
        ("echo", false),
        ("foreign-realm", false),
        ("token-denied", false),
        ("token-for-no-header", false),
        ("token-without-sense", false),
        ("token-missing", false),
        ("manifest-without-sense", false),
        ("manifest-of-another-digest", false),
        ("layer-of-another-type", false),
        ("manifest-of-another-type", false),
    ];
    /// The same of files.
    pub const FILES: [(&str, bool); 5] = [
        ("/file.wasm", true),
        ("/moved.wasm", true),
        ("/missing.wasm", false),
        ("/denied.wasm", false),
        ("/no-module.wasm", false),
    ];

    pub async fn start(world: &World, secrets: &Secrets) -> Hostile {
        let server = BadServer::start(world).await;
        let words = Words {
            address: server.address(),
            nowhere: world.address(),
            module: module("add-header-v1"),
            token: secrets.make("token-of-the-hostile"),
            signature: secrets.make("signature-of-the-hostile"),
            words: secrets.make("words-of-the-hostile"),
        };
        secrets.make("shown-to-the-hostile");
        secrets.add(&format!("carol:{}", secrets.get("shown-to-the-hostile")));
        server.handle(move |seen| Some(words.answer(seen)));
        Hostile(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    pub fn url(&self, path: &str) -> String {
        self.0.url(path)
    }

    pub fn image(&self, repository: &str) -> String {
        format!("oci://{}/{repository}:v1", self.address())
    }

    /// The `Authorization` headers that it was shown.
    pub fn shown(&self) -> Vec<String> {
        self.0.seen().into_iter().filter_map(|seen| seen.authorization).collect()
    }

    /// The paths that it was asked for.
    pub fn paths(&self) -> Vec<String> {
        self.0.seen().into_iter().map(|seen| seen.path).collect()
    }
}

impl Words {
    fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["v2", repository, "manifests", _] => match self.challenge(repository, seen) {
                Some(reply) => reply,
                None => self.manifest(repository, seen),
            },
            ["v2", repository, "blobs", _] => match self.challenge(repository, seen) {
                Some(reply) => reply,
                None => self.blob(repository, seen),
            },
            ["token", repository] => self.token(repository, seen),
            ["signed", "denied", ..] => self.echo(403, seen),
            ["signed", "circle", ..] => self.redirect(&format!("{path}?{}", self.signature)),
            ["signed", "cut", ..] => Reply::ok(self.module.clone()).fault(Fault::Cut(10)),
            ["signed", ..] | ["file.wasm"] => Reply::ok(self.module.clone()),
            ["moved.wasm"] => self.redirect(&format!("/file.wasm?sig={}", self.signature)),
            ["no-module.wasm"] => Reply::ok(format!("{} {}", self.words, seen.path)),
            ["denied.wasm"] => self.echo(403, seen),
            _ => self.echo(404, seen),
        }
    }

    /// What it asks for before it shows a repository; none where it has got it.
    fn challenge(&self, repository: &str, seen: &Seen) -> Option<Reply> {
        let by_token = repository.starts_with("token-") || repository.starts_with("signed-");
        let shown = seen.authorization.as_deref();
        if by_token && shown == Some(&format!("Bearer {}", self.token)) || !by_token && shown.is_some() {
            return None;
        }
        let Words { address, words, signature, .. } = self;
        let challenge = match repository {
            "foreign-realm" => {
                let user = in_url(words);
                format!("Bearer realm=\"https://c:{user}@evil.test/{words}?{signature}\",service=\"{words}\"")
            }
            _ if by_token => {
                format!(
                    "Bearer realm=\"http://{address}/token/{repository}?{signature}\",service=\"{words}\""
                )
            }
            _ => format!("Basic realm=\"{words}\""),
        };
        Some(self.echo(401, seen).header("www-authenticate", &challenge))
    }

    fn token(&self, repository: &str, seen: &Seen) -> Reply {
        match repository {
            "token-denied" => self.echo(401, seen),
            "token-for-no-header" => Reply::ok(json!({"token": format!("{}\n", self.token)}).to_string()),
            "token-without-sense" => Reply::ok(self.token.clone()),
            "token-missing" => Reply::ok(json!({"errors": [{"message": self.words}]}).to_string()),
            _ => Reply::ok(json!({"token": self.token, "expires_in": 300}).to_string()),
        }
    }

    fn manifest(&self, repository: &str, seen: &Seen) -> Reply {
        if repository.starts_with("echo") {
            return self.echo(403, seen);
        }
        let layer = json!({
            "mediaType": "application/wasm", "digest": digest(&self.module), "size": self.module.len(),
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer],
            "config": {"mediaType": "application/json", "digest": digest(b"{}"), "size": 2},
            "annotations": {"words": self.words},
        });
        let manifest = Reply::ok(manifest.to_string()).header("content-type", OCI_MANIFEST);
        let shown = seen.authorization.as_deref().unwrap_or_default().replace(' ', "-");
        match repository {
            "layer-of-another-type" => Reply {
                body: String::from_utf8_lossy(&manifest.body)
                    .replace("application/wasm", &format!("application/{shown}"))
                    .into_bytes(),
                ..manifest
            },
            "manifest-of-another-type" => Reply {
                body: String::from_utf8_lossy(&manifest.body)
                    .replace(OCI_MANIFEST, &format!("application/{shown}"))
                    .into_bytes(),
                ..Reply::ok("")
            },
            "manifest-without-sense" => Reply::ok(format!("{{\"schemaVersion\": {}", self.words)),
            "manifest-of-another-digest" => manifest.header("docker-content-digest", &self.words),
            _ => manifest,
        }
    }

    fn blob(&self, repository: &str, seen: &Seen) -> Reply {
        let Words { address, nowhere, signature, words, .. } = self;
        match repository {
            "wrong-digest" => Reply::ok(vec![b'x'; self.module.len()]),
            "basic-then-signed" | "token-then-signed" => {
                self.redirect(&format!("/signed/well?sig={signature}"))
            }
            "signed-denied" => self.redirect(&format!("/signed/denied?sig={signature}")),
            "signed-blocked" => {
                self.redirect(&format!("http://169.254.169.254/{signature}?sig={signature}#{signature}"))
            }
            "signed-in-a-circle" => self.redirect(&format!("/signed/circle?sig={signature}")),
            "signed-to-nowhere" => self.redirect(&format!("http://{nowhere}/{signature}?sig={signature}")),
            "signed-with-a-user" => {
                self.redirect(&format!("http://carol:{}@{address}/{signature}", in_url(signature)))
            }
            "signed-without-sense" => self.redirect(&format!("ht!tp://{words}")),
            "signed-and-cut" => self.redirect(&format!("/signed/cut?sig={signature}")),
            _ => self.echo(404, seen),
        }
    }

    fn redirect(&self, to: &str) -> Reply {
        Reply::status(307).header("location", to)
    }

    /// An error that says all that the request said.
    fn echo(&self, status: u16, seen: &Seen) -> Reply {
        let shown = seen.authorization.as_deref().unwrap_or(&self.words);
        let error = json!({"code": shown, "message": format!("{shown} {}", seen.path), "detail": self.words});
        Reply { body: json!({"errors": [error]}).to_string().into_bytes(), ..Reply::status(status) }
            .header("content-type", &format!("application/json; {}", self.words))
            .header("x-shown", shown)
            .header("warning", &seen.path)
    }
}
