//! How a system is to be: its pools, its workers' flags, its gateway's ways; and its start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{READY_PATIENCE, System};
use crate::binaries::Binaries;
use crate::data::Data;
use crate::process::Spawner;
use crate::routing::{Pool, Routing, UpstreamTls};

/// How to start a [`System`].
#[derive(Debug)]
pub struct Builder {
    pools: Vec<(String, usize)>,
    worker_args: BTreeMap<String, String>,
    one_worker_args: BTreeMap<String, BTreeMap<String, String>>,
    started_by: BTreeMap<String, Vec<String>>,
    data: Option<PathBuf>,
    empty_first: bool,
    gateway_ports: (u16, u16),
    auth_keys: Option<PathBuf>,
    upstream_tls: Option<UpstreamTls>,
    log: String,
}

impl Default for Builder {
    /// Loopback, from which may be fetched, and one slot a worker; no pools yet.
    fn default() -> Self {
        let flags = [
            ("--slots", "1"),
            ("--queue-max", "8"),
            ("--threads", "2"),
            ("--allow-private-sources", "127.0.0.0/8"),
        ];
        Self {
            pools: Vec::new(),
            worker_args: flags.map(|(flag, value)| (flag.to_owned(), value.to_owned())).into(),
            one_worker_args: BTreeMap::new(),
            started_by: BTreeMap::new(),
            data: None,
            empty_first: false,
            gateway_ports: (0, 0),
            auth_keys: None,
            upstream_tls: None,
            log: "info".to_owned(),
        }
    }
}

impl Builder {
    /// Adds a pool of so many workers, named `POOL-1`, `POOL-2`, …
    #[must_use]
    pub fn pool(mut self, name: &str, workers: usize) -> Self {
        self.pools.push((name.to_owned(), workers));
        self
    }

    /// Sets a flag of every worker, in place of the harness's own value: `.worker_arg("--lease", "2s")`.
    #[must_use]
    pub fn worker_arg(mut self, flag: &str, value: &str) -> Self {
        self.worker_args.insert(flag.to_owned(), value.to_owned());
        self
    }

    /// Sets a flag of one worker.
    #[must_use]
    pub fn worker_arg_of(mut self, worker: &str, flag: &str, value: &str) -> Self {
        let args = self.one_worker_args.entry(worker.to_owned()).or_default();
        args.insert(flag.to_owned(), value.to_owned());
        self
    }

    /// Starts one worker through another program: it gets the worker's command line behind these arguments of its own, and
    /// must become it. See [`crate::surroundings`].
    #[must_use]
    pub fn worker_started_by(mut self, worker: &str, command: Vec<String>) -> Self {
        self.started_by.insert(worker.to_owned(), command);
        self
    }

    /// Takes a flag of every worker away, so that the worker's own default holds.
    #[must_use]
    pub fn without_worker_arg(mut self, flag: &str) -> Self {
        self.worker_args.remove(flag);
        self
    }

    /// Keeps everything in this directory, and keeps the directory. Else it is a temporary one that goes with the system.
    #[must_use]
    pub fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.to_owned());
        self
    }

    /// Empties the directory of [`Self::data`] first, once it is known that nobody else uses it.
    #[must_use]
    pub fn empty_first(mut self) -> Self {
        self.empty_first = true;
        self
    }

    /// Fixed ports for the gateway, instead of ports given by the kernel.
    #[must_use]
    pub fn gateway_ports(mut self, http: u16, admin: u16) -> Self {
        self.gateway_ports = (http, admin);
        self
    }

    /// Lets the gateway ask clients for the API keys of that file.
    #[must_use]
    pub fn auth_keys(mut self, file: &Path) -> Self {
        self.auth_keys = Some(file.to_owned());
        self
    }

    /// Lets the gateway speak TLS to all workers; those take their own files by [`Self::worker_arg`].
    #[must_use]
    pub fn upstream_tls(mut self, files: UpstreamTls) -> Self {
        self.upstream_tls = Some(files);
        self
    }

    /// The log filter of all processes.
    #[must_use]
    pub fn log(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log);
        self
    }

    /// Starts it: the workers first, all at once, then the gateway with their addresses; returns when it is ready.
    ///
    /// # Errors
    /// A missing binary, a data directory in use, or a process that does not come up; with the end of its log.
    pub async fn start(self) -> Result<System> {
        let binaries = Binaries::locate()?;
        let data = Data::open(self.data.as_deref(), self.empty_first)?;
        let spawner = Spawner::new(binaries.bench.clone()).context("start the spawner thread")?;
        let mut system = System {
            workers: BTreeMap::new(),
            gateways: Vec::new(),
            routing: Routing {
                http: format!("127.0.0.1:{}", self.gateway_ports.0),
                admin: format!("127.0.0.1:{}", self.gateway_ports.1),
                auth_keys: self.auth_keys,
                upstream_tls: self.upstream_tls,
                pools: Vec::new(),
            },
            binaries,
            log: self.log.clone(),
            spawner,
            data,
        };
        for (pool, count) in &self.pools {
            for number in 1..=*count {
                let name = format!("{pool}-{number}");
                let mut flags = self.worker_args.clone();
                flags.extend(self.one_worker_args.get(&name).cloned().unwrap_or_default());
                let by = self.started_by.get(&name).cloned().unwrap_or_default();
                system.add_worker(&name, pool, flags, by)?;
            }
        }
        for worker in system.workers.values_mut() {
            let process = worker.process.as_mut().expect("just started");
            worker.address = process.ready(READY_PATIENCE).await?.address().to_owned();
        }
        for (pool, _) in &self.pools {
            let endpoints =
                system.workers.values().filter(|w| w.pool == *pool).map(|w| w.address.clone()).collect();
            let pool = Pool { name: pool.clone(), weight: 1.0, egress_usd_per_gb: 0.09, endpoints };
            system.routing.pools.push(pool);
        }
        system.write_routing()?;
        system.start_gateway().await?;
        Ok(system)
    }
}
