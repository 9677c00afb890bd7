//! A whole run at trace level, with secrets of every kind, against peers that repeat what they are told: nothing
//! that it writes holds one of them.

mod commands;
mod hostile;
mod run;
mod secrets;
mod written;

use serde_json::json;

use self::run::{Plugin, Run, unreadable};
use self::written::Written;
use crate::support::control_plane::{Protocol, Service};
use crate::support::envoy::Xds;
use crate::support::eventually;
use crate::support::mesh::{from_istio, with_secret};
use crate::support::registry::{USER, docker_config};
use crate::support::resources::{self, Kind};
use crate::support::scripted::Scripted;
use crate::support::search::Search;

const MODULE: &str = "add-header-v1";

#[tokio::test]
async fn nothing_that_a_whole_run_writes_shows_a_secret() {
    let mut run = Run::prepare().await;
    let plugins = run.plugins();
    let unreadable = unreadable(&run.secrets);
    run.agent.resume(&run.world).await;
    let mut written = Written::default();

    // To an Envoy on the listener that may use the node's own credentials; some at a time, since a NACK has
    // room for so many errors.
    let mut envoy = Scripted::connect(&Xds::Tcp(run.agent.tcp), Service::Aggregated, Protocol::Delta).await;
    for some in plugins.chunks(8) {
        run.control_plane.set_all(some.iter().map(|plugin| plugin.filter.resource(&plugin.name)));
        envoy.subscribe(&some.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>()).await;
        let settled = |envoy: &Scripted, plugin: &Plugin| match plugin.arrives {
            true => envoy.label(&plugin.name).is_some(),
            false => envoy.held.contains_key(&plugin.name),
        };
        envoy.until(|envoy| some.iter().all(|plugin| settled(envoy, plugin))).await;
    }
    let came = plugins.iter().filter(|plugin| !plugin.arrives && envoy.label(&plugin.name).is_some());
    assert_eq!(came.map(|plugin| &plugin.name).collect::<Vec<_>>(), Vec::<&String>::new());
    written.pages(&run.agent).await;

    // What is told the control plane at once.
    let unread: Vec<String> = unreadable.iter().map(|(name, _)| name.clone()).collect();
    let unread: Vec<&str> = unread.iter().map(String::as_str).collect();
    run.control_plane.set_named(unreadable);
    envoy.subscribe(&unread).await;
    eventually("a NACK of them all", async || {
        let nacks = run.control_plane.nacks(&resources::ecds_type());
        nacks.iter().any(|nack| unread.iter().all(|name| nack.contains(&format!("{name:?}")))).then_some(())
    })
    .await;

    // To another that may not, by the other protocol.
    let unix = Xds::Unix(run.agent.socket.clone());
    let mut outsider = Scripted::connect(&unix, Service::Aggregated, Protocol::Sotw).await;
    outsider.subscribe(&["node-password", "basic"]).await;
    outsider.until(|envoy| envoy.held.len() == 2).await;
    assert_eq!((outsider.label("node-password"), outsider.label("basic")), (None, Some("")));

    // A secret that is replaced by a wrong one, and a config that Envoy rejects.
    let replaced = docker_config(&run.closed.address().to_string(), USER, &run.secrets.make("replaced"));
    let mut basic = from_istio(Kind::Http, &run.closed.url("pulled", "v2"));
    basic.configuration = "again".into();
    run.control_plane.set(with_secret(basic.clone(), &replaced).resource("basic"));
    run.control_plane.set(resources::deny_all(Kind::Http, "identity"));
    envoy.until(|envoy| envoy.label("identity").is_none()).await;
    let mut rejected = plugins.iter().find(|plugin| plugin.name == "identity").unwrap().filter.clone();
    rejected.configuration = "rejected".into();
    run.control_plane.set(rejected.resource("identity"));
    loop {
        let received = envoy.receive().await;
        if received.configs.contains_key("identity") {
            envoy.reject(&received, "identity", "no thanks").await;
            break;
        }
        envoy.accept(&received).await;
    }
    written.pages(&run.agent).await;

    // By another process over the same store.
    run.agent.noted().await;
    assert_eq!(run.agent.stop().await, Some(0));
    written.folder(&run.agent.cache);
    run.agent.resume(&run.world).await;
    let mut second = Scripted::connect(&Xds::Tcp(run.agent.tcp), Service::Aggregated, Protocol::Sotw).await;
    let names: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    second.subscribe(&names).await;
    second.until(|envoy| envoy.held.contains_key("node-password")).await;
    written.pages(&run.agent).await;
    written.add("the agent's log", run.agent.log());
    assert_eq!(run.agent.stop().await, Some(0));
    written.folder(&run.agent.cache);
    for (name, envoy) in [("first", envoy), ("other", outsider), ("second", second)] {
        for message in envoy.messages {
            written.add(format!("sent to the {name} Envoy"), message.to_vec());
        }
    }
    written.add(
        "said to the control plane",
        format!("{:?}", run.control_plane.requests(&resources::ecds_type())),
    );
    run.commands(&mut written).await;

    // The run was what it should be.
    let said = written.all("said to the control plane");
    let log = written.all("the agent's log");
    for plugin in plugins.iter().filter(|plugin| !plugin.arrives) {
        let is_told = |line: &str| line.contains("cannot get the module") && line.contains(&plugin.name);
        assert!(log.lines().any(is_told), "nothing is told of {}", plugin.name);
    }
    // What takes longer than the hold is in no NACK.
    let failed = plugins.iter().filter(|plugin| !plugin.arrives);
    let in_nacks =
        failed.filter(|plugin| said.contains(&format!("{:?}: cannot get", plugin.name).replace('"', "\\\"")));
    let in_nacks = in_nacks.count();
    assert!(in_nacks >= 10, "{in_nacks} in NACKs: {said}");
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
    for place in
        ["stdout of", "stderr of", "'s /state", "'s /metrics", "the file v1/content/notes", "sent to the"]
    {
        assert!(!written.all(place).is_empty(), "nothing in {place}");
    }
    let shown = run.hostile.shown().join("\n") + &run.hostile.paths().join("\n");
    for name in
        ["echoed-to-the-node", "shown-to-the-hostile", "token-of-the-hostile", "signature-of-the-hostile"]
    {
        let search = Search::of([run.secrets.get(name), format!("node:{}", run.secrets.get(name))]);
        assert!(search.find(shown.as_bytes()).is_some(), "{name} was never sent");
    }
    assert!(run.proxy.seen().iter().any(|line| line.starts_with("CONNECT secure.test")));

    // And in all of it there is none.
    let tokens = run.tokens.asked().into_iter().filter_map(|asked| asked.token);
    let search = Search::of(run.secrets.all().into_iter().chain(tokens));
    let leaks =
        written.0.iter().filter_map(|(place, bytes)| Some(format!("{place}: {}", search.find(bytes)?)));
    let leaks: Vec<_> = leaks.collect();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
}

#[test]
fn a_secret_is_found_in_whatever_form_it_was_written() {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let search = Search::of(["in-a-test/of+a~run\""]);
    let found = |text: &str| search.find(text.as_bytes()).is_some();
    for around in ["", "a", "ab", "abc", "abcd"] {
        let whole = format!("{around}in-a-test/of+a~run\"{around}");
        for text in [
            whole.clone(),
            BASE64_STANDARD.encode(&whole),
            BASE64_URL_SAFE_NO_PAD.encode(&whole),
            url::form_urlencoded::byte_serialize(whole.as_bytes()).collect(),
            json!(whole).to_string(),
            hex::encode(&whole),
            format!("{:?}", whole.as_bytes()),
            crate::support::registry::digest(b"in-a-test/of+a~run\""),
        ] {
            assert!(found(&text), "{text}");
        }
    }
    assert!(!found("in-a-test/of+a") && !found(""));
}
