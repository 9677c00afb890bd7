//! Tags that move.

use super::*;
use crate::module::PullSecret;
use crate::secret::Secret;

impl Place {
    /// Resolves, and what it came from.
    async fn pulled(&self, request: &ModuleRequest) -> SourceDigest {
        self.resolver.resolve(request.clone()).await.unwrap().source
    }

    /// Looks after an interval.
    async fn look(
        &self,
        request: &ModuleRequest,
        known: SourceDigest,
    ) -> Result<Option<Module>, Arc<ResolveError>> {
        self.clock.advance(INTERVAL);
        self.resolver.refresh(request.clone(), known).await
    }

    /// The same, of a tag that moved.
    async fn moved(&self, request: &ModuleRequest, known: SourceDigest) -> Module {
        self.look(request, known).await.unwrap().expect("the tag moved")
    }
}

impl Shop {
    /// Offers a module by an index of one image without a platform; gives the image's digest.
    fn offer_index(&self, name: &str, module: &'static [u8]) -> SourceDigest {
        let (repository, tag) = name.split_once(':').unwrap();
        let child = self.offer(name, module);
        let mut goods = self.goods.lock().unwrap();
        let manifest = goods[&format!("/v2/{repository}/manifests/{tag}")].clone();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": media_type, "digest": child.to_string(), "size": manifest.len()}],
        });
        goods.insert(format!("/v2/{repository}/manifests/{child}"), manifest);
        goods.insert(format!("/v2/{repository}/manifests/{tag}"), Bytes::from(index.to_string()));
        child
    }
}

#[tokio::test]
async fn a_tag_that_has_not_moved_costs_one_head_and_one_that_has_a_pull() {
    let place = Place::new(4).await;
    let first = place.shop.offer("a:t", MODULES[0]);
    let request = place.request("a:t");
    assert_eq!(place.pulled(&request).await, first);
    for looks in 1..=3 {
        assert_eq!(place.look(&request, first).await.unwrap(), None);
        assert_eq!((place.shop.looks(), place.shop.asked()), (looks, (1, 1)));
    }
    let second = place.shop.offer("a:t", MODULES[1]);
    let module = place.moved(&request, first).await;
    assert_eq!((module.source, module.payload), (second, PayloadDigest::of(MODULES[1])));
    assert_eq!((place.shop.looks(), place.shop.asked()), (4, (2, 2)));
    // Whoever asks from now on gets the new one, after a restart too.
    assert_eq!(place.pulled(&request).await, second);
    assert_eq!(place.restarted().resolve(request.clone()).await.unwrap().source, second);
    // Back again: that is in the store.
    place.shop.offer("a:t", MODULES[0]);
    assert_eq!(place.moved(&request, second).await.source, first);
    assert_eq!(place.pulled(&request).await, first);
    assert_eq!((place.shop.looks(), place.shop.asked()), (5, (2, 2)));
}

#[tokio::test]
async fn a_failed_look_leaves_everything_as_it_was() {
    let place = Place::new(4).await;
    let first = place.shop.offer("a:t", MODULES[0]);
    let request = place.request("a:t");
    place.pulled(&request).await;
    // The registry fails, the tag is gone, and the new module is none.
    *place.shop.heads.lock().unwrap() = Heads::Refused(503);
    assert_eq!(place.look(&request, first).await.unwrap_err().label(), "unavailable");
    *place.shop.heads.lock().unwrap() = Heads::Answered;
    let goods = std::mem::take(&mut *place.shop.goods.lock().unwrap());
    assert_eq!(place.look(&request, first).await.unwrap_err().label(), "not_found");
    *place.shop.goods.lock().unwrap() = goods;
    place.shop.offer("a:t", b"\0asm\x01\0\0\0");
    assert_eq!(place.look(&request, first).await.unwrap_err().label(), "no_abi_version");
    assert_eq!(place.shop.asked(), (2, 2));
    // The same bytes are not downloaded to be refused again.
    for _ in 0..3 {
        assert_eq!(place.look(&request, first).await.unwrap_err().label(), "no_abi_version");
    }
    assert_eq!(place.shop.asked(), (2, 2));
    assert_eq!(place.pulled(&request).await, first);
    assert_eq!(place.restarted().resolve(request.clone()).await.unwrap().source, first);
    let second = place.shop.offer("a:t", MODULES[1]);
    assert_eq!(place.moved(&request, first).await.source, second);
}

#[tokio::test]
async fn a_registry_that_answers_no_head_is_asked_for_the_manifest() {
    for heads in [Heads::Refused(405), Heads::Refused(501), Heads::WithoutDigest] {
        let place = Place::new(4).await;
        *place.shop.heads.lock().unwrap() = heads;
        let first = place.shop.offer("a:t", MODULES[0]);
        let request = place.request("a:t");
        place.pulled(&request).await;
        assert_eq!(place.look(&request, first).await.unwrap(), None);
        assert_eq!(place.shop.asked(), (2, 1), "{heads:?}");
        let second = place.shop.offer("a:t", MODULES[1]);
        assert_eq!(place.moved(&request, first).await.source, second, "{heads:?}");
    }
}

#[tokio::test]
async fn one_look_answers_all_who_follow_a_tag_with_one_credential() {
    let place = Place::new(4).await;
    let first = place.shop.offer("slow:t", MODULES[0]);
    let request = place.request("slow:t");
    place.pulled(&request).await;
    let second = place.shop.offer("slow:t", MODULES[1]);
    place.shop.open.send_replace(false);
    let looks: Vec<_> = (0..20)
        .map(|_| {
            let (resolver, request) = (place.resolver.clone(), request.clone());
            tokio::spawn(async move { resolver.refresh(request, first).await })
        })
        .collect();
    place.shop.was_asked(2, 2).await;
    place.shop.open.send_replace(true);
    for look in looks {
        assert_eq!(look.await.unwrap().unwrap().expect("the tag moved").source, second);
    }
    // Nor does anybody ask who comes a little later, whatever they know.
    place.clock.advance(INTERVAL / 2 - Duration::from_millis(1));
    for (known, moved) in [(first, true), (second, false)] {
        let look = place.resolver.refresh(request.clone(), known).await.unwrap();
        assert_eq!(look.is_some(), moved);
    }
    assert_eq!((place.shop.looks(), place.shop.asked()), (1, (2, 2)));
    place.clock.advance(Duration::from_millis(1));
    assert_eq!(place.resolver.refresh(request.clone(), second).await.unwrap(), None);
    assert_eq!(place.shop.looks(), 2);
    // Another credential is another question.
    let config = json!({"auths": {place.address.to_string(): {"username": "u", "password": "p"}}});
    let secret = PullSecret::DockerConfig(Secret::new(config.to_string()));
    let theirs = ModuleRequest { secret, ..request };
    assert_eq!(place.resolver.refresh(theirs, first).await.unwrap().expect("it moved").source, second);
    assert_eq!(place.shop.looks(), 3);
}

#[tokio::test]
async fn what_is_pinned_is_never_looked_at() {
    let place = Place::new(4).await;
    let manifest = place.shop.offer("a:t", MODULES[0]);
    let expected = |digest: &[u8; 32]| ModuleRequest {
        expected: Some(ExpectedDigest::from_bytes(*digest)),
        ..place.request("a:t")
    };
    let payload = PayloadDigest::of(MODULES[0]);
    let reference = format!("oci://{}/a:t@{manifest}", place.address);
    for request in [
        expected(manifest.as_bytes()),
        expected(payload.as_bytes()),
        ModuleRequest::new(reference.parse().unwrap()),
        ModuleRequest::new(format!("http://{}/a", place.address).parse().unwrap()),
        ModuleRequest::new("file:///a".parse().unwrap()),
    ] {
        let known = SourceDigest::of(b"another");
        assert_eq!(place.look(&request, known).await.unwrap(), None, "{request:?}");
    }
    assert_eq!((place.shop.looks(), place.shop.asked()), (0, (0, 0)));
}

#[tokio::test]
async fn a_tag_of_an_index_costs_one_head_too_and_moves_as_any() {
    let place = Place::new(4).await;
    let first = place.shop.offer_index("a:t", MODULES[0]);
    let request = place.request("a:t");
    assert_eq!(place.pulled(&request).await, first);
    assert_eq!(place.shop.asked(), (2, 1));
    for looks in 1..=2 {
        assert_eq!(place.look(&request, first).await.unwrap(), None);
        assert_eq!((place.shop.looks(), place.shop.asked()), (looks, (2, 1)));
    }
    let second = place.shop.offer_index("a:t", MODULES[1]);
    assert_eq!(place.moved(&request, first).await.source, second);
    assert_eq!((place.shop.looks(), place.shop.asked()), (3, (4, 2)));
    place.shop.offer_index("a:t", MODULES[0]);
    assert_eq!(place.moved(&request, second).await.source, first);
    assert_eq!((place.shop.looks(), place.shop.asked()), (4, (4, 2)));
}
