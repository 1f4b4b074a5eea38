//! Starts the gateway's binary and asks it things.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fake::Fake;

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A routing file: name, weight, workers of each pool.
pub(crate) fn pools(pools: &[(&str, f64, &[&Fake])]) -> String {
    let mut file = "[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n".to_owned();
    for (name, weight, fakes) in pools {
        let endpoints: Vec<String> = fakes.iter().map(|fake| fake.address.to_string()).collect();
        file += &format!("[[pools]]\nname = \"{name}\"\nweight = {weight}\nendpoints = {endpoints:?}\n");
    }
    file
}

/// A spec of exactly that many bytes.
pub(crate) fn submit_body(bytes: usize) -> String {
    let frame = "{\"input_url\":\"http://h/v\",\"labels\":\"\"}";
    frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())))
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the binary to its end: exit code, standard output, standard error.
pub(crate) fn check(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace-gateway")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The system's CA certificates are looked for in that file alone.
pub(crate) fn roots_from<'a>(command: &'a mut Command, file: &str) -> &'a mut Command {
    command.env("SSL_CERT_FILE", file).env_remove("SSL_CERT_DIR")
}

/// A client of HTTP/2 without TLS.
pub(crate) fn http2() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).http2_prior_knowledge().build().unwrap()
}

/// A problem, checked to be one.
pub(crate) async fn problem(response: reqwest::Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let status = response.status().as_u16();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    problem
}

/// A gauge's value in Prometheus text.
pub(crate) fn gauge(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// A running gateway; killed when dropped.
pub(crate) struct Gateway {
    /// The plain listener, or the one with TLS if there is no other.
    pub(crate) http: SocketAddr,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) admin: SocketAddr,
    /// The listener for metrics alone.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) client: reqwest::Client,
    child: Mutex<Child>,
    output: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
}

impl Gateway {
    pub(crate) async fn start(routing: &str) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_millrace-gateway")), routing).await
    }

    /// The same on a system whose CA certificates are looked for in that file alone.
    pub(crate) async fn start_with_roots(file: &str, routing: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-gateway"));
        roots_from(&mut command, file);
        Self::start_by(command, routing).await
    }

    /// The same with a soft limit of that many open files, as systems start their services.
    pub(crate) async fn start_with_files_max(files: u64, routing: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -S -n {files} && exec \"$0\" \"$@\"")]);
        shell.arg(env!("CARGO_BIN_EXE_millrace-gateway"));
        Self::start_by(shell, routing).await
    }

    async fn start_by(mut command: Command, routing: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("routing.toml"), routing).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = command
            .args(["run", "--log-format", "text", "--config"])
            .arg(directory.path().join("routing.toml"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        let output: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = output.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let words: Vec<&str> = ready.split_whitespace().collect();
        let split = words.iter().position(|word| *word == "admin");
        let Some((["ready", urls @ ..], ["admin", admin, metrics @ ..])) = split.map(|at| words.split_at(at))
        else {
            let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
            panic!("not ready: {ready:?}\n{log}");
        };
        let address = |url: &str| url.split_once("://").unwrap().1.parse().unwrap();
        let https = urls.iter().find(|url| url.starts_with("https://")).map(|url| address(url));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self {
            http: address(urls[0]),
            https,
            admin: address(admin),
            metrics: metrics.last().map(|url| address(url)),
            client,
            child: Mutex::new(child),
            output,
            directory,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub(crate) fn https_url(&self, path: &str) -> String {
        format!("https://{}{path}", self.https.unwrap())
    }

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("routing.toml")
    }

    /// Replaces the routing file as a careful editor would.
    pub(crate) fn write(&self, routing: &str) {
        let fresh = self.directory.path().join("routing.toml.new");
        std::fs::write(&fresh, routing).unwrap();
        std::fs::rename(fresh, self.file()).unwrap();
    }

    /// Its lines on standard output, after the one that said it was ready.
    pub(crate) fn output(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub(crate) async fn submit(&self, body: &str) -> reqwest::Response {
        self.client.post(self.url("/process")).body(body.to_owned()).send().await.unwrap()
    }

    /// `POST /reload`.
    pub(crate) async fn reload(&self) -> reqwest::Response {
        let reload = self.client.post(self.admin_url("/reload")).header("content-type", "application/json");
        reload.send().await.unwrap()
    }

    pub(crate) async fn status(&self) -> Value {
        self.client.get(self.admin_url("/status")).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn generation(&self) -> u64 {
        self.status().await["config_generation"].as_u64().unwrap()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.client.get(self.admin_url("/metrics")).send().await.unwrap().text().await.unwrap()
    }

    /// Waits until that many workers are healthy, and the gateway is ready.
    pub(crate) async fn healthy(&self, workers: usize) {
        eventually(&format!("{workers} workers are healthy"), || async {
            let status = self.status().await;
            let all = status["pools"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|pool| pool["workers"].as_array().unwrap());
            let healthy = all.filter(|worker| worker["healthy"] == true).count();
            let ready = self.client.get(self.admin_url("/readyz")).send().await.unwrap();
            healthy == workers && ready.status().is_success()
        })
        .await;
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.child.lock().unwrap().try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    /// What `/proc` holds of it under that name.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.lock().unwrap().id()))
    }

    /// Its memory that is in use, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The gateway's open sockets.
    pub(crate) fn sockets(&self) -> usize {
        let directory = self.proc("fd");
        let links = std::fs::read_dir(directory)
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// Submits and reads without pause, from that many clients, until it is stopped.
    pub(crate) fn load(&self, clients: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        // One of its own: its connections end with it.
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        for _ in 0..clients {
            let (client, stop) = (client.clone(), stop.clone());
            let (submit, read) = (self.url("/process"), self.url("/jobs"));
            tasks.spawn(async move {
                let (mut count, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    for request in [client.post(&submit).body("{}"), client.get(&read)] {
                        count += 1;
                        match request.send().await {
                            Ok(response) if response.status().is_success() => {}
                            Ok(response) => failed.push(response.status().to_string()),
                            Err(error) => failed.push(format!("{error:?}")),
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (count, failed)
            });
        }
        Load { stop, tasks }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- the gateway's log\n{}",
                std::fs::read_to_string(self.directory.path().join("log")).unwrap()
            );
        }
    }
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(usize, Vec<String>)>,
}

impl Load {
    /// How many requests there were, and how those that failed did.
    pub(crate) async fn stop(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let (mut count, mut failed) = (0, Vec::new());
        while let Some(task) = self.tasks.join_next().await {
            let (some, how) = task.unwrap();
            count += some;
            failed.extend(how);
        }
        (count, failed)
    }
}

/// A client made of a socket.
pub(crate) struct Raw(TcpStream);

pub(crate) async fn open(address: SocketAddr) -> Raw {
    Raw(TcpStream::connect(address).await.unwrap())
}

impl Raw {
    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next response header, or what there was of it when the connection closed.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        let read = async {
            while !head.ends_with(b"\r\n\r\n") {
                match self.0.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer or an end");
        String::from_utf8(head).unwrap()
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Sends what the other side takes: whether it took it all.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        matches!(tokio::time::timeout(Duration::from_secs(2), self.0.write_all(bytes)).await, Ok(Ok(())))
    }

    /// What comes until the connection closes, or nothing has come for that long.
    pub(crate) async fn quiet(&mut self, quiet: Duration) -> Vec<u8> {
        let (mut came, mut piece) = (Vec::new(), vec![0; 65_536]);
        while let Ok(Ok(length)) = tokio::time::timeout(quiet, self.0.read(&mut piece)).await {
            if length == 0 {
                break;
            }
            came.extend_from_slice(&piece[..length]);
        }
        came
    }

    /// Everything until the connection closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset ends it as well.
        let reading = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest));
        let _ = reading.await.expect("an end");
        rest
    }

    /// Sends the same byte again and again until an answer or an end.
    pub(crate) async fn drip(self, byte: u8, every: Duration) -> String {
        let (read, mut write) = self.0.into_split();
        let dripping = tokio::spawn(async move {
            while write.write_all(&[byte]).await.is_ok() {
                tokio::time::sleep(every).await;
            }
        });
        let mut reader = tokio::io::BufReader::new(read);
        let mut head = String::new();
        let lines = async {
            use tokio::io::AsyncBufReadExt as _;
            while !head.ends_with("\r\n\r\n") {
                match reader.read_line(&mut head).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, lines).await.expect("an answer or an end");
        dripping.abort();
        head
    }
}
