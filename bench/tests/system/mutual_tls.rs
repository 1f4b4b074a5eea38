//! Real workers and a real gateway that know each other by certificates only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_bench::System;
use millrace_bench::routing::UpstreamTls;
use millrace_wire::job::Job;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, ClientBuilder, Identity};

use crate::stage::{PATIENCE, Stage, wait_until};

/// A CA, and the files of who has a certificate of it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for loopback until that year, and its key.
    fn signs(&self, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// All certificates of a deployment.
struct Trust {
    directory: tempfile::TempDir,
    workers: Authority,
    gateways: Authority,
}

impl Trust {
    fn new() -> Self {
        // Whoever makes a client of TLS needs one; that it is there already is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trust = Self {
            directory: tempfile::tempdir().unwrap(),
            workers: Authority::new(),
            gateways: Authority::new(),
        };
        std::fs::write(trust.path("workers-ca.pem"), &trust.workers.pem).unwrap();
        std::fs::write(trust.path("gateways-ca.pem"), &trust.gateways.pem).unwrap();
        trust.renew(2099);
        trust
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// New certificates for both sides, until that year.
    fn renew(&self, until: i32) {
        for (name, authority) in [("worker", &self.workers), ("gateway", &self.gateways)] {
            let (certificate, key) = authority.signs(until);
            std::fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
            std::fs::write(self.path(&format!("{name}.key")), key).unwrap();
        }
    }

    fn builder(&self) -> millrace_bench::system::Builder {
        let text = |name: &str| Path::to_str(&self.path(name)).unwrap().to_owned();
        let (ca, certificate, key) =
            (self.path("workers-ca.pem"), self.path("gateway.pem"), self.path("gateway.key"));
        System::builder()
            .upstream_tls(UpstreamTls { ca, certificate, key })
            .worker_arg("--tls-certificate", &text("worker.pem"))
            .worker_arg("--tls-key", &text("worker.key"))
            .worker_arg("--tls-client-ca", &text("gateways-ca.pem"))
    }

    /// Somebody who believes workers and shows nothing.
    fn stranger(&self) -> ClientBuilder {
        let root = Certificate::from_pem(self.workers.pem.as_bytes()).unwrap();
        reqwest::Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([root])
    }

    /// Somebody with a gateway's certificate.
    fn insider(&self) -> ClientBuilder {
        let (certificate, key) = self.gateways.signs(2099);
        self.stranger().identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap())
    }
}

fn gauge(metrics: &str, name: &str) -> f64 {
    // Whatever labels it has.
    let named = |line: &&str| line.split([' ', '{']).next() == Some(name);
    let line = metrics.lines().find(named).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_job_survives_a_killed_worker_and_new_certificates_over_mutual_tls() {
    let trust = Trust::new();
    let builder = trust.builder().pool("aws", 1).pool("gcp", 1).worker_arg("--threads", "1");
    let mut stage =
        Stage::start(builder.worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms")).await;
    let (_, victim) = stage.encoding("heavy").await;
    let url =
        |name: &str, path: &str| format!("https://{}{path}", stage.system.worker_address(name).unwrap());

    // Past the gateway: nobody without its certificate, not even for health, and nobody without TLS.
    let (stranger, insider) = (trust.stranger().build().unwrap(), trust.insider().build().unwrap());
    for path in ["/load", "/livez", "/jobs/heavy"] {
        assert!(stranger.get(url(&victim, path)).send().await.is_err(), "{path}");
    }
    let plain = url(&victim, "/jobs/heavy").replace("https://", "http://");
    assert_eq!(stranger.get(plain).send().await.unwrap().status(), 400, "it is told to speak TLS");
    let told = insider.get(url(&victim, "/jobs/heavy")).send().await.unwrap();
    assert!(told.status().is_success());

    // New certificates on both sides while the job runs; its events go on over the connection of before.
    let workers: Vec<String> = stage.system.workers().map(str::to_owned).collect();
    let events = stage.client.url("/jobs/heavy/events").unwrap();
    let mut events = stranger.get(events).send().await.unwrap();
    trust.renew(2098);
    let expiry = "certificate_expiry_timestamp_seconds";
    let in_2098 = |seconds: f64| seconds < 128.5 * 365.25 * 86_400.0;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let metrics = stage.system.admin().unwrap().get("/metrics").await.unwrap().text();
        let mut renewed = in_2098(gauge(&metrics, &format!("millrace_gateway_upstream_{expiry}")));
        for worker in &workers {
            let fresh = trust.insider().build().unwrap();
            let metrics = fresh.get(url(worker, "/metrics")).send().await.unwrap().text().await.unwrap();
            renewed &= in_2098(gauge(&metrics, &format!("millrace_worker_{expiry}")));
        }
        if renewed {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the new certificates are not in force");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(events.chunk().await.unwrap().is_some(), "the stream lives");
    stage.client.job("heavy").await.unwrap();

    let ffmpegs = stage.system.ffmpegs_of(&victim).unwrap();
    stage.system.kill9_worker(&victim).await.unwrap();
    wait_until("the end of the killed worker's ffmpeg", || ffmpegs.iter().all(|ffmpeg| !ffmpeg.is_alive()))
        .await;
    let elsewhere = |job: &Job| job.worker.as_ref().is_some_and(|worker| worker.as_str() != victim);
    stage.client.wait_for("heavy", "taken over", PATIENCE, elsewhere).await.unwrap();
    let done = stage.succeeded("heavy").await;
    assert_ne!(done.worker.unwrap().as_str(), victim);
    let playlist = stage.client.get(&done.outputs.unwrap().hls.unwrap()).await.unwrap();
    assert!(playlist.status.is_success() && playlist.text().starts_with("#EXTM3U"));

    // It comes back with the new certificate, and is of use again.
    stage.system.restart_worker(&victim).await.unwrap();
    stage.client.submit(&stage.web.small_spec("small")).await.unwrap();
    stage.succeeded("small").await;
    stage.end().await;
}
