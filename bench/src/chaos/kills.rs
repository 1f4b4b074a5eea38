//! Who is hit when, and for how long, drawn from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::arena::{Arena, Victim, Way};
use super::client::Patient;
use super::jobs::Ledger;

/// How many are down at once.
const DOWN_MAX: usize = 2;
/// Between two kills, in seconds.
const PAUSE_S: std::ops::Range<f64> = 0.3..2.5;
/// How long somebody is down, in seconds: some less than a lease, some more.
const DOWN_S: std::ops::Range<f64> = 0.1..4.0;

/// Hits, and brings back.
#[derive(Debug)]
pub(super) struct Killer {
    rng: StdRng,
    kills: u32,
    counts: BTreeMap<(String, Way), u32>,
    down: Vec<(Victim, Way, Instant)>,
}

impl Killer {
    pub(super) fn new(rng: StdRng, kills: u32) -> Self {
        Self { rng, kills, counts: BTreeMap::new(), down: Vec::new() }
    }

    /// How often each kind of victim was hit in each way.
    pub(super) fn counts(&self) -> impl Iterator<Item = ((&str, Way), u32)> {
        self.counts.iter().map(|((victim, way), times)| ((victim.as_str(), *way), *times))
    }

    /// Hits until all kills are done, and returns when everybody is back.
    pub(super) async fn run(&mut self, arena: &mut Arena, clients: &Patient, ledger: &Ledger) -> Result<()> {
        let began = Instant::now();
        for kill in 1..=self.kills {
            let pause = self.seconds(PAUSE_S);
            self.wait(arena, clients, Instant::now() + pause, DOWN_MAX - 1).await?;
            let (victim, way, down) = self.draw();
            arena.hit(&victim, way).await?;
            clients.gateways_are(&arena.system.gateway_urls())?;
            self.down.push((victim.clone(), way, Instant::now() + down));
            *self.counts.entry((kind(&victim).to_owned(), way)).or_default() += 1;
            let counts = ledger.counts();
            let ended = counts.succeeded + counts.failed + counts.cancelled;
            println!(
                "{kill:>4}/{} {:>5.1} s  {way} of {victim}, {:.1} s   ({} jobs accepted, {ended} ended)",
                self.kills,
                began.elapsed().as_secs_f64(),
                down.as_secs_f64(),
                counts.accepted,
            );
        }
        self.wait(arena, clients, Instant::now(), 0).await
    }

    /// Brings back whose time has come until `until`, and longer while more than `most` are down.
    async fn wait(
        &mut self,
        arena: &mut Arena,
        clients: &Patient,
        until: Instant,
        most: usize,
    ) -> Result<()> {
        loop {
            let store_is_down = self.down.iter().any(|(victim, ..)| *victim == Victim::Postgres);
            let now = Instant::now();
            // A worker does not start without its store.
            let may = |(victim, way, at): &(Victim, Way, Instant)| {
                let starts = matches!(victim, Victim::Workers(_)) && *way != Way::Freeze;
                *at <= now && !(starts && store_is_down)
            };
            if let Some(place) = self.down.iter().position(may) {
                let (victim, way, _) = self.down.remove(place);
                arena.heal(&victim, way).await?;
                clients.gateways_are(&arena.system.gateway_urls())?;
                continue;
            }
            for (name, log) in arena.system.bury_dead_workers() {
                println!("      {name} has ended by itself and is started again: {log}");
                arena.system.restart_worker(&name).await?;
            }
            if now >= until && self.down.len() <= most {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn seconds(&mut self, range: std::ops::Range<f64>) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(range))
    }

    /// Somebody who is not down, how to hit him, and for how long.
    fn draw(&mut self) -> (Victim, Way, Duration) {
        loop {
            let victim = match self.rng.random_range(0..10) {
                0..4 => {
                    let pool = ["aws", "gcp"][self.rng.random_range(0..2)];
                    Victim::Workers(vec![format!("{pool}-{}", self.rng.random_range(1..3))])
                }
                4 => {
                    let pool = ["aws", "gcp"][self.rng.random_range(0..2)];
                    Victim::Workers(vec![format!("{pool}-1"), format!("{pool}-2")])
                }
                5 | 6 => Victim::Gateway(self.rng.random_range(0..2)),
                7 => Victim::Postgres,
                _ => Victim::Objects,
            };
            let way =
                [Way::Kill, Way::Kill, Way::Freeze, Way::Freeze, Way::Restart][self.rng.random_range(0..5)];
            let down = self.seconds(DOWN_S);
            if !self.down.iter().any(|(known, ..)| overlap(known, &victim)) {
                return (victim, way, down);
            }
        }
    }
}

/// Whether both are, or have in them, the same process.
fn overlap(one: &Victim, other: &Victim) -> bool {
    match (one, other) {
        (Victim::Workers(one), Victim::Workers(other)) => one.iter().any(|name| other.contains(name)),
        _ => one == other,
    }
}

fn kind(victim: &Victim) -> &'static str {
    match victim {
        Victim::Workers(names) if names.len() > 1 => "a whole pool",
        Victim::Workers(_) => "a worker",
        Victim::Gateway(_) => "a gateway",
        Victim::Postgres => "PostgreSQL",
        Victim::Objects => "the object store",
    }
}
