use millrace_runtime::config::File;

use super::*;
use crate::config::Config;
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
        let report = super::super::tests::report(pool, 1);
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
