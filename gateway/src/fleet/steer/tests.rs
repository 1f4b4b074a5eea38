use millrace_runtime::config::File;

use super::*;
use crate::config::Config;
use crate::fleet::sample;
use crate::fleet::snapshot::Health;
use crate::route::{Exclude, Job};

fn config(text: &str) -> Config {
    let listen = "listen = { http = \"127.0.0.1:0\", admin = \"127.0.0.1:0\" }\n";
    Config::from_file(&File::from_text("routing.toml", format!("{listen}{text}"))).unwrap()
}

const TWO: &str = "[[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n\
                   [[pools]]\nname = \"gcp\"\nweight = 3\nendpoints = [\"127.0.0.1:3\"]\n";

fn order(target: &str, action: Action) -> Order {
    Order { target: target.to_owned(), action, ttl: None, by: Actor::own("ann"), if_match: None }
}

fn for_a_while(target: &str, action: Action, seconds: u64) -> Order {
    Order { ttl: Some(Duration::from_secs(seconds)), ..order(target, action) }
}

fn drained(fleet: &Fleet, port: u16) -> bool {
    fleet.of(SocketAddr::from(([127, 0, 0, 1], port)), |worker| worker.drain).unwrap()
}

fn pool(fleet: &Fleet, name: &str) -> (f64, bool) {
    let snapshot = fleet.snapshot();
    let pool = snapshot.pool(&name.parse().unwrap()).unwrap();
    (pool.weight, pool.drain)
}

#[test]
fn an_override_survives_reloads_by_address_and_ends_on_time() {
    let (fleet, audit) = (Fleet::new(config(TWO)), Audit::default());
    fleet.steer(&for_a_while("127.0.0.1:1", Action::Drain, 60), &audit).unwrap();
    fleet.steer(&for_a_while("gcp", Action::Weight(0.5), 30), &audit).unwrap();
    assert!(drained(&fleet, 1) && !drained(&fleet, 2));
    assert_eq!(pool(&fleet, "gcp"), (0.5, false));

    fleet.apply(config("[[pools]]\nname = \"gcp\"\nweight = 9\nendpoints = [\"127.0.0.1:3\"]\n"));
    assert_eq!(pool(&fleet, "gcp"), (0.5, false), "the file does not undo it");
    let (_, listed) = fleet.overrides();
    assert_eq!(listed.iter().filter(|set| set.present).count(), 1, "one waits for its worker");
    fleet.apply(config(TWO));
    assert!(drained(&fleet, 1), "the worker is back, and so is its override");

    let now = fleet.now();
    fleet.expire(now + Duration::from_secs(29), &audit);
    assert_eq!(pool(&fleet, "gcp").0, 0.5);
    fleet.expire(now + Duration::from_secs(31), &audit);
    assert_eq!(pool(&fleet, "gcp").0, 3.0, "what the file says now, not what it said then");
    assert!(drained(&fleet, 1));
    fleet.expire(now + Duration::from_secs(61), &audit);
    assert!(!drained(&fleet, 1));
    assert!(fleet.overrides().1.is_empty());
    let said: Vec<String> = audit.entries().into_iter().map(|entry| entry.action).collect();
    assert_eq!(said, ["drain", "weight", "expire", "expire"]);
}

#[test]
fn undrain_lifts_an_override_and_what_the_file_says() {
    let written = TWO.replace("name = \"gcp\"", "name = \"gcp\"\ndrain = true");
    let (fleet, audit) = (Fleet::new(config(&written)), Audit::default());
    fleet.steer(&order("aws", Action::Drain), &audit).unwrap();
    assert!(pool(&fleet, "aws").1);
    fleet.steer(&order("aws", Action::Undrain), &audit).unwrap();
    assert!(!pool(&fleet, "aws").1 && fleet.overrides().1.is_empty());
    fleet.steer(&for_a_while("gcp", Action::Undrain, 60), &audit).unwrap();
    assert!(!pool(&fleet, "gcp").1);
    fleet.steer(&order("gcp", Action::Remove), &audit).unwrap();
    assert!(pool(&fleet, "gcp").1, "what the file says is in force again");
    let pointless = fleet.steer(&for_a_while("aws", Action::Undrain, 60), &audit);
    assert!(matches!(pointless, Err(Refused::Bad { field: "ttl", .. })));
}

#[test]
fn who_knows_an_old_state_changes_nothing() {
    let (fleet, audit) = (Fleet::new(config(TWO)), Audit::default());
    let (seen, _) = fleet.overrides();
    let with = |etag: &str| Order { if_match: Some(etag.to_owned()), ..order("aws", Action::Drain) };
    fleet.steer(&order("gcp", Action::Weight(1.0)), &audit).unwrap();
    assert!(matches!(fleet.steer(&with(&seen), &audit), Err(Refused::Stale { .. })));
    assert!(matches!(fleet.steer(&with("\"0-0\""), &audit), Err(Refused::Stale { .. })));
    assert!(!pool(&fleet, "aws").1);
    assert!(audit.entries()[1].refused.is_some(), "a refused change is on record, too");
    let (now, _) = fleet.overrides();
    fleet.steer(&with(&format!("{seen}, {now}")), &audit).unwrap();
    assert!(pool(&fleet, "aws").1);
    // One that has expired is a change as well.
    fleet.steer(&for_a_while("gcp", Action::Drain, 60), &audit).unwrap();
    let (before, _) = fleet.overrides();
    fleet.expire(fleet.now() + Duration::from_secs(61), &audit);
    assert_ne!(fleet.overrides().0, before);
}

#[test]
fn values_that_cannot_be_are_refused_and_say_why() {
    let (fleet, audit) = (Fleet::new(config(TWO)), Audit::default());
    let refused = |order: Order| fleet.steer(&order, &audit).unwrap_err().to_string();
    for weight in [-1.0, f64::NAN, f64::INFINITY, 2e6] {
        assert!(refused(order("aws", Action::Weight(weight))).starts_with("weight: "));
    }
    assert!(refused(order("127.0.0.1:1", Action::Weight(1.0))).contains("only pools have a weight"));
    assert!(refused(order("azure", Action::Drain)).contains("the pools are aws, gcp"));
    assert!(refused(order("127.0.0.1:9", Action::Drain)).contains("127.0.0.1:9"));
    assert!(refused(for_a_while("aws", Action::Drain, 0)).starts_with("ttl: "));
    assert!(fleet.overrides().1.is_empty());
    let warned = fleet.steer(&order("aws", Action::Drain), &audit).unwrap().warning;
    assert_eq!(warned, None);
    let warned = fleet.steer(&order("gcp", Action::Weight(0.0)), &audit).unwrap().warning;
    assert_eq!(warned.as_deref(), Some("no pool takes jobs now: every submit is refused"));
}

#[test]
fn a_drain_counts_for_the_next_job() {
    let (fleet, audit) = (Fleet::new(config(TWO)), Audit::default());
    for (port, pool, name) in [(1, "aws", "w1"), (2, "aws", "w2"), (3, "gcp", "aws")] {
        let report = sample::report(pool);
        let report = millrace_wire::LoadReport { worker: name.parse().unwrap(), ..report };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        fleet.probed(address, report, Duration::from_millis(1));
        assert_eq!(fleet.of(address, |worker| worker.health.clone()), Some(Health::Up));
    }
    // A worker may be called like a pool.
    let ambiguous = fleet.steer(&order("aws", Action::Drain), &audit);
    assert!(matches!(ambiguous, Err(Refused::Ambiguous(message)) if message.contains("127.0.0.1:3")));
    fleet.steer(&order("w1", Action::Drain), &audit).unwrap();
    fleet.steer(&order("127.0.0.1:3", Action::Drain), &audit).unwrap();
    for _ in 0..200 {
        let chosen = fleet.view().submit(&Job::default(), &Exclude::default(), &mut rand::rng());
        assert_eq!(chosen.unwrap().address.port(), 2);
    }
}

/// A routing file: for each of three pools, whether it is there, its weight, whether it drains, and for each of its
/// three addresses whether it is listed and drained.
type Edit = [(bool, u8, bool, [(bool, bool); 3]); 3];

const NAMES: [&str; 3] = ["aws", "gcp", "azure"];

fn port(pool: usize, worker: usize) -> u16 {
    (1 + pool * 3 + worker) as u16
}

fn written(edit: &Edit) -> Option<Config> {
    let mut text = String::new();
    for (pool, (there, weight, drain, workers)) in edit.iter().enumerate() {
        let listed = workers.iter().enumerate().filter(|(_, (listed, _))| *listed);
        let endpoints: Vec<String> = listed
            .map(|(worker, (_, drain))| {
                format!("{{ address = \"127.0.0.1:{}\", drain = {drain} }}", port(pool, worker))
            })
            .collect();
        if *there && !endpoints.is_empty() {
            text += &format!(
                "[[pools]]\nname = {:?}\nweight = {}\ndrain = {drain}\nendpoints = [{}]\n",
                NAMES[pool],
                u16::from(*weight) + 1,
                endpoints.join(", ")
            );
        }
    }
    (!text.is_empty()).then(|| config(&text))
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 50, ..Default::default() })]

    /// 50 · 20 edits, each put in force with an override set or removed in between.
    #[test]
    fn a_thousand_random_edits_keep_health_latency_and_overrides_by_address(
        edits in proptest::collection::vec((proptest::prelude::any::<Edit>(), 0..3_usize, 0..3_usize, 0..4_u8), 20)
    ) {
        let everything: Edit = [(true, 0, false, [(true, false); 3]); 3];
        let (fleet, audit) = (Fleet::new(written(&everything).unwrap()), Audit::default());
        let at = |pool, worker| SocketAddr::from(([127, 0, 0, 1], port(pool, worker)));
        // What is known of a worker for as long as it stays listed, and which overrides there are, kept beside.
        let mut latency: HashMap<SocketAddr, f64> = HashMap::new();
        let mut drained: HashMap<SocketAddr, bool> = HashMap::new();
        let mut weights: HashMap<usize, f64> = HashMap::new();
        let mut listed = everything;
        for (edit, pool, worker, action) in edits {
            let address = at(pool, worker);
            if listed[pool].0 && listed[pool].3[worker].0 {
                let up = sample::report(NAMES[pool]);
                fleet.probed(address, up, Duration::from_millis(1));
                fleet.judge(address, fleet.now(), crate::fleet::evidence::Verdict::Answered, Some(Duration::from_millis(7)));
                latency.insert(address, fleet.of(address, |worker| worker.read_latency_s).unwrap());
                if action == 0 {
                    fleet.steer(&order(&address.to_string(), Action::Drain), &audit).unwrap();
                    drained.insert(address, true);
                }
                if action == 1 {
                    fleet.steer(&order(NAMES[pool], Action::Weight(0.5)), &audit).unwrap();
                    weights.insert(pool, 0.5);
                }
            }
            if action == 2 && drained.remove(&address).is_some() {
                fleet.steer(&order(&address.to_string(), Action::Remove), &audit).unwrap();
            }
            let Some(file) = written(&edit) else { continue };
            fleet.apply(file);
            listed = edit;
            for (pool, (there, weight, drain, workers)) in listed.iter().enumerate() {
                let whole = *there && workers.iter().any(|(listed, _)| *listed);
                if whole {
                    let wanted = weights.get(&pool).copied().unwrap_or(f64::from(*weight) + 1.0);
                    proptest::prop_assert_eq!(self::pool(&fleet, NAMES[pool]), (wanted, *drain));
                }
                for (worker, (is_listed, drain)) in workers.iter().enumerate() {
                    let address = at(pool, worker);
                    let known = fleet.of(address, Clone::clone);
                    proptest::prop_assert_eq!(known.is_some(), whole && *is_listed);
                    let Some(known) = known else {
                        latency.remove(&address);
                        continue;
                    };
                    let wanted = drained.get(&address).copied().unwrap_or(*drain);
                    proptest::prop_assert_eq!(known.drain, wanted);
                    let healthy = latency.contains_key(&address);
                    proptest::prop_assert_eq!(known.health == Health::Up, healthy);
                    let kept = latency.get(&address).copied().unwrap_or(0.0);
                    proptest::prop_assert_eq!(known.read_latency_s, kept);
                }
            }
        }
        let set = fleet.overrides().1.len();
        proptest::prop_assert_eq!(set, drained.len() + weights.len());
    }
}
