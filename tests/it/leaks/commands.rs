//! What is typed beside the agent, and goes well or wrong.

use std::path::Path;

use serde_json::json;

use super::MODULE;
use super::run::Run;
use super::written::Written;
use crate::support::fixtures::module;
use crate::support::registry::{PASSWORD, USER, docker_config};
use crate::support::world::User;

impl Run {
    /// What is typed, and goes well or wrong.
    pub async fn commands(&self, written: &mut Written) {
        let Run { world, secrets, agent, .. } = self;
        let config = agent.config.display().to_string();
        let proxy = self.proxy.url();
        let wrong_proxy = self.proxy.wrong_url();
        let path = format!("{}:/usr/bin:/bin", world.path().join("programs").display());
        let env = [("HTTPS_PROXY", proxy.as_str()), ("NO_PROXY", "127.0.0.0/8"), ("PATH", path.as_str())];
        assert_eq!(written.command(world, &["check", "--config", &config], &env).await, Some(0));

        let store = world.folder("other-cache", User::Agent, 0o711).display().to_string();
        let signed = format!("{}?token={}", self.hostile.url("/file.wasm"), secrets.get("query-of-a-url"));
        let fragment = format!("{}#{}", self.hostile.url("/missing.wasm"), secrets.make("fragment-of-a-url"));
        let sources = [
            self.guarded.url("team/node", "v1"),
            self.guarded.url("team/token", "v1"),
            self.closed.url("helped", "v1"),
            self.closed.url("provided", "v1"),
            "oci://secure.test/filter:v1".to_owned(),
            "oci://nowhere.test/filter:v1".to_owned(),
            self.hostile.image("echo-node"),
            self.hostile.image("provided"),
            self.hostile.image("broken"),
            signed,
            fragment,
        ];
        for (output, format, env) in
            [("json", "text", env), ("text", "json", [("HTTPS_PROXY", wrong_proxy.as_str()), env[1], env[2]])]
        {
            let mut args =
                vec!["prefetch", "--log-level", "trace", "--log-format", format, "--output", output];
            args.extend(["--config", &config, "--cache-dir", &store]);
            args.extend(sources.iter().map(String::as_str));
            assert_eq!(written.command(world, &args, &env).await, Some(1));
        }
        let user = format!("oci://carol:{}@{}/x:v1", secrets.make("user-of-an-image"), self.closed.address());
        assert_ne!(written.command(world, &["prefetch", "--cache-dir", &store, &user], &env).await, Some(0));
        for args in [
            vec!["cache", "ls", "--output", "json", "--cache-dir", &store],
            vec!["cache", "ls", "--cache-dir", &store],
            vec!["cache", "verify", "--cache-dir", &store],
        ] {
            assert_eq!(written.command(world, &args, &[("RUST_LOG", "trace")]).await, Some(0), "{args:?}");
        }
        written.folder(Path::new(&store));

        let file = world.write("filter.wasm", module(MODULE), User::Agent, 0o644).display().to_string();
        for (name, password, code) in
            [("right", PASSWORD.to_owned(), 0), ("wrong", secrets.make("wrong-push"), 1)]
        {
            let folder = world.folder(name, User::Agent, 0o700).display().to_string();
            let docker = docker_config(&self.closed.address().to_string(), USER, &password);
            self.write(&format!("{name}/config.json"), &docker);
            let args = ["push", "--log-level", "trace", &file, &self.closed.url("pushed", "v1")];
            let env = [("DOCKER_CONFIG", folder.as_str())];
            assert_eq!(written.command(world, &args, &env).await, Some(code), "{name}");
        }
        let args = ["push", &file, &user];
        assert_ne!(written.command(world, &args, &[]).await, Some(0));

        // What is no configuration.
        let (header, mirror) = (secrets.make("unsendable-header"), secrets.make("user-of-a-mirror"));
        for (keys, env) in [
            (json!({"registries": {"r.io": {"headers": {"x-key": format!("{header}\n")}}}}), vec![]),
            (
                json!({"registries": {"r.io": {"mirrors": [{"url": format!("https://c:{mirror}@r.io/{mirror}")}]}}}),
                vec![],
            ),
            (json!({"credentials": [{"for": [format!("carol:{mirror}@r.io")], "password": mirror}]}), vec![]),
            (
                json!({}),
                vec![("HTTPS_PROXY", format!("ht!tp://carol:{}@proxy", secrets.make("unread-proxy")))],
            ),
            (
                json!({}),
                vec![(
                    "HTTP_PROXY",
                    format!("ftp://carol:{}@proxy", secrets.make("ftp-proxy").replace('/', "%2F")),
                )],
            ),
        ] {
            let mut whole = json!({"version": 1});
            whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let file =
                world.write("broken.yaml", whole.to_string(), User::Agent, 0o600).display().to_string();
            let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for command in ["check", "run"] {
                let args = [command, "--log-level", "trace", "--config", &file];
                assert_eq!(written.command(world, &args, &env).await, Some(2), "{keys}");
            }
        }
    }
}
