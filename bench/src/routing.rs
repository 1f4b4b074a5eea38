//! The gateway's routing file, as data that tests and the demo can change.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One pool of the routing file.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The operator's weight.
    pub weight: f64,
    /// Price of the bytes that leave it.
    pub egress_usd_per_gb: f64,
    /// Its workers' addresses.
    pub endpoints: Vec<String>,
}

/// How the gateway speaks TLS to all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Whom it believes.
    pub ca: PathBuf,
    /// What it shows.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
}

/// The routing file.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Where clients connect.
    pub http: String,
    /// Where operators connect.
    pub admin: String,
    /// The file of API keys that clients are asked for; nobody is asked without.
    pub auth_keys: Option<PathBuf>,
    /// TLS to the workers of all pools; without, all are spoken to in plain.
    pub upstream_tls: Option<UpstreamTls>,
    /// All pools.
    pub pools: Vec<Pool>,
}

impl Routing {
    /// The pool of that name.
    ///
    /// # Panics
    /// When there is none: the caller named it itself when it built the system.
    pub fn pool(&mut self, name: &str) -> &mut Pool {
        self.pools.iter_mut().find(|pool| pool.name == name).expect("a pool that the system was built with")
    }

    /// The TOML text. Names and addresses are plain words, so a quoted Rust string is a quoted TOML string.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# Written by millrace-bench; the gateway reloads it when it changes.\n");
        let put = "writing to a String cannot fail";
        write!(text, "[listen]\nhttp = {:?}\nadmin = {:?}\n", self.http, self.admin).expect(put);
        if let Some(keys) = &self.auth_keys {
            write!(text, "\n[auth]\nkeys = {keys:?}\n").expect(put);
        }
        if let Some(UpstreamTls { ca, certificate, key }) = &self.upstream_tls {
            write!(text, "\n[upstream_tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n")
                .expect(put);
        }
        for Pool { name, weight, egress_usd_per_gb, endpoints } in &self.pools {
            write!(text, "\n[[pools]]\nname = {name:?}\nweight = {weight:?}\n").expect(put);
            write!(text, "egress_usd_per_gb = {egress_usd_per_gb:?}\nendpoints = {endpoints:?}\n")
                .expect(put);
            if self.upstream_tls.is_some() {
                text.push_str("tls = true\n");
            }
        }
        text
    }

    /// Puts the file in place whole, so that the gateway never reads half of it.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &self.to_toml())
    }
}

/// Replaces a file in one step.
///
/// # Errors
/// The directory cannot be written to.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_toml_that_says_what_was_meant() {
        let mut routing = Routing {
            auth_keys: None,
            upstream_tls: None,
            http: "127.0.0.1:0".to_owned(),
            admin: "127.0.0.1:1".to_owned(),
            pools: ["aws", "gcp"]
                .map(|name| Pool {
                    name: name.to_owned(),
                    weight: 1.0,
                    egress_usd_per_gb: 0.09,
                    endpoints: vec!["127.0.0.1:9001".to_owned(), "127.0.0.1:9002".to_owned()],
                })
                .to_vec(),
        };
        routing.pool("gcp").weight = 0.1;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routing.toml");
        routing.write(&path).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        let file = millrace_runtime::config::File::from_text(&path, text);
        let read: serde_json::Value = file.parse().unwrap();
        assert_eq!(read["listen"], serde_json::json!({"http": "127.0.0.1:0", "admin": "127.0.0.1:1"}));
        assert_eq!(read["pools"][1]["weight"], 0.1);
        assert_eq!(read["pools"][0]["weight"], 1.0);
        assert_eq!(read["pools"][0]["endpoints"][1], "127.0.0.1:9002");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the file beside it is gone");
    }
}
