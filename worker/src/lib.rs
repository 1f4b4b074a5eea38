//! The Millrace worker: takes jobs from its pool and turns videos into adaptive streams.
//!
//! In the order of a job: [`http`] accepts it into the [`store`]; the [`queue`] claims it and the [`lease`] keeps
//! it; [`run`] takes it through [`source`] (fetch, probe), [`ladder`] (plan), [`ffmpeg`] (encode), [`package`]
//! (verify, playlists) and [`objects`] (bytes) back to the store, which alone decides that it succeeded. [`cost`]
//! and [`load`] say how busy all that makes us, and [`fitness`] whether we can do anything at all; [`webhooks`] and the event
//! [`sink`] tell others what happened; [`clock`], [`config`], [`metrics`] and [`failure`] serve every room.
//!
//! Invariants: a job is acknowledged only after the store has it · only `ffmpeg` starts processes · only `objects`
//! names a cloud · nothing past `config` sees raw input.

pub mod clock;
pub mod config;
pub mod copier;
pub mod cost;
pub mod failure;
pub mod ffmpeg;
pub mod fitness;
pub mod http;
pub mod keys;
pub mod ladder;
pub mod lease;
pub mod load;
pub mod metrics;
pub mod objects;
pub mod package;
pub mod probe;
pub mod progressive;
pub mod queue;
pub mod ranges;
pub mod run;
pub mod sink;
pub mod source;
pub mod store;
pub mod sweep;
pub mod thumbnails;
pub mod tls;
pub mod webhooks;
mod workbench;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use config::Config;
use millrace_runtime::listen;
use millrace_runtime::shutdown::Shutdown;
use millrace_wire::WorkerId;
use store::Room;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Builds a worker from its settings and serves until told to stop. `ready` is called once, when it serves.
///
/// # Errors
/// What keeps it from starting, or that another process took its name.
pub async fn serve(
    config: Config,
    shutdown: Shutdown,
    ready: impl FnOnce(std::net::SocketAddr),
) -> anyhow::Result<()> {
    let listener =
        listen::bind(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("cannot read the bound address")?;
    let name = match config.name {
        Some(name) => name,
        None => default_name(&config.pool, address.port()),
    };
    let (scratch, _scratch_lock) = claim_scratch(&config.scratch, &name)?;
    let (store, upkeep) = store::open(&config.store, config.postgres, config.attempts_max).await?;
    let objects = objects::Objects::connect(&config.objects)?;
    check_bucket(&objects, &config.pool).await?;
    let ffmpeg = ffmpeg::Ffmpeg::start(ffmpeg::Settings {
        ffmpeg: config.ffmpeg,
        ffprobe: config.ffprobe,
        stall_timeout: config.stall_timeout,
        ..ffmpeg::Settings::default()
    })
    .await?;
    let fetcher = source::fetch::Fetcher::new(source::fetch::FetchSettings {
        allow_private: config.allow_private_sources,
        bytes_max: config.source_bytes_max,
        total_timeout: config.source_timeout,
        ..source::fetch::FetchSettings::default()
    })?;
    let stored = source::stored::Limits {
        bytes_max: config.source_bytes_max.max(config.upload_bytes_max),
        total_timeout: config.source_timeout,
    };
    let identity = store.register(&name, &config.pool).await?;
    store.equip(&identity, ffmpeg.encoder(), config.encoder_patience).await?;
    let room = Room { slots: config.slots, queue_max: config.queue_max };
    let metrics = Arc::new(metrics::Metrics::of(&identity.pool, scratch.clone())?);
    let leases = Arc::new(lease::Leases::new(config.lease));
    let cost = Arc::new(cost::CostModel::default());
    let load = Arc::new(load::Load::new(
        identity.clone(),
        room,
        Arc::clone(&store),
        Arc::clone(&leases),
        Arc::clone(&cost),
    ));
    let (nudge, copy_nudge) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let fitness = Arc::new(fitness::Fitness::new(
        objects.clone(),
        identity.pool.clone(),
        identity.worker.clone(),
        scratch.clone(),
    ));
    let clock = clock::Clock::default();
    if let Err(error) = clock.look(&*store, &metrics).await {
        warn!(%error, "the job store does not tell the time yet");
    }
    info!(
        worker = %identity.worker, pool = %identity.pool, incarnation = identity.incarnation, store = store.id(),
        slots = room.slots, threads = config.threads, ffmpeg = ffmpeg.version(), encoder = ffmpeg.encoder(), sandbox = ffmpeg.sandbox(),
        %address, "worker starts"
    );
    let asks = config.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
    if !address.ip().is_loopback() && !asks {
        warn!(%address, "serving beyond loopback without authentication: let only the gateway reach this port, or set --tls-client-ca");
    }
    let tls = config.tls.map(|files| tls::Tls::open(files, Arc::clone(&metrics)).map(Arc::new));
    let tls = tls.transpose().map_err(|bad| anyhow::anyhow!(tls::flagged(&bad)))?;

    let copier = copier::Copier {
        upkeep: Arc::clone(&upkeep),
        objects: objects.clone(),
        fetcher: fetcher.clone(),
        identity: identity.clone(),
        reach: store::copies::Reach { pools: objects.pools(), store_replicated: config.store_replicated },
        lease: config.lease,
        bytes_max: stored.bytes_max,
        scratch: scratch.clone(),
        nudge: Arc::clone(&copy_nudge),
        metrics: Arc::clone(&metrics),
    };
    let runner = run::Runner {
        store: Arc::clone(&store),
        upkeep: Arc::clone(&upkeep),
        objects: objects.clone(),
        leases: Arc::clone(&leases),
        ffmpeg,
        fetcher,
        stored,
        cost: Arc::clone(&cost),
        fitness: Arc::clone(&fitness),
        metrics: Arc::clone(&metrics),
        sources: source::kept::Kept::below(&scratch),
        scratch,
        threads: config.threads,
        pool: identity.pool.clone(),
        range: config.range,
    };
    let queue = queue::Queue {
        identity: identity.clone(),
        slots: config.slots,
        store: Arc::clone(&store),
        leases: Arc::clone(&leases),
        runner: Arc::new(runner),
        load: Arc::clone(&load),
        metrics: Arc::clone(&metrics),
        nudge: Arc::clone(&nudge),
    };
    let sweeper = sweep::Sweeper {
        upkeep: Arc::clone(&upkeep),
        objects: objects.clone(),
        pool: identity.pool.clone(),
        name: format!("{} {}", identity.worker, identity.incarnation),
        rules: config.keep,
        every: config.sweep_every,
        metrics: Arc::clone(&metrics),
    };
    let signs = config.webhooks.secret_file.is_some();
    let receivers = webhooks::receiver::Receivers::new(
        signs,
        config.webhooks.allow_private.clone(),
        config.webhooks.timeout,
    )?;
    let app = Arc::new(http::App {
        store: Arc::clone(&store),
        identity: identity.clone(),
        objects,
        fitness,
        load: Arc::clone(&load),
        leases: Arc::clone(&leases),
        cost,
        metrics: Arc::clone(&metrics),
        nudge,
        clock: clock.clone(),
        room,
        upkeep,
        presign: config.presign,
        outputs_kept: config.keep.outputs_kept,
        uploads_kept: config.keep.uploads_kept,
        upload_bytes_max: config.upload_bytes_max,
        upload_expiry: config.upload_expiry,
        media_expiry: config.media_expiry,
        media_origins: config.media_origins,
        second_pool: config.second_pool,
        shunned: Default::default(),
        copy_nudge,
        streams: Arc::new(Semaphore::new(http::STREAMS_MAX)),
        public_url: config.public_url,
        receivers: Arc::new(receivers),
    });
    let feeder = match config.events {
        None => None,
        Some(settings) => {
            let name = format!("nats {}", settings.prefix);
            let nats = sink::nats::Nats::connect(settings).await;
            Some(sink::Feeder {
                upkeep: Arc::clone(&app.upkeep),
                sink: Arc::new(nats.map_err(|wrong| anyhow::anyhow!("--events: {wrong}"))?),
                name,
                feeder: format!("{} {}", identity.worker, identity.incarnation),
                clock: clock.clone(),
                metrics: Arc::clone(&metrics),
            })
        }
    };
    let teller = webhooks::Teller::new(Arc::clone(&app), config.webhooks, Arc::clone(&app.receivers))
        .map_err(|wrong| anyhow::anyhow!("--webhook-secret-file: {wrong}"))?;

    // Reads go on while running work finishes; the server and the heartbeat end last. None of the three may end before
    // it was asked to: without any of them this is no worker, and whoever started the process shall start it again.
    let done = CancellationToken::new();
    let mut server = tokio::spawn({
        let (done, router) = (done.clone(), http::router(app));
        async move {
            match tls {
                None => axum::serve(listener, router).with_graceful_shutdown(done.cancelled_owned()).await,
                Some(tls) => tls::serve(listener, tls, router, done).await,
            }
        }
    });
    let mut heartbeat = tokio::spawn({
        let (leases, store, identity, metrics) =
            (Arc::clone(&leases), Arc::clone(&store), identity.clone(), Arc::clone(&metrics));
        let (every, done) = (config.heartbeat, done.clone());
        async move { leases.keep(&*store, &identity, every, &metrics, &done).await }
    });
    let mut work = tokio::spawn({
        let (graceful, immediate) = (shutdown.graceful.clone(), shutdown.immediate.clone());
        queue.run(graceful, immediate, config.grace)
    });
    let mut sweeping = tokio::spawn(sweeper.run(shutdown.graceful.clone()));
    let mut copying = tokio::spawn(copier.run(shutdown.graceful.clone()));
    let mut telling = tokio::spawn({
        let until = shutdown.graceful.clone();
        let follow = clock.follow(Arc::clone(&store), Arc::clone(&metrics), until.clone());
        async move {
            let (tells, feeds) = (until.clone(), until.clone());
            tokio::join!(
                follow,
                async {
                    match teller {
                        Some(teller) => Arc::new(teller).run(tells).await,
                        None => until.cancelled().await,
                    }
                },
                async {
                    match feeder {
                        Some(feeder) => feeder.run(feeds).await,
                        None => until.cancelled().await,
                    }
                }
            );
        }
    });
    ready(address);

    let taken = "another process registered under this worker's name: give each worker its own --name";
    tokio::select! {
        biased;
        () = shutdown.graceful.cancelled() => {}
        ended = &mut sweeping => {
            ended.context("the sweeper died")?;
            anyhow::bail!("the sweeper ended by itself");
        }
        ended = &mut copying => {
            ended.context("the copier died")?;
            anyhow::bail!("the copier ended by itself");
        }
        ended = &mut telling => {
            ended.context("telling others died")?;
            anyhow::bail!("telling others ended by itself");
        }
        ended = &mut work => {
            ended.context("the claim loop died")?;
            anyhow::bail!("the claim loop ended by itself");
        }
        ended = &mut heartbeat => {
            leases.stop_all(lease::Stop::LeaseLost);
            let superseded = ended.context("the heartbeat died")?;
            anyhow::ensure!(!superseded, taken);
            anyhow::bail!("the heartbeat ended by itself");
        }
        ended = &mut server => {
            ended.context("the server died")?.context("the server failed")?;
            anyhow::bail!("the server ended by itself");
        }
    }
    load.drain();
    info!(running = leases.all().len(), grace_s = config.grace.as_secs_f64(), "draining");
    // The name can be taken while it drains, too; then nobody renews the leases of what still runs here.
    let superseded = tokio::select! {
        ended = &mut heartbeat => {
            leases.stop_all(lease::Stop::LeaseLost);
            work.await.context("the claim loop died")?;
            ended.context("the heartbeat died")?
        }
        ended = &mut work => {
            ended.context("the claim loop died")?;
            done.cancel();
            heartbeat.await.context("the heartbeat died")?
        }
    };
    done.cancel();
    telling.await.context("telling others died")?;
    copying.await.context("the copier died")?;
    if let Err(error) = store.deregister(&identity).await {
        warn!(%error, "cannot say goodbye to the store; it will notice by the silence");
    }
    // Connections that never end must not keep a finished worker.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), server).await;
    anyhow::ensure!(!superseded, taken);
    info!("worker ends");
    Ok(())
}

/// Longest wait at the start for the object store to say that its bucket is there.
const BUCKET_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Refuses a bucket that is not there. A store that is away, or does not know us yet, may be so for a moment only; one that
/// hangs must not keep a worker from its first heartbeat.
async fn check_bucket(objects: &objects::Objects, pool: &millrace_wire::PoolId) -> anyhow::Result<()> {
    let Ok(checked) = tokio::time::timeout(BUCKET_PATIENCE, objects.check(pool)).await else {
        warn!("the object store does not answer; jobs will be tried all the same");
        return Ok(());
    };
    match checked {
        Err(error @ objects::Error::NoBucket(_)) => Err(error).context("--objects leads nowhere"),
        Err(error) => {
            warn!(%error, "the object store does not answer as it should; jobs will be tried all the same");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The host's name where it is a legal one (a pod's always is), else POOL-PORT.
fn default_name(pool: &millrace_wire::PoolId, port: u16) -> WorkerId {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let legal = host.parse::<WorkerId>().ok().filter(|name| name.as_str() != "localhost");
    legal.unwrap_or_else(|| format!("{pool}-{port}").parse().expect("a pool's name and a port are legal"))
}

/// A private directory below the scratch directory, empty, and a lock on it for as long as the process lives.
fn claim_scratch(root: &std::path::Path, name: &WorkerId) -> anyhow::Result<(PathBuf, File)> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot create --scratch {}", root.display()))?;
    let root = root.canonicalize().with_context(|| format!("cannot resolve --scratch {}", root.display()))?;
    let lock =
        File::options().create(true).truncate(false).write(true).open(root.join(format!("{name}.lock")))?;
    if lock.try_lock().is_err() {
        anyhow::bail!(
            "--scratch {} is in use by another worker named {name}: give each its own --name",
            root.display()
        );
    }
    let own = root.join(name.as_str());
    match std::fs::remove_dir_all(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", own.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
    Ok((own, lock))
}
