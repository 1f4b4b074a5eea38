//! The kill matrix: whoever dies or freezes, and whatever a job is at just then, it ends well, once, and shows nothing before.
//!
//! Each row hits one victim in one way while five jobs stand at five moments, each held there: a submit inside the
//! store's insert, a source that sends nothing, an ffmpeg that is stopped, outputs that the object store does not take yet,
//! and a commit inside the store. So each row is five cells, and no cell hangs on luck.

use std::time::Duration;

use futures::StreamExt as _;
use millrace_bench::chaos::client::Patient;
use millrace_bench::chaos::{Arena, Victim, Way, audit};
use millrace_wire::job::{Job, State};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kill_moments::{FRAMES, Held, Moment, Moments};
use crate::stage::{PATIENCE, turn};

/// How long an answer may take while nobody has to wait for another lease.
const ANSWER: Duration = Duration::from_secs(30);

/// Waits for a condition of the job store.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never saw: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn workers(names: &[&str]) -> Victim {
    Victim::Workers(names.iter().map(|name| (*name).to_owned()).collect())
}

/// Hits the victim in both ways, one after the other, and looks at what became of every job.
async fn row(victim: Victim) {
    let _turn = turn().await;
    let mut arena = Arena::start(&[("aws", 2), ("gcp", 1)], 5, 2).await.unwrap();
    let clients = Patient::default();
    let moments = Moments::start(&arena).await;
    let mut ids = Vec::new();
    for way in [Way::Kill, Way::Freeze] {
        clients.gateways_are(&arena.system.gateway_urls()).unwrap();
        ids.extend(hit(&mut arena, &clients, &moments, &victim, way).await);
    }
    let looks = ids.iter().map(|id| audit::of(&arena, &clients, id, FRAMES, ANSWER));
    let looks: Vec<_> = futures::stream::iter(looks).buffered(2).collect().await;
    let looks = ids.iter().zip(looks).filter_map(|(id, look)| Some((id, look.unwrap()?)));
    let broken: Vec<_> = looks.map(|(id, (breach, why))| format!("{id}: {breach}: {why}")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    drop(moments);
    arena.end().await.unwrap();
}

/// Holds a job at every moment, hits, lets everything go on, and waits for the ends. Answers the jobs' names.
async fn hit(
    arena: &mut Arena,
    clients: &Patient,
    moments: &Moments,
    victim: &Victim,
    way: Way,
) -> Vec<String> {
    // Only the victims may have what is held: everybody else sleeps meanwhile.
    let mut asleep = Vec::new();
    let (mut home, mut runners) = (None, arena.system.workers().map(str::to_owned).collect::<Vec<_>>());
    if let Victim::Workers(names) = victim {
        asleep.extend(runners.iter().filter(|name| !names.contains(name)).cloned());
        asleep.iter().for_each(|name| arena.system.freeze_worker(name).unwrap());
        home = Some(arena.system.worker_client(&names[0]).unwrap());
        runners.clone_from(names);
    }
    let mut held = Held::new(moments, home, runners, format!("{way:?}").to_lowercase());
    for moment in [Moment::Source, Moment::Encode, Moment::Publish] {
        held.job_at(arena, clients, moment).await;
    }
    let accepted = held.submit_at_accept(arena, clients).await;
    held.job_at(arena, clients, Moment::Commit).await;

    asleep.iter().for_each(|name| arena.system.thaw_worker(name).unwrap());
    arena.hit(victim, way).await.unwrap();
    held.let_go(arena, victim, way).await;
    clients.gateways_are(&arena.system.gateway_urls()).unwrap();
    let ids = held.ids();
    seen_dead(arena, &held, victim, way, &accepted).await;
    arena.heal(victim, way).await.unwrap();
    match victim {
        Victim::Postgres => moments.open_all(arena),
        Victim::Objects => arena.objects.set(&[]).await.unwrap(),
        _ => {}
    }
    clients.gateways_are(&arena.system.gateway_urls()).unwrap();

    assert!(!accepted.await.unwrap().job_id.as_str().is_empty());
    let ends = ids.iter().map(|id| clients.wait_final(id, PATIENCE));
    for (id, job) in ids.iter().zip(futures::future::join_all(ends).await) {
        let job = job.unwrap_or_else(|error| panic!("{id}: {error:#}"));
        assert_eq!(job.state, State::Succeeded, "{job:?}");
    }
    ids
}

/// Waits until the others have noticed; a death is healed at once where nobody has to.
async fn seen_dead(arena: &Arena, held: &Held<'_>, victim: &Victim, way: Way, accepted: &JoinHandle<Job>) {
    match (victim, way) {
        (Victim::Workers(_), _) => {
            until("that others took over", || held.taken_over(arena)).await;
        }
        (Victim::Gateway(_), _) => {
            until("that another gateway took the submit", || accepted.is_finished()).await
        }
        (Victim::Postgres, Way::Freeze) => {
            until("the end of an attempt that nobody renews", || held.encoder_is_gone()).await;
        }
        (Victim::Objects, Way::Freeze) => {
            let before = held.renewed_until(arena);
            until("that leases go on without it", || held.renewed_until(arena) > before + 2_000).await;
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_or_freezes_at_any_moment_costs_no_job() {
    row(workers(&["aws-1"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_dies_or_freezes_at_any_moment_costs_no_job() {
    row(workers(&["aws-1", "aws-2"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_or_freezes_at_any_moment_costs_no_job() {
    row(Victim::Gateway(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_store_that_crashes_or_freezes_at_any_moment_costs_no_job() {
    row(Victim::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_that_dies_or_freezes_at_any_moment_costs_no_job() {
    row(Victim::Objects).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_and_comes_back_although_the_object_store_hangs() {
    let _turn = turn().await;
    let mut arena = Arena::start(&[("aws", 1), ("gcp", 1)], 1, 1).await.unwrap();
    let (clients, moments) = (Patient::default(), Moments::start(&arena).await);
    clients.gateways_are(&arena.system.gateway_urls()).unwrap();
    arena.system.freeze_worker("gcp-1").unwrap();
    let home = Some(arena.system.worker_client("aws-1").unwrap());
    let mut held = Held::new(&moments, home, vec!["aws-1".to_owned()], "stop".to_owned());
    held.job_at(&arena, &clients, Moment::Publish).await;
    arena.system.thaw_worker("gcp-1").unwrap();
    arena.hit(&Victim::Objects, Way::Freeze).await.unwrap();
    let took = arena.system.stop_worker("aws-1").await.unwrap();
    assert!(took < Duration::from_secs(15), "it took {took:?} to stop");
    let asked = Instant::now();
    arena.system.restart_worker("aws-1").await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?} to start", asked.elapsed());
    until("that the other one has the job", || held.taken_over(&arena)).await;
    arena.heal(&Victim::Objects, Way::Freeze).await.unwrap();
    arena.objects.set(&[]).await.unwrap();
    let id = &held.ids()[0];
    assert_eq!(clients.wait_final(id, PATIENCE).await.unwrap().state, State::Succeeded);
    assert_eq!(audit::of(&arena, &clients, id, FRAMES, ANSWER).await.unwrap(), None);
    drop(moments);
    arena.end().await.unwrap();
}
