//! One module, several who may have it, and some who may not.

use super::*;
use crate::module::PullSecret;
use crate::secret::Secret;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Place {
    /// As somebody with a credential of their own.
    async fn pull(&self, who: &str, name: &str) -> Outcome {
        self.resolver.resolve(self.of(who, name)).await
    }

    fn of(&self, who: &str, name: &str) -> ModuleRequest {
        let login = json!({"auths": {self.address.to_string(): {"username": who, "password": "secret"}}});
        let secret = PullSecret::DockerConfig(Secret::new(login.to_string()));
        ModuleRequest { secret, ..self.request(name) }
    }

    fn refuse(&self, status: impl Into<Option<u16>>) {
        *self.shop.refuses.lock().unwrap() = status.into();
    }

    fn answer_heads(&self, heads: Heads) {
        *self.shop.heads.lock().unwrap() = heads;
    }

    fn proofs_last(&self, proof: Duration) {
        let store = &self.resolver.0.store;
        store.limit(crate::store::Limits { proof, ..Default::default() });
    }

    fn deny(&self) {
        let config = self.resolver.0.config.read().unwrap().clone();
        self.resolver.reconfigure(ResolveConfig { allow_if_seen: false, ..config });
    }

    /// HEADs of blobs, GETs of manifests, and of blobs.
    fn asked_in_all(&self) -> (usize, usize, usize) {
        let (manifests, blobs) = self.shop.asked();
        let is_head = |path: &&String| path.starts_with("HEAD ") && path.contains("/blobs/");
        (self.shop.asked.borrow().iter().filter(is_head).count(), manifests, blobs)
    }

    fn shared(&self, ground: &'static str) -> u64 {
        self.resolver.0.metrics.shared_modules.get_or_create(&result(ground)).get()
    }

    /// A module that bob was given once, and that the store now has for alice alone. Gives its name by digest.
    async fn alices_and_once_bobs() -> (Place, String) {
        let place = Place::new(4).await;
        let digest = place.shop.offer("a:t", MODULES[0]);
        let pinned = format!("a@{digest}");
        place.shop.offer(&pinned.replace('@', ":"), MODULES[0]);
        for name in ["a:t", &pinned] {
            place.pull("bob", name).await.unwrap();
        }
        let module = place.pull("alice", "a:t").await.unwrap();
        place.resolver.0.store.remove(&module.payload, true).unwrap();
        place.pull("alice", "a:t").await.unwrap();
        (place, pinned)
    }
}

#[tokio::test]
async fn a_second_credential_is_asked_for_at_the_registry_and_downloads_nothing() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    let first = place.pull("alice", "a:t").await.unwrap();
    assert_eq!(place.asked_in_all(), (0, 1, 1));
    let mut paths = vec![first.path];
    for (number, who) in ["bob", "carol"].into_iter().enumerate() {
        let module = place.pull(who, "a:t").await.unwrap();
        assert_eq!((module.payload, module.cached), (first.payload, true));
        assert_eq!(place.asked_in_all(), (1 + number, 2 + number, 1));
        assert!(!paths.contains(&module.path), "a view of their own");
        paths.push(module.path);
    }
    // Nobody's is a view too.
    let module = place.resolver.resolve(place.request("a:t")).await.unwrap();
    assert!(module.path.to_str().unwrap().contains("/public/"));
    assert_eq!(place.asked_in_all(), (3, 4, 1));
    assert_eq!(place.shared("asked"), 3);
    // What they have they have.
    place.refuse(503);
    let again = place.restarted();
    for who in ["alice", "bob", "carol"] {
        again.resolve(place.of(who, "a:t")).await.unwrap();
    }
    assert_eq!(place.asked_in_all(), (3, 4, 1));
}

#[tokio::test]
async fn a_registry_that_claims_to_have_a_layer_leads_to_no_module_of_another() {
    let place = Place::new(4).await;
    place.shop.offer("private/a:t", MODULES[0]);
    place.pull("alice", "private/a:t").await.unwrap();
    // Mallory has heard of the digest, and has a repository of her own.
    place.shop.offer("mallory/a:t", MODULES[0]);
    place.shop.goods.lock().unwrap().retain(|path, _| !path.starts_with("/v2/mallory/a/blobs/"));
    place.answer_heads(Heads::Claimed);
    assert_eq!(label(place.pull("mallory", "mallory/a:t").await), "not_found");
    let payload = PayloadDigest::of(MODULES[0]);
    let mallory = place.resolver.asked(place.of("mallory", "mallory/a:t")).await.ok().unwrap();
    assert_eq!(place.resolver.0.store.view(&mallory.audience, &payload).unwrap(), None);
}

/// A layer with one file in it.
fn layer(name: &str, content: &[u8]) -> Bytes {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap().into()
}

#[tokio::test]
async fn a_layer_that_did_not_hold_the_module_leads_nobody_to_what_lay_below_it() {
    let place = Place::new(4).await;
    let (top, [low, other]) =
        (layer("NOTICE", b"read me"), MODULES.map(|module| layer("plugin.wasm", module)));
    place.shop.offer_layers("a:one", &[&low, &top]);
    place.shop.offer_layers("a:two", &[&other, &top]);
    let one = place.pull("alice", "a:one").await.unwrap();
    assert_eq!(one.payload, PayloadDigest::of(MODULES[0]));
    for who in ["bob", "alice"] {
        let two = place.pull(who, "a:two").await.unwrap();
        assert_eq!(two.payload, PayloadDigest::of(MODULES[1]), "{who}");
    }
    // One that held it holds it in every image that ends with it.
    place.shop.offer_layers("a:three", &[&top, &low]);
    place.shop.offer_layers("a:four", &[&other, &low]);
    place.pull("alice", "a:three").await.unwrap();
    let before = place.asked_in_all();
    let four = place.pull("bob", "a:four").await.unwrap();
    assert_eq!((four.payload, four.cached), (one.payload, true));
    let after = place.asked_in_all();
    assert_eq!((after.0 - before.0, after.2), (1, before.2), "one question, no download");
}

#[tokio::test]
async fn a_refused_question_leaves_it_to_the_download_to_say_so() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    place.pull("alice", "a:t").await.unwrap();
    // The manifest may be read, the layer not.
    place.answer_heads(Heads::Refused(403));
    let blobs: Vec<_> =
        place.shop.goods.lock().unwrap().keys().filter(|path| path.contains("/blobs/")).cloned().collect();
    let hidden: Vec<_> = blobs
        .iter()
        .map(|path| (path.clone(), place.shop.goods.lock().unwrap().remove(path).unwrap()))
        .collect();
    assert_eq!(label(place.pull("bob", "a:t").await), "not_found");
    assert_eq!(place.shared("refused"), 1);
    place.shop.goods.lock().unwrap().extend(hidden);
    // A registry that knows no such questions is asked for all of it, as ever.
    for (who, status) in [("bob", 403), ("carol", 405), ("dave", 501), ("erin", 500)] {
        place.answer_heads(Heads::Refused(status));
        let (_, _, before) = place.asked_in_all();
        assert!(!place.pull(who, "a:t").await.unwrap().cached, "{status}");
        assert_eq!(place.asked_in_all().2, before + 1, "{status}");
    }
}

#[tokio::test]
async fn what_was_shown_not_long_ago_is_not_asked_again() {
    let (place, pinned) = Place::alices_and_once_bobs().await;
    let before = place.asked_in_all();
    let module = place.pull("bob", &pinned).await.unwrap();
    assert!(module.cached);
    assert_eq!(place.asked_in_all(), before, "a digest says what it is");
    assert_eq!(place.shared("remembered"), 1);
    // A tag is looked at, and the layer is not.
    let (place, _) = Place::alices_and_once_bobs().await;
    let (heads, manifests, blobs) = place.asked_in_all();
    place.pull("bob", "a:t").await.unwrap();
    assert_eq!(place.asked_in_all(), (heads, manifests + 1, blobs));
    // What is too old is asked again.
    let (place, pinned) = Place::alices_and_once_bobs().await;
    place.proofs_last(Duration::ZERO);
    let (heads, manifests, blobs) = place.asked_in_all();
    place.pull("bob", &pinned).await.unwrap();
    assert_eq!(place.asked_in_all(), (heads + 1, manifests + 1, blobs));
}

#[tokio::test]
async fn while_the_registry_is_down_who_has_shown_it_before_is_let_in_if_the_operator_allows() {
    for (by_tag, allowed, lasts) in [
        (false, true, Duration::ZERO),
        (true, true, Duration::ZERO),
        (false, false, Duration::ZERO),
        (true, false, Duration::ZERO),
        // Not too old, so that there is nothing to allow.
        (true, false, DAY),
    ] {
        let (place, pinned) = Place::alices_and_once_bobs().await;
        let name = if by_tag { "a:t" } else { &pinned };
        place.proofs_last(lasts);
        if !allowed {
            place.deny();
        }
        for status in [500, 502, 503, 429] {
            place.refuse(status);
            assert!(place.pull("carol", name).await.is_err(), "who never showed it");
        }
        let always = ModuleRequest { policy: PullPolicy::Always, ..place.of("bob", name) };
        assert!(place.resolver.resolve(always).await.is_err(), "who wants to be sure");
        let outcome = place.pull("bob", name).await;
        match allowed || !lasts.is_zero() {
            true => assert!(outcome.unwrap().cached),
            false => {
                assert_eq!(label(outcome), "rate_limited");
                assert_eq!(place.shared("unanswered"), 1);
            }
        }
    }
}

#[tokio::test]
async fn the_layer_alone_may_be_out_of_reach() {
    for allowed in [true, false] {
        let (place, pinned) = Place::alices_and_once_bobs().await;
        place.proofs_last(Duration::ZERO);
        if !allowed {
            place.deny();
        }
        place.answer_heads(Heads::Refused(503));
        let (_, _, before) = place.asked_in_all();
        assert_eq!(place.pull("bob", &pinned).await.unwrap().cached, allowed);
        assert_eq!(place.asked_in_all().2 - before, usize::from(!allowed));
        assert_eq!((place.shared("seen"), place.shared("unanswered")), (allowed.into(), (!allowed).into()));
    }
}

#[tokio::test]
async fn one_who_is_refused_has_shown_nothing_any_more_and_the_others_have() {
    for status in [401, 403, 404] {
        let (place, pinned) = Place::alices_and_once_bobs().await;
        place.pull("carol", &pinned).await.unwrap();
        place.proofs_last(Duration::ZERO);
        place.refuse(status);
        let expected = match status {
            401 => "unauthorized",
            403 => "denied",
            _ => "not_found",
        };
        assert_eq!(label(place.pull("bob", &pinned).await), expected);
        place.refuse(503);
        place.proofs_last(DAY);
        assert_eq!(label(place.pull("bob", &pinned).await), "unavailable");
        assert_eq!(label(place.pull("bob", "a:t").await), "unavailable");
        assert!(place.pull("carol", &pinned).await.unwrap().cached);
        place.refuse(None);
        assert!(place.pull("bob", &pinned).await.unwrap().cached, "it is let in again");
    }
}

#[tokio::test]
async fn what_is_expected_is_compared_before_anything_is_shared() {
    let (place, pinned) = Place::alices_and_once_bobs().await;
    let expecting = |name: &str, bytes| {
        let expected = PayloadDigest::of(bytes).to_string().parse().unwrap();
        ModuleRequest { expected: Some(expected), ..place.of("bob", name) }
    };
    for name in ["a:t", &pinned] {
        assert_eq!(label(place.resolver.resolve(expecting(name, MODULES[1])).await), "digest_mismatch");
    }
    let (_, _, before) = place.asked_in_all();
    for name in ["a:t", &pinned] {
        assert!(place.resolver.resolve(expecting(name, MODULES[0])).await.unwrap().cached);
    }
    assert_eq!(place.asked_in_all().2, before);
}

#[tokio::test]
async fn a_wrong_secret_fails_its_own_pull_and_no_other() {
    let place = Place::new(1).await;
    place.shop.offer("a:t", MODULES[0]);
    place.pull("alice", "a:t").await.unwrap();
    place.refuse(401);
    assert_eq!(label(place.pull("mallory", "a:t").await), "unauthorized");
    place.refuse(None);
    for who in ["bob", "mallory"] {
        assert!(place.pull(who, "a:t").await.unwrap().cached, "{who}");
    }
}
