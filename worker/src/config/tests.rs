use super::*;

fn file(text: &str) -> Result<Settings, FileError> {
    File::from_text("worker.toml", text).parse()
}

#[test]
fn the_defaults_hold() {
    let config = Settings::default().resolve(None).unwrap();
    assert_eq!(
        (config.slots, config.lease, config.heartbeat),
        (1, Duration::from_secs(30), Duration::from_secs(5))
    );
    assert!(config.listen.ip().is_loopback() && config.allow_private_sources.is_empty());
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let from_file =
        file("slots = 4\nqueue-max = 3\nlease = \"12s\"\nallow-private-sources = [\"10.0.0.0/8\"]").unwrap();
    let flags = Settings { slots: Some(2), ..Settings::default() };
    let config = flags.over(from_file).resolve(None).unwrap();
    assert_eq!((config.slots, config.queue_max, config.lease), (2, 3, Duration::from_secs(12)));
    assert_eq!(config.heartbeat, Duration::from_secs(2));
    assert_eq!(config.allow_private_sources.len(), 1);
}

const TWO_BUCKETS: &str = "aws=s3://a,gcp=gs://b";
const TWO_SERVERS: &str = "postgres://h/d,postgres://i/d";

/// A worker of `aws` that is to keep second copies in `gcp`.
fn dual(store: &str, objects: &str) -> Settings {
    Settings {
        pool: "aws".parse().ok(),
        second_pool: "gcp".parse().ok(),
        store: Some(store.to_owned()),
        objects: Some(objects.to_owned()),
        ..Settings::default()
    }
}

#[test]
fn dual_needs_a_store_and_buckets_in_two_places() {
    let two = dual(TWO_SERVERS, TWO_BUCKETS).resolve(None).unwrap();
    assert_eq!(two.second_pool.unwrap().as_str(), "gcp");
    let one = Settings { store_replicated: Some(true), ..dual("postgres://quorum/d", TWO_BUCKETS) };
    assert!(one.resolve(None).unwrap().store_replicated);
    assert_eq!(Settings::default().resolve(None).unwrap().second_pool, None);
}

fn origins(said: &[&str]) -> Settings {
    let said = said.iter().map(|&text| text.to_owned()).collect();
    Settings { media_origins: Some(said), ..Settings::default() }
}

#[test]
fn origins_are_any_or_as_browsers_write_them() {
    assert_eq!(origins(&["*"]).resolve(None).unwrap().media_origins, Origins::Any);
    let config = origins(&["https://a.example", "http://localhost:3000"]).resolve(None).unwrap();
    assert!(matches!(config.media_origins, Origins::Only(origins) if origins.len() == 2));
}

#[test]
fn tls_wants_a_pair_and_says_which_file_is_bad() {
    let said = |certificate: &str, key: &str, client_ca: &str| {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let (tls_certificate, tls_key) = (path(certificate), path(key));
        let settings =
            Settings { tls_certificate, tls_key, tls_client_ca: path(client_ca), ..Settings::default() };
        settings.resolve(None).unwrap_err().to_string()
    };
    assert!(said("c", "", "").starts_with("--tls-key is not set: it must be set with --tls-certificate"));
    assert!(said("", "k", "").starts_with("--tls-certificate is not set"));
    assert!(said("", "", "ca").starts_with("--tls-certificate is not set"), "a CA alone protects nothing");
    assert!(said("/no/c", "/no/k", "").starts_with("--tls-certificate: /no/c cannot be read"));
}

#[test]
fn what_cannot_hold_is_named() {
    let unknown = file("slots = 1\ncolour = 2").unwrap_err().to_string();
    assert!(unknown.starts_with("worker.toml:2:1: colour: unknown field"), "{unknown}");
    for (settings, names) in [
        (Settings { slots: Some(0), ..Settings::default() }, "--slots is 0"),
        (Settings { lease: Some(Duration::from_millis(5)), ..Settings::default() }, "--lease is 5ms"),
        (Settings { heartbeat: Some(Duration::from_secs(20)), ..Settings::default() }, "--heartbeat is 20s"),
        (Settings { media_expiry: Some(Duration::ZERO), ..Settings::default() }, "--media-expiry is 0s"),
        (Settings { stall_timeout: Some(Duration::ZERO), ..Settings::default() }, "--stall-timeout is 0s"),
        (Settings { store_timeout: Some(Duration::ZERO), ..Settings::default() }, "--store-timeout is 0s"),
        (
            Settings { store_connect_timeout: Some(Duration::from_secs(6)), ..Settings::default() },
            "--store-connect-timeout is 6s: it must be from 100ms to 5s",
        ),
        (
            Settings { range: Some(Duration::from_secs(4)), ..Settings::default() },
            "--range is 4s: it must be 0s, or from 5s to 1h",
        ),
        (
            dual("sqlite:jobs.db", TWO_BUCKETS),
            "--second-pool is gcp, for dual: it must be left out with this --store",
        ),
        (
            dual("postgres://h/d", TWO_BUCKETS),
            "--second-pool is gcp, for dual: it must be left out with a --store of one",
        ),
        (
            dual(TWO_SERVERS, "dir"),
            "--second-pool is gcp, for dual: it must be left out with these --objects: aws and",
        ),
        (
            dual(TWO_SERVERS, "aws=dir,gcp=gs://b"),
            "--second-pool is gcp, for dual: it must be left out with these --objects: a directory",
        ),
        (
            dual(TWO_SERVERS, "aws=s3://b,gcp=s3://b"),
            "--second-pool is gcp, for dual: it must be left out with these --objects: aws and gcp have the same",
        ),
        (
            Settings { pool: "gcp".parse().ok(), ..dual(TWO_SERVERS, TWO_BUCKETS) },
            "--second-pool is gcp, for dual: it must be another pool",
        ),
        (Settings { store_connections: Some(0), ..Settings::default() }, "--store-connections is 0"),
        (
            Settings { webhook_timeout: Some(Duration::ZERO), ..Settings::default() },
            "--webhook-timeout is 0s: it must be from 100ms to 1m",
        ),
        (
            Settings { events: Some(vec!["http://u:secret@h".to_owned()]), ..Settings::default() },
            "--events is not usable: it must be nats://",
        ),
        (Settings { events_stream: Some("s".to_owned()), ..Settings::default() }, "--events-stream is set"),
        (
            Settings { webhook_secret_file: Some("/no/secret".into()), ..Settings::default() },
            "--webhook-secret-file is /no/secret cannot be read",
        ),
        (origins(&["*", "https://a.example"]), "--media-origins is \"*\""),
        (origins(&["https://a.example/"]), "--media-origins is \"https://a.example/\""),
        (origins(&["a.example"]), "--media-origins is \"a.example\""),
        (origins(&["https://a.example", ""]), "--media-origins is \"\""),
    ] {
        let error = settings.resolve(None).unwrap_err().to_string();
        assert!(error.starts_with(names), "{error}");
    }
}
