//! A whole system with everything that can break: gateways, pools, a PostgreSQL server and an S3 server, all real
//! processes on loopback, with leases so short that a death is noticed in two seconds.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_wire::JobId;
use rand::Rng as _;

use super::objects::ObjectStore;
use crate::System;
use crate::postgres::Server;

/// How long a claim holds without a heartbeat.
pub const LEASE: Duration = Duration::from_secs(2);
/// Below what kernels give by themselves.
const PORTS: std::ops::Range<u16> = 12_000..30_000;
/// The database of the jobs.
pub const DATABASE: &str = "jobs";

/// The system and what it stands on.
#[derive(Debug)]
pub struct Arena {
    /// Gateways and workers.
    pub system: System,
    /// The job store.
    pub postgres: Server,
    /// The object store.
    pub objects: ObjectStore,
}

/// Whom it hits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// These workers at once: one, or a whole pool.
    Workers(Vec<String>),
    /// The gateway in that place.
    Gateway(usize),
    /// The job store.
    Postgres,
    /// The object store.
    Objects,
}

/// How it is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// `kill -9`, and started again.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// Asked to stop, and started again; the job store has only the way of a crash.
    Restart,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(names) => write!(f, "{}", names.join(" and ")),
            Self::Gateway(place) => write!(f, "gateway {}", place + 1),
            Self::Postgres => f.write_str("postgres"),
            Self::Objects => f.write_str("object store"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill -9",
            Self::Freeze => "freeze",
            Self::Restart => "restart",
        })
    }
}

/// An address of loopback that is free, and still will be after its owner's death: outside of what the kernel gives to
/// whoever asks for any port. Else a stranger may answer there while the owner is dead.
pub(super) fn address_to_return_to() -> Result<String> {
    let mut tries = 0;
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::rng().random_range(PORTS)));
        match std::net::TcpListener::bind(address) {
            Ok(_) => return Ok(address.to_string()),
            Err(_) if tries < 100 => tries += 1,
            Err(error) => return Err(error).context("find a free port"),
        }
    }
}

impl Arena {
    /// Starts everything: pools by name and number of workers, each with so many slots.
    ///
    /// # Errors
    /// Something is not installed, or does not come up.
    pub async fn start(pools: &[(&str, usize)], slots: u32, gateways: usize) -> Result<Self> {
        let (postgres, store) = tokio::task::block_in_place(|| {
            let postgres = Server::start()?;
            let store = postgres.create(DATABASE)?;
            anyhow::Ok((postgres, store))
        })?;
        let names: Vec<&str> = pools.iter().map(|(name, _)| *name).collect();
        let objects = ObjectStore::start(&names).await?;
        let mut builder = System::builder()
            .worker_arg("--objects", &objects.places())
            .worker_arg("--lease", &format!("{}s", LEASE.as_secs()))
            .worker_arg("--heartbeat", "500ms")
            .worker_arg("--store-timeout", "2s")
            .worker_arg("--grace", "1s")
            .worker_arg("--slots", &slots.to_string())
            .worker_arg("--queue-max", "64")
            .worker_arg("--threads", "1");
        for (pool, workers) in pools {
            builder = builder.pool(pool, *workers);
            for number in 1..=*workers {
                // So that the server can say whose a session is.
                let name = format!("{pool}-{number}");
                builder = builder
                    .worker_arg_of(&name, "--store", &format!("{store}&application_name={name}"))
                    .worker_arg_of(&name, "--listen", &address_to_return_to()?);
            }
        }
        let mut system = builder.start().await?;
        for _ in 1..gateways {
            system.start_second_gateway().await?;
        }
        Ok(Self { system, postgres, objects })
    }

    /// Asks the job store past everybody else, as `psql` prints it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sql(&self, question: &str) -> Result<String> {
        tokio::task::block_in_place(|| self.postgres.sql(DATABASE, question))
    }

    /// A job's internal name, once it is in the store.
    ///
    /// # Errors
    /// The job store does not answer.
    pub fn uid(&self, id: &JobId) -> Result<Option<String>> {
        let uid = self.sql(&format!("SELECT uid FROM job WHERE job_id = '{id}'"))?;
        Ok((!uid.is_empty()).then_some(uid))
    }

    /// Hits somebody; returns when that is done.
    ///
    /// # Errors
    /// The victim does not run.
    pub async fn hit(&mut self, victim: &Victim, way: Way) -> Result<()> {
        match (victim, way) {
            (Victim::Workers(names), Way::Kill) => {
                for name in names {
                    self.system.kill9_worker(name).await?;
                }
            }
            (Victim::Workers(names), Way::Freeze) => {
                names.iter().try_for_each(|name| self.system.freeze_worker(name))?;
            }
            (Victim::Workers(names), Way::Restart) => {
                for name in names {
                    self.system.stop_worker(name).await?;
                }
            }
            (Victim::Gateway(place), Way::Kill) => self.system.kill9_gateway_at(*place).await?,
            (Victim::Gateway(place), Way::Freeze) => self.system.freeze_gateway(*place)?,
            (Victim::Gateway(place), Way::Restart) => self.system.stop_gateway(*place).await?,
            (Victim::Postgres, Way::Kill | Way::Restart) => {
                tokio::task::block_in_place(|| self.postgres.stop())?;
            }
            (Victim::Postgres, Way::Freeze) => self.postgres.freeze()?,
            (Victim::Objects, Way::Kill) => self.objects.kill9().await?,
            (Victim::Objects, Way::Freeze) => self.objects.freeze()?,
            (Victim::Objects, Way::Restart) => self.objects.stop().await?,
        }
        Ok(())
    }

    /// Brings the victim of [`Self::hit`] back.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn heal(&mut self, victim: &Victim, way: Way) -> Result<()> {
        match (victim, way) {
            (Victim::Workers(names), Way::Freeze) => {
                names.iter().try_for_each(|name| self.system.thaw_worker(name))?;
            }
            (Victim::Workers(names), _) => {
                for name in names {
                    self.system.restart_worker(name).await?;
                }
            }
            (Victim::Gateway(place), Way::Freeze) => self.system.thaw_gateway(*place)?,
            (Victim::Gateway(place), _) => self.system.restart_gateway(*place).await?,
            (Victim::Postgres, Way::Freeze) => self.postgres.thaw()?,
            (Victim::Postgres, _) => tokio::task::block_in_place(|| self.postgres.restart())?,
            (Victim::Objects, Way::Freeze) => self.objects.thaw()?,
            (Victim::Objects, _) => self.objects.restart().await?,
        }
        Ok(())
    }

    /// Ends everything in order, and refuses a process left behind, a bad exit and a panic in a log.
    ///
    /// # Errors
    /// Says which.
    pub async fn end(mut self) -> Result<()> {
        self.system.stop().await.context("end the system")?;
        self.system.check_logs()
    }
}
