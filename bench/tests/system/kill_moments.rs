//! Jobs that are held at a moment of their lives until they are let go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use millrace_bench::chaos::client::Patient;
use millrace_bench::chaos::{Arena, Victim, Way};
use millrace_bench::clip::Picture;
use millrace_bench::{Client, procfs};
use millrace_object_server::{Fault, What};
use millrace_wire::job::Job;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::stage::{PATIENCE, clip};

/// What every job is made of: half a second of work, so that its encode can be caught.
const CLIP: Picture = Picture { width: 640, height: 360, rate: 25, seconds: 3.0 };
/// Frames of it.
pub(crate) const FRAMES: usize = 75;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Rows of `gate` hold the jobs that they name: inside the insert, and inside the commit, where the session's name then says
/// so. Whatever ends the session, or the row, lets them go.
const GATES: &str = "
    CREATE TABLE gate (job_id text, moment text, PRIMARY KEY (job_id, moment));
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE name text := current_setting('application_name');
    BEGIN
      IF EXISTS (SELECT FROM gate WHERE job_id = NEW.job_id AND moment = TG_ARGV[0]) THEN
        PERFORM set_config('application_name', name || ' holds ' || NEW.job_id, false);
        WHILE EXISTS (SELECT FROM gate WHERE job_id = NEW.job_id AND moment = TG_ARGV[0]) LOOP
          PERFORM pg_sleep(0.005);
        END LOOP;
        PERFORM set_config('application_name', name, false);
      END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER hold_accept BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION hold('accept');
    CREATE TRIGGER hold_commit BEFORE UPDATE ON job FOR EACH ROW
      WHEN (NEW.state = 'succeeded' AND OLD.state <> 'succeeded') EXECUTE FUNCTION hold('commit')";

/// What a job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Source,
    Encode,
    Publish,
    Commit,
}

/// What holds jobs: a web server for their sources, and gates in the job store.
pub(crate) struct Moments {
    url: String,
    sources: watch::Sender<Sources>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Sources {
    closed: BTreeSet<String>,
    asked: BTreeSet<String>,
}

impl Moments {
    pub(crate) async fn start(arena: &Arena) -> Self {
        arena.sql(GATES).unwrap();
        let bytes = Arc::new(std::fs::read(clip(&CLIP).await).unwrap());
        let sources = watch::Sender::<Sources>::default();
        let serve = async |State((bytes, sources)): State<(Arc<Vec<u8>>, watch::Sender<Sources>)>,
                           Path(id): Path<String>| {
            sources.send_modify(|sources| {
                sources.asked.insert(id.clone());
            });
            // An error means that the test is over.
            let _ = sources.subscribe().wait_for(|sources| !sources.closed.contains(&id)).await;
            bytes.to_vec()
        };
        let router = Router::new().route("/{id}", get(serve)).with_state((bytes, sources.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, sources, server }
    }

    fn close_source(&self, id: &str) {
        self.sources.send_modify(|sources| {
            sources.closed.insert(id.to_owned());
        });
    }

    fn open_source(&self, id: &str) {
        self.sources.send_modify(|sources| {
            sources.closed.remove(id);
        });
    }

    /// Lets everything go that is held in the job store.
    pub(crate) fn open_all(&self, arena: &Arena) {
        arena.sql("DELETE FROM gate").unwrap();
    }

    fn spec(&self, id: &str) -> Value {
        json!({ "job_id": id, "input_url": format!("{}/{id}", self.url), "thumbnails": false, "preset": "medium" })
    }
}

impl Drop for Moments {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The jobs of one row, each where it is held.
pub(crate) struct Held<'a> {
    moments: &'a Moments,
    /// Takes the submits, in place of the gateways: so that those are held who shall be hit.
    home: Option<Client>,
    runners: Vec<String>,
    name: String,
    ids: Vec<String>,
    /// Those that stand at a moment of an attempt: all but the submit, and but those that could not be caught.
    attempted: Vec<String>,
    encoder: Option<procfs::Process>,
}

impl<'a> Held<'a> {
    pub(crate) fn new(
        moments: &'a Moments,
        home: Option<Client>,
        runners: Vec<String>,
        name: String,
    ) -> Self {
        Self { moments, home, runners, name, ids: Vec::new(), attempted: Vec::new(), encoder: None }
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.ids.clone()
    }

    async fn submit(&self, clients: &Patient, id: &str) {
        let spec = self.moments.spec(id);
        match &self.home {
            Some(home) => drop(home.submit(&spec).await.unwrap()),
            None => drop(clients.submit(&spec, PATIENCE).await.unwrap()),
        }
    }

    /// Submits a job and returns when it stands at that moment.
    pub(crate) async fn job_at(&mut self, arena: &Arena, clients: &Patient, moment: Moment) {
        let began = Instant::now();
        for number in 1.. {
            let id = format!("{}-{moment:?}-{number}", self.name).to_lowercase();
            self.ids.push(id.clone());
            self.moments.close_source(&id);
            self.submit(clients, &id).await;
            let mut asked = self.moments.sources.subscribe();
            asked.wait_for(|sources| sources.asked.contains(&id)).await.unwrap();
            let uid = arena.uid(&id.parse().unwrap()).unwrap().unwrap();
            match moment {
                Moment::Source => {}
                Moment::Encode => {
                    self.moments.open_source(&id);
                    if !self.stop_encoder(arena, &uid).await {
                        assert!(began.elapsed() < PATIENCE, "no encode was caught");
                        continue;
                    }
                }
                Moment::Publish => {
                    let hold = Fault::new(&Method::PUT, &uid, u32::MAX, What::Hold);
                    arena.objects.set(&[hold]).await.unwrap();
                    arena.objects.seen().await.unwrap();
                    self.moments.open_source(&id);
                    while !arena.objects.seen().await.unwrap().iter().any(|seen| seen.target.contains(&uid)) {
                        assert!(began.elapsed() < PATIENCE, "{id} puts nothing");
                        tokio::time::sleep(LOOK).await;
                    }
                }
                Moment::Commit => {
                    arena.sql(&format!("INSERT INTO gate VALUES ('{id}', 'commit')")).unwrap();
                    self.moments.open_source(&id);
                    self.holds(arena, &id).await;
                }
            }
            self.attempted.push(id);
            return;
        }
    }

    /// Waits until a session of the job store holds that job.
    async fn holds(&self, arena: &Arena, id: &str) {
        let began = Instant::now();
        let question =
            format!("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% holds {id}'");
        while arena.sql(&question).unwrap() != "1" {
            assert!(began.elapsed() < PATIENCE, "the job store does not hold {id}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops the ffmpeg that encodes a job; `false` when it was too quick.
    async fn stop_encoder(&mut self, arena: &Arena, uid: &str) -> bool {
        loop {
            for worker in &self.runners {
                let family = procfs::descendants(arena.system.worker_pid(worker).unwrap());
                let mut encoders = family
                    .into_iter()
                    .filter(|process| process.name == "ffmpeg" && process.command_line().contains(uid));
                if let Some(encoder) = encoders.next() {
                    signal(&encoder, Signal::STOP);
                    if phase(arena, uid) == "encoding" && encoder.is_alive() {
                        self.encoder = Some(encoder);
                        return true;
                    }
                    // It looks at the source still.
                    signal(&encoder, Signal::CONT);
                }
            }
            if matches!(phase(arena, uid).as_str(), "publishing" | "") {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Begins a submit that is held inside the store's insert; it is sent again, to any gateway, until it is accepted.
    pub(crate) async fn submit_at_accept(&mut self, arena: &Arena, clients: &Patient) -> JoinHandle<Job> {
        let id = format!("{}-accept", self.name);
        self.ids.push(id.clone());
        arena.sql(&format!("INSERT INTO gate VALUES ('{id}', 'accept')")).unwrap();
        let (spec, home, clients) = (self.moments.spec(&id), self.home.clone(), clients.clone());
        let submit = tokio::spawn(async move {
            if let Some(home) = home {
                let first = tokio::time::timeout(Duration::from_secs(4), home.process(&spec)).await;
                if let Ok(Ok(answer)) = first
                    && answer.status.is_success()
                {
                    return answer.job().unwrap();
                }
            }
            clients.submit(&spec, PATIENCE).await.unwrap()
        });
        self.holds(arena, &id).await;
        submit
    }

    /// Lets every job go on from where it is held, as far as the victim lets that be done.
    pub(crate) async fn let_go(&mut self, arena: &Arena, victim: &Victim, way: Way) {
        self.ids.iter().for_each(|id| self.moments.open_source(id));
        if *victim != Victim::Postgres {
            self.moments.open_all(arena);
        }
        // A server that was killed has forgotten its faults, and one that sleeps cannot be asked.
        match (victim, way) {
            (Victim::Objects, _) => {}
            _ => arena.objects.set(&[]).await.unwrap(),
        }
        // One that nobody renews shall be ended, not end by itself.
        if let Some(encoder) =
            self.encoder.as_ref().filter(|_| (victim, way) != (&Victim::Postgres, Way::Freeze))
        {
            signal(encoder, Signal::CONT);
        }
    }

    /// Whether each attempt that a dead worker held has become another's, or what it was about to commit is committed.
    pub(crate) fn taken_over(&self, arena: &Arena) -> bool {
        let ids: Vec<String> = self.attempted.iter().map(|id| format!("'{id}'")).collect();
        let left = format!(
            "SELECT count(*) FROM job WHERE job_id IN ({}) AND attempt < 2 AND NOT (state = 'succeeded' AND job_id = '{}')",
            ids.join(","),
            self.attempted.last().unwrap()
        );
        arena.sql(&left).unwrap() == "0"
    }

    /// Whether the ffmpeg that was stopped has been ended.
    pub(crate) fn encoder_is_gone(&self) -> bool {
        self.encoder.as_ref().is_none_or(|encoder| !encoder.is_alive())
    }

    /// Until when the job store counts on those that run, at most.
    pub(crate) fn renewed_until(&self, arena: &Arena) -> i64 {
        let until = arena.sql("SELECT coalesce(max(lease_expires_at), 0) FROM task").unwrap();
        until.parse().unwrap()
    }
}

fn phase(arena: &Arena, uid: &str) -> String {
    arena.sql(&format!("SELECT coalesce(phase, '') FROM job WHERE uid = '{uid}'")).unwrap()
}

fn signal(process: &procfs::Process, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    // One that has ended meanwhile needs none.
    let _ = kill_process(pid, signal);
}
