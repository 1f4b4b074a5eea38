//! NATS JetStream as an event sink.
//!
//! A message is published to `PREFIX.TENANT.JOB.EVENT` with `Nats-Msg-Id`, by which the stream drops what it has already
//! (within its window, two minutes unless the stream says otherwise), and counts as there once a stream has acknowledged
//! it. Where no stream takes those subjects yet, one is made; an operator's own is used as it is.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions, ServerAddr};
use async_trait::async_trait;

use super::{Error, Message, Sink};

/// How long a stream may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(4);
/// For one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause before another try to connect.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How to speak to the servers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `nats://…` or `tls://…`, several with commas between: servers of one cluster.
    pub servers: Vec<String>,
    /// What subjects begin with.
    pub prefix: String,
    /// The stream that is made where none takes those subjects.
    pub stream: String,
    /// A `.creds` file, as NATS's own tools make it.
    pub credentials: Option<PathBuf>,
    /// Who signs the servers' certificates, in PEM; else whom the system trusts.
    pub ca: Option<PathBuf>,
}

impl Settings {
    /// Checks addresses and names without connecting.
    ///
    /// # Errors
    /// Which setting cannot be used and what it must be, without repeating it: a password may be in an address.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        self.addresses()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let is_token = |token: &str| !token.is_empty() && token.chars().all(plain);
        if !self.prefix.split('.').all(is_token) {
            return Err((
                "--events-subject",
                "letters, digits, _ and - with dots between, like millrace.jobs",
            ));
        }
        if !is_token(&self.stream) {
            return Err(("--events-stream", "letters, digits, _ and -"));
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, (&'static str, &'static str)> {
        let address = |text: &String| {
            let known = text.starts_with("nats://") || text.starts_with("tls://");
            known.then(|| text.parse::<ServerAddr>().ok()).flatten()
        };
        let addresses: Option<_> = self.servers.iter().map(address).collect();
        addresses.ok_or(("--events", "nats://HOST[:4222] or tls://HOST[:4222] each"))
    }
}

/// A connection that comes back by itself.
pub struct Nats {
    client: Client,
    jetstream: jetstream::Context,
    settings: Settings,
}

impl Nats {
    /// Begins to connect. That there is no server yet is no error: then nothing can be published for a while.
    ///
    /// # Errors
    /// The settings or the credentials cannot be used.
    pub async fn connect(settings: Settings) -> Result<Self, String> {
        let wrong = |(setting, wants)| format!("{setting} must be {wants}");
        settings.check().map_err(wrong)?;
        let mut options = ConnectOptions::new()
            .name("millrace-worker")
            .connection_timeout(CONNECT_TIMEOUT)
            .retry_on_initial_connect()
            .reconnect_delay_callback(|tries| Duration::from_millis(50 << tries.min(8)).min(RECONNECT_MAX));
        if let Some(file) = &settings.credentials {
            let read = options.credentials_file(file).await;
            options = read.map_err(|error| format!("{} cannot be used: {error}", file.display()))?;
        }
        if let Some(file) = &settings.ca {
            options = options.add_root_certificates(file.clone());
        }
        let addresses = settings.addresses().map_err(wrong)?;
        let client = options.connect(addresses).await.map_err(|error| error.to_string())?;
        let jetstream = jetstream::ContextBuilder::new().timeout(ACK_TIMEOUT).build(client.clone());
        Ok(Self { client, jetstream, settings })
    }

    /// Makes the stream, for nobody else has.
    async fn make_stream(&self) -> Result<(), Error> {
        let config = stream::Config {
            name: self.settings.stream.clone(),
            subjects: vec![format!("{}.>", self.settings.prefix)],
            ..stream::Config::default()
        };
        let made = self.jetstream.create_stream(config).await;
        made.map(drop).map_err(|error| {
            Error(format!("no stream takes {}.>, and one cannot be made: {error}", self.settings.prefix))
        })
    }

    async fn send(&self, subject: String, message: PublishMessage) -> Result<(), Sent> {
        // What the client would keep for later could come after what is sent then.
        if self.client.connection_state() != State::Connected {
            return Err(Sent::Not("there is no connection to the NATS server".to_owned()));
        }
        let failed = |error: jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::StreamNotFound => Sent::NoStream,
            _ => Sent::Not(format!("the NATS server did not take an event: {error}")),
        };
        self.jetstream.send_publish(subject, message).await.map_err(failed)?.await.map_err(failed)?;
        Ok(())
    }
}

enum Sent {
    NoStream,
    Not(String),
}

#[async_trait]
impl Sink for Nats {
    async fn publish(&self, message: Message) -> Result<(), Error> {
        let subject = subject(&self.settings.prefix, &message);
        let publish = PublishMessage::build().payload(message.body.into()).message_id(&message.id);
        let sent = match self.send(subject.clone(), publish.clone()).await {
            Err(Sent::NoStream) => {
                self.make_stream().await?;
                self.send(subject, publish).await
            }
            sent => sent,
        };
        match sent {
            Ok(()) => Ok(()),
            Err(Sent::NoStream) => Err(Error("no stream takes the events".to_owned())),
            Err(Sent::Not(why)) => Err(Error(why)),
        }
    }
}

/// Names may hold dots, which subjects cannot: a dot is `%2E`.
fn subject(prefix: &str, message: &Message) -> String {
    let token = |name: &str| name.replace('.', "%2E");
    format!("{prefix}.{}.{}.{}", token(&message.tenant), token(message.job_id.as_str()), token(&message.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_as_many_parts_whatever_is_in_a_name() {
        let message = |tenant: &str, job: &str| Message {
            id: String::new(),
            tenant: tenant.to_owned(),
            job_id: job.parse().unwrap(),
            kind: "claimed".to_owned(),
            body: Vec::new(),
        };
        assert_eq!(subject("millrace.jobs", &message("acme", "j-1")), "millrace.jobs.acme.j-1.claimed");
        assert_eq!(subject("m", &message("a.b", "c.d.mp4")), "m.a%2Eb.c%2Ed%2Emp4.claimed");
    }

    #[test]
    fn what_is_no_server_subject_or_stream_is_refused_by_its_setting() {
        let settings = |server: &str, prefix: &str, stream: &str| Settings {
            servers: vec![server.to_owned()],
            prefix: prefix.to_owned(),
            stream: stream.to_owned(),
            credentials: None,
            ca: None,
        };
        assert_eq!(settings("nats://u:secret@h:4222", "millrace.jobs", "jobs").check(), Ok(()));
        assert_eq!(settings("tls://h", "m", "jobs").check(), Ok(()));
        for (server, prefix, stream) in [
            ("http://u:secret@h", "m", "s"),
            ("h:4222", "m", "s"),
            ("nats://h", "m.*", "s"),
            ("nats://h", "m..a", "s"),
            ("nats://h", "", "s"),
            ("nats://h", "m", "a.b"),
        ] {
            let (setting, _) = settings(server, prefix, stream).check().unwrap_err();
            let wanted = match () {
                () if server != "nats://h" => "--events",
                () if prefix != "m" => "--events-subject",
                () => "--events-stream",
            };
            assert_eq!(setting, wanted, "{server} {prefix} {stream}");
        }
    }
}
