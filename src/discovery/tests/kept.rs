//! What is kept of a stream's responses.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::service::discovery::v3 as pb;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A response of either form; a resource without a body is a heartbeat.
#[derive(Default)]
struct Response {
    resources: Vec<(String, Option<protobuf::Any>)>,
    removed: Vec<String>,
}

impl Response {
    fn with(mut self, name: &str, type_url: &str, resource: &impl Message) -> Self {
        self.resources.push((name.to_owned(), Some(packed(type_url, resource))));
        self
    }

    fn listener(self, name: &str, filters: Vec<HttpFilter>) -> Self {
        self.with(name, type_url::LISTENER, &listener(name, filters))
    }

    fn cluster(self, name: &str, filters: Vec<HttpFilter>) -> Self {
        self.with(name, type_url::CLUSTER, &cluster(name, filters))
    }

    fn broken(mut self, name: &str) -> Self {
        // The name, then a filter chain that is cut off.
        let mut value = Listener { name: name.to_owned(), ..Default::default() }.encode_to_vec();
        value.extend_from_slice(b"\x1a\x02\x1a\x05");
        self.resources
            .push((name.to_owned(), Some(protobuf::Any { type_url: type_url::LISTENER.to_owned(), value })));
        self
    }

    fn heartbeat(mut self, name: &str) -> Self {
        self.resources.push((name.to_owned(), None));
        self
    }

    fn removed(mut self, name: &str) -> Self {
        self.removed.push(name.to_owned());
        self
    }

    fn wrapped(&self) -> Vec<pb::Resource> {
        let wrap = |(name, resource): &(String, _)| pb::Resource {
            name: name.clone(),
            resource: Option::clone(resource),
            ..Default::default()
        };
        self.resources.iter().map(wrap).collect()
    }

    fn bare(&self) -> Vec<u8> {
        let resources = self.resources.iter().filter_map(|(_, resource)| resource.clone()).collect();
        pb::DiscoveryResponse { resources, ..Default::default() }.encode_to_vec()
    }

    fn bare_wrapped(&self) -> Vec<u8> {
        let resources = self.wrapped().iter().map(|resource| packed(type_url::RESOURCE, resource)).collect();
        pb::DiscoveryResponse { resources, ..Default::default() }.encode_to_vec()
    }

    fn delta(&self) -> Vec<u8> {
        let removed_resources = self.removed.clone();
        let resources = self.wrapped();
        pb::DeltaDiscoveryResponse { resources, removed_resources, ..Default::default() }.encode_to_vec()
    }
}

/// Feeds listeners in the state of the world and says which names changed.
fn world(known: &mut Discoveries, response: &Response) -> Vec<String> {
    names(known.read_response(type_url::LISTENER, &response.bare()))
}

fn delta(known: &mut Discoveries, response: &Response) -> Vec<String> {
    names(known.read_delta_response(type_url::LISTENER, &response.delta()))
}

fn names(changed: BTreeSet<Arc<str>>) -> Vec<String> {
    changed.iter().map(|name| name.to_string()).collect()
}

fn takes(name: &str) -> HttpFilter {
    discovered(name, source(&[WASM, RBAC]))
}

fn refuses(name: &str) -> HttpFilter {
    discovered(name, source(&[WASM]))
}

const NONE: [&str; 0] = [];

#[test]
fn one_place_that_refuses_decides_wherever_it_is() {
    let mut known = Discoveries::default();
    assert_eq!(known.fallback("a"), Seen::Unseen);
    world(&mut known, &Response::default().listener("l", vec![takes("a"), takes("b"), refuses("b")]));
    assert_eq!((known.fallback("a"), known.fallback("b")), (Seen::Takes, Seen::Refuses));
    let clusters = Response::default().cluster("l", vec![refuses("a")]);
    known.read_response(type_url::CLUSTER, &clusters.bare());
    assert_eq!(known.fallback("a"), Seen::Refuses);
    known.read_response(type_url::CLUSTER, &Response::default().bare());
    assert_eq!(known.fallback("a"), Seen::Takes);
    assert_eq!(known.fallback("c"), Seen::Unseen);
}

#[test]
fn a_response_in_the_state_of_the_world_replaces_its_type_alone() {
    for form in [Response::bare, Response::bare_wrapped] {
        let mut known = Discoveries::default();
        let both = Response::default().listener("l", vec![takes("a")]).listener("m", vec![takes("b")]);
        known.read_response(type_url::LISTENER, &form(&both));
        known.read_response(type_url::CLUSTER, &form(&Response::default().cluster("c", vec![takes("c")])));
        let one = Response::default().listener("m", vec![takes("b")]);
        assert_eq!(names(known.read_response(type_url::LISTENER, &form(&one))), ["a"]);
        assert_eq!(known.fallback("a"), Seen::Unseen);
        assert_eq!((known.fallback("b"), known.fallback("c")), (Seen::Takes, Seen::Takes));
    }
}

#[test]
fn delta_adds_replaces_and_removes_by_name() {
    let mut known = Discoveries::default();
    let first = Response::default().listener("l", vec![takes("a")]).listener("m", vec![takes("b")]);
    assert_eq!(delta(&mut known, &first), ["a", "b"]);
    assert_eq!(delta(&mut known, &Response::default().listener("l", vec![takes("c")])), ["a", "c"]);
    assert_eq!(known.fallback("b"), Seen::Takes);
    assert_eq!(delta(&mut known, &Response::default().removed("m").removed("unknown")), ["b"]);
    assert_eq!((known.fallback("b"), known.fallback("c")), (Seen::Unseen, Seen::Takes));
    // No place any more is as good as removed.
    assert_eq!(delta(&mut known, &Response::default().listener("l", vec![])), ["c"]);
    assert_eq!(known.fallback("c"), Seen::Unseen);
    assert!(known.types.iter().all(|known| known.resources.is_empty() && known.cost == 0));
}

#[test]
fn a_name_changes_only_with_the_set_of_its_config_discoveries() {
    let mut known = Discoveries::default();
    let listener = |name: &str, filter| Response::default().listener(name, vec![filter]);
    assert_eq!(delta(&mut known, &listener("l", takes("a"))), ["a"]);
    assert_eq!(delta(&mut known, &listener("l", takes("a"))), NONE);
    assert_eq!(delta(&mut known, &listener("m", takes("a"))), NONE, "another listener says the same");
    assert_eq!(delta(&mut known, &listener("m", refuses("a"))), ["a"], "it says something else");
    assert_eq!(delta(&mut known, &listener("l", refuses("a"))), ["a"], "nobody says the first any more");
    assert_eq!(delta(&mut known, &Response::default().removed("l")), NONE);
    assert_eq!(delta(&mut known, &Response::default().removed("m")), ["a"]);
}

#[test]
fn a_listener_may_change_in_all_else() {
    let mut known = Discoveries::default();
    world(&mut known, &Response::default().listener("l", vec![takes("a")]));
    let other = Listener { stat_prefix: "other".to_owned(), ..listener("l", vec![takes("a")]) };
    assert_eq!(world(&mut known, &Response::default().with("l", type_url::LISTENER, &other)), NONE);
}

#[test]
fn what_cannot_be_read_leaves_what_was_known() {
    let first = || Response::default().listener("l", vec![takes("a")]);
    let mut in_world = Discoveries::default();
    world(&mut in_world, &first());
    assert_eq!(world(&mut in_world, &Response::default().broken("l").listener("m", vec![takes("b")])), ["b"]);
    assert_eq!((in_world.fallback("a"), in_world.fallback("b")), (Seen::Takes, Seen::Takes));

    let mut in_delta = Discoveries::default();
    delta(&mut in_delta, &first());
    assert_eq!(delta(&mut in_delta, &Response::default().broken("l").broken("never seen")), NONE);
    assert_eq!(delta(&mut in_delta, &Response::default().heartbeat("l")), NONE);
    let another = Response::default().with("l", type_url::CLUSTER, &cluster("l", vec![refuses("a")]));
    assert_eq!(delta(&mut in_delta, &another), NONE, "a cluster is no listener");
    assert_eq!(in_delta.fallback("a"), Seen::Takes);

    for known in [&mut in_world, &mut in_delta] {
        let mut cut = first().bare();
        cut.extend_from_slice(b"\x12\x05");
        assert_eq!(known.read_response(type_url::LISTENER, &cut).len(), 0, "no message at all");
        assert_eq!(known.fallback("a"), Seen::Takes);
    }
}

#[test]
fn a_heartbeat_in_the_state_of_the_world_leaves_what_was_known() {
    let mut known = Discoveries::default();
    let feed = |known: &mut Discoveries, response: &Response| {
        names(known.read_response(type_url::LISTENER, &response.bare_wrapped()))
    };
    feed(&mut known, &Response::default().listener("l", vec![takes("a")]));
    assert_eq!(feed(&mut known, &Response::default().heartbeat("l")), NONE);
    assert_eq!(known.fallback("a"), Seen::Takes);
}

#[test]
fn a_resource_that_comes_and_goes_in_one_response_is_there() {
    let mut known = Discoveries::default();
    delta(&mut known, &Response::default().listener("l", vec![takes("a")]));
    let both = Response::default().listener("l", vec![takes("b")]).removed("l");
    assert_eq!(delta(&mut known, &both), ["a", "b"]);
    assert_eq!(known.fallback("b"), Seen::Takes);
}

#[test]
fn the_last_of_two_resources_of_one_name_counts() {
    let mut known = Discoveries::default();
    let twice = Response::default().listener("l", vec![takes("a")]).listener("l", vec![]);
    assert_eq!(delta(&mut known, &twice), NONE);
    assert_eq!(known.fallback("a"), Seen::Unseen);
}

#[test]
fn other_types_are_not_read() {
    let mut known = Discoveries::default();
    let response = Response::default().listener("l", vec![takes("a")]);
    assert_eq!(known.read_response(type_url::ROUTES, &response.bare()).len(), 0);
    assert_eq!(known.read_delta_response(type_url::EXTENSION_CONFIG, b"\xff").len(), 0);
    assert_eq!(known.fallback("a"), Seen::Unseen);
}

/// As many places as are kept, less those of the resource itself.
const MANY: usize = LIMIT / (PLACE_COST + 5) - 2;

fn many(from: usize, count: usize) -> Vec<HttpFilter> {
    (from..from + count).map(|number| takes(&format!("{number:05}"))).collect()
}

#[test]
fn a_type_with_more_places_than_are_kept_is_forgotten_until_it_is_replaced() {
    let mut known = Discoveries::default();
    let clusters = Response::default().cluster("c", vec![takes("a"), refuses("b")]);
    known.read_response(type_url::CLUSTER, &clusters.bare());
    assert_eq!(world(&mut known, &Response::default().listener("l", many(0, MANY))).len(), MANY);
    assert_eq!((known.fallback("00007"), known.fallback("a")), (Seen::Takes, Seen::Takes));

    let gone = world(&mut known, &Response::default().listener("l", many(0, MANY + 2)));
    assert_eq!(gone.len(), MANY, "all that was known of it changed");
    // What was forgotten may have refused it.
    assert_eq!((known.fallback("00007"), known.fallback("a")), (Seen::Unseen, Seen::Unseen));
    assert_eq!(known.fallback("b"), Seen::Refuses);

    assert_eq!(world(&mut known, &Response::default().listener("l", vec![takes("d")])), ["d"]);
    assert_eq!((known.fallback("d"), known.fallback("a")), (Seen::Takes, Seen::Takes));
}

#[test]
fn delta_forgets_a_type_that_grows_over_the_limit_for_good() {
    let mut known = Discoveries::default();
    delta(&mut known, &Response::default().listener("l", many(0, MANY)));
    // A replaced resource does not count twice.
    assert_eq!(delta(&mut known, &Response::default().listener("l", many(1, MANY))).len(), 2);
    assert_eq!(known.fallback("00001"), Seen::Takes);
    delta(&mut known, &Response::default().listener("m", many(0, 2)));
    assert_eq!(known.fallback("00001"), Seen::Unseen);
    assert_eq!(delta(&mut known, &Response::default().listener("m", vec![takes("d")])), NONE);
    assert_eq!(known.fallback("d"), Seen::Unseen);
    assert_eq!(known.types[0].cost, 0);
}

#[test]
fn names_count_with_their_length() {
    for (ecds, resource) in [(LIMIT, 1), (1, LIMIT)] {
        let mut known = Discoveries::default();
        let response =
            Response::default().listener(&"r".repeat(resource), vec![takes(&"e".repeat(ecds)), refuses("a")]);
        assert_eq!(delta(&mut known, &response), NONE);
        assert_eq!(known.fallback("a"), Seen::Unseen);
    }
}

/// The model: for each type and resource, its filters.
type Model = BTreeMap<(bool, u8), Vec<(u8, bool)>>;

fn sets(model: &Model) -> HashMap<String, BTreeSet<bool>> {
    let mut sets = HashMap::<_, BTreeSet<bool>>::new();
    for (name, takes) in model.values().flatten() {
        sets.entry(name.to_string()).or_default().insert(*takes);
    }
    sets
}

/// Listeners or clusters; the whole set or a part; what each resource is to be, `None` removed.
type Feed = (bool, bool, BTreeMap<u8, Option<Vec<(u8, bool)>>>);

fn feeds() -> impl Strategy<Value = Vec<Feed>> {
    let filters = prop::option::of(vec((0..4u8, any::<bool>()), 0..3));
    vec((any::<bool>(), any::<bool>(), prop::collection::btree_map(0..4u8, filters, 0..4)), 1..12)
}

proptest! {
    #[test]
    fn what_is_known_is_what_the_responses_add_up_to(feeds in feeds()) {
        let (mut known, mut model) = (Discoveries::default(), Model::new());
        for (clusters, whole, resources) in feeds {
            let before = sets(&model);
            let mut response = Response::default();
            if whole {
                model.retain(|(of, _), _| *of != clusters);
            }
            for (number, filters) in resources {
                let name = number.to_string();
                model.remove(&(clusters, number));
                let Some(filters) = filters else {
                    response = response.removed(&name);
                    continue;
                };
                let http = filters.iter().map(|(name, takes_it)| {
                    let name = name.to_string();
                    if *takes_it { takes(&name) } else { refuses(&name) }
                }).collect();
                response = if clusters { response.cluster(&name, http) } else { response.listener(&name, http) };
                model.insert((clusters, number), filters);
            }
            let url = if clusters { type_url::CLUSTER } else { type_url::LISTENER };
            let changed = if whole {
                known.read_response(url, &response.bare())
            } else {
                known.read_delta_response(url, &response.delta())
            };
            let after = sets(&model);
            for name in (0..4u8).map(|number| number.to_string()) {
                prop_assert_eq!(changed.contains(name.as_str()), before.get(&name) != after.get(&name));
                let expected = match after.get(&name) {
                    None => Seen::Unseen,
                    Some(said) if said.contains(&false) => Seen::Refuses,
                    Some(_) => Seen::Takes,
                };
                prop_assert_eq!(known.fallback(&name), expected);
            }
        }
    }

    #[test]
    fn an_arbitrary_response_never_panics_and_changes_only_what_it_must(
        bytes in vec(any::<u8>(), 0..200),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut known = Discoveries::default();
        for (type_url, response) in [
            (type_url::LISTENER, Response::default().listener("l", vec![takes("a"), refuses("b")]).removed("l")),
            (type_url::CLUSTER, Response::default().cluster("c", vec![takes("a")]).heartbeat("c")),
        ] {
            for mut mutated in [response.delta(), response.bare(), response.bare_wrapped()] {
                for (at, byte) in &changes {
                    let at = at.index(mutated.len());
                    mutated[at] = *byte;
                }
                for message in [&mutated, &bytes] {
                    known.read_response(type_url, message);
                    known.read_delta_response(type_url, message);
                }
            }
        }
        for known in &known.types {
            prop_assert_eq!(known.cost, known.resources.values().map(|resource| resource.cost).sum::<usize>());
        }
        // Nothing is left when all is gone.
        known.read_response(type_url::LISTENER, b"");
        known.read_response(type_url::CLUSTER, b"");
        prop_assert!(known.names.is_empty());
    }
}
