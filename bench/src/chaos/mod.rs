//! Whether accepted means done, when everything is killed: `make chaos`.
//!
//! Clients submit and follow jobs without a break, as clients do that were told to come back; meanwhile one after the other, and
//! sometimes two at once, of everything there is are killed, frozen and started again, drawn from a seed. At the end each
//! job that was accepted is looked at: in the job store's rows, in the object store's files, and through a decoder.

pub mod arena;
pub mod audit;
pub mod client;
mod jobs;
mod kills;
pub mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use futures::StreamExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

pub use arena::{Arena, Victim, Way};
use audit::{Breach, Row};
use client::Patient;
use jobs::{Ledger, Source, Wish};
use kills::Killer;

/// How many jobs are under way at once.
const CLIENTS: usize = 6;
/// How many finished jobs are decoded at once.
const AUDITS: usize = 2;
/// How long an answer may take once nobody is hit any more.
const CALM: Duration = Duration::from_secs(60);

/// How to run it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many kills.
    pub kills: u32,
    /// What they are drawn from: the same seed hits the same victims in the same ways, but for those who are down already,
    /// which depends on how fast the machine is.
    pub seed: u64,
}

/// Runs it, and says at the end what became of everything.
///
/// # Errors
/// An accepted job was lost, published twice, corrupt, or has not ended; or the system did not come up.
pub async fn run(options: &Options) -> Result<()> {
    let Options { kills, seed } = *options;
    println!("chaos: {kills} kills, seed {seed} (again with --kills {kills} --seed {seed})");
    let began = Instant::now();
    let source = Source::start().await?;
    let mut arena = Arena::start(&[("aws", 2), ("gcp", 2)], 1, 2).await?;
    println!(
        "chaos: two pools of two workers, two gateways, PostgreSQL and S3 after {:.0?}",
        began.elapsed()
    );
    let (clients, ledger, over) = (Patient::default(), Ledger::default(), Arc::new(AtomicBool::new(false)));
    clients.gateways_are(&arena.system.gateway_urls())?;
    let submitting: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (clients, ledger, over) = (clients.clone(), ledger.clone(), Arc::clone(&over));
            let rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1));
            tokio::spawn(jobs::submit(number, rng, source.url.clone(), clients, ledger, over))
        })
        .collect();

    let mut killer = Killer::new(StdRng::seed_from_u64(seed), kills);
    killer.run(&mut arena, &clients, &ledger).await.context("kill and bring back")?;
    over.store(true, Ordering::Relaxed);
    println!("chaos: everybody is back after {:.0?}; the jobs under way are awaited", began.elapsed());
    let mut breaches = Vec::new();
    for client in submitting {
        breaches.extend(client.await.context("a client's task died")?);
    }
    println!("chaos: each of {} jobs is looked at", ledger.counts().accepted);
    let (found, attempts) = audit(&arena, &clients, &ledger).await?;
    breaches.extend(found);
    println!("{}", table(&killer, &ledger, &attempts, &breaches));
    let ended = arena.end().await;
    for (breach, id, why) in &breaches {
        println!("  {id}: {breach}: {why}");
    }
    ended?;
    if !breaches.is_empty() {
        bail!("{} jobs are not as they should be; seed {seed}", breaches.len());
    }
    println!("chaos: whole after {:.0?}, seed {seed}", began.elapsed());
    Ok(())
}

/// Looks at every job that was accepted. Answers what is broken, and how many jobs took how many attempts.
async fn audit(
    arena: &Arena,
    clients: &Patient,
    ledger: &Ledger,
) -> Result<(Vec<(Breach, String, String)>, BTreeMap<u32, u32>)> {
    let (mut breaches, mut attempts) = (Vec::new(), BTreeMap::new());
    let all = ledger.all();
    let looking = all.iter().map(|(id, wish)| async move {
        let row = Row::read(arena, id)?;
        let breach = match (wish, &row) {
            (Wish::Done(clip), _) => audit::of(arena, clients, id, clip.frames(), CALM).await?,
            (_, None) => Some((Breach::Lost, "no row".to_owned())),
            (Wish::Failed, Some(row)) if row.state != "failed" => Some((Breach::Unended, row.state.clone())),
            (Wish::Cancelled, Some(row)) if !["cancelled", "succeeded"].contains(&row.state.as_str()) => {
                Some((Breach::Unended, row.state.clone()))
            }
            _ => None,
        };
        anyhow::Ok((id.clone(), row.map_or(0, |row| row.attempts), breach))
    });
    let mut looking = futures::stream::iter(looking).buffer_unordered(AUDITS);
    while let Some(looked) = looking.next().await {
        let (id, took, breach) = looked?;
        *attempts.entry(took).or_default() += 1;
        breaches.extend(breach.map(|(breach, why)| (breach, id, why)));
    }
    // What the store has beside these was never accepted as far as its client knows; there is none, for each asks on.
    let rows: usize = arena.sql("SELECT count(*) FROM job")?.parse().context("count the jobs")?;
    if rows != all.len() {
        breaches.push((Breach::Twice, "all".to_owned(), format!("{rows} rows for {} jobs", all.len())));
    }
    Ok((breaches, attempts))
}

fn table(
    killer: &Killer,
    ledger: &Ledger,
    attempts: &BTreeMap<u32, u32>,
    breaches: &[(Breach, String, String)],
) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(["what", "how often"]);
    for ((victim, way), times) in killer.counts() {
        table.add_row([format!("{way} of {victim}"), times.to_string()]);
    }
    let counts = ledger.counts();
    for (what, times) in [
        ("jobs accepted", counts.accepted),
        ("… of which succeeded", counts.succeeded),
        ("… failed, as their input is no video", counts.failed),
        ("… cancelled", counts.cancelled),
        ("jobs that died of it and were retried by their client", counts.retried),
    ] {
        table.add_row([what.to_owned(), times.to_string()]);
    }
    for (took, jobs) in attempts {
        table.add_row([format!("jobs with {took} attempts"), jobs.to_string()]);
    }
    for breach in [Breach::Lost, Breach::Unended, Breach::Twice, Breach::Corrupt] {
        let times = breaches.iter().filter(|(known, ..)| *known == breach).count();
        table.add_row([format!("accepted jobs {breach}"), times.to_string()]);
    }
    table.to_string()
}
