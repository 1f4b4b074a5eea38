//! Several gateways of one system, each killed, frozen and started again by its place.

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::{Gateway, READY_PATIENCE, STOP_PATIENCE, System};
use crate::process::Process;

impl System {
    /// Where clients connect: every gateway that runs. The kernel may have given the port of one that does not to a stranger.
    pub fn gateway_urls(&mut self) -> Vec<String> {
        let url =
            |gateway: &mut Gateway| gateway.process.exited().is_none().then(|| gateway.ready.http.clone());
        self.gateways.iter_mut().filter_map(url).collect()
    }

    /// `kill -9` of a gateway; returns when it is gone.
    ///
    /// # Errors
    /// No such gateway, or it had ended before.
    pub async fn kill9_gateway_at(&mut self, place: usize) -> Result<()> {
        self.gateway_process(place)?.kill9().await
    }

    /// SIGTERM to a gateway; returns when it has ended.
    ///
    /// # Errors
    /// As [`Self::kill9_gateway_at`], or it does not end.
    pub async fn stop_gateway(&mut self, place: usize) -> Result<()> {
        let process = self.gateway_process(place)?;
        process.ask_to_stop()?;
        process.wait(STOP_PATIENCE).await.map(drop)
    }

    /// SIGSTOP to a gateway: its sockets stay open and nothing of it answers.
    ///
    /// # Errors
    /// As [`Self::kill9_gateway_at`].
    pub fn freeze_gateway(&mut self, place: usize) -> Result<()> {
        self.gateway_process(place)?.signal(Signal::STOP)
    }

    /// SIGCONT to a gateway that was frozen.
    ///
    /// # Errors
    /// As [`Self::kill9_gateway_at`].
    pub fn thaw_gateway(&mut self, place: usize) -> Result<()> {
        self.gateway_process(place)?.signal(Signal::CONT)
    }

    /// Starts a gateway that ended, in its place and on the same file. It serves as soon as it listens, whatever it knows of
    /// the workers by then; the kernel gives it another port.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart_gateway(&mut self, place: usize) -> Result<()> {
        let mut process = self.spawn_gateway(place + 1)?;
        let ready = process.ready(READY_PATIENCE).await?;
        *self.gateways.get_mut(place).context("there is no such gateway")? = Gateway { ready, process };
        Ok(())
    }

    fn gateway_process(&mut self, place: usize) -> Result<&mut Process> {
        let gateway = self.gateways.get_mut(place);
        Ok(&mut gateway.with_context(|| format!("there is no gateway {place}"))?.process)
    }
}
