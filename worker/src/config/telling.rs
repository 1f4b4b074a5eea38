//! Who is told: webhooks and an event sink.

use std::time::Duration;

use super::{DAY, Error, Settings};
use crate::sink::nats;
use crate::webhooks;

/// How ends are told to whom jobs name.
pub(super) fn webhooks(said: &Settings) -> Result<webhooks::Settings, Error> {
    let secret_file = said.webhook_secret_file.clone();
    if let Some(got) = secret_file.as_deref().and_then(|file| webhooks::secret::Secrets::read(file).err()) {
        let wants = "a file with a secret in each line".to_owned();
        return Err(Error::Limits { setting: "--webhook-secret-file", got, wants });
    }
    let (short, second) = (Duration::from_millis(100), Duration::from_secs(1));
    let within = |setting, said: Option<Duration>, default, limits: std::ops::RangeInclusive<Duration>| {
        let (got, shown) = (said.unwrap_or(default), |time| humantime::format_duration(time).to_string());
        if limits.contains(&got) {
            return Ok(got);
        }
        let wants = format!("from {} to {}", shown(*limits.start()), shown(*limits.end()));
        Err(Error::Limits { setting, got: shown(got), wants })
    };
    Ok(webhooks::Settings {
        secret_file,
        allow_private: said.allow_private_webhooks.clone().unwrap_or_default(),
        timeout: within("--webhook-timeout", said.webhook_timeout, 10 * second, short..=60 * second)?,
        pause: within("--webhook-pause", said.webhook_pause, 5 * second, short / 10..=DAY)?,
        window: within("--webhook-window", said.webhook_window, DAY, Duration::ZERO..=30 * DAY)?,
    })
}

/// The event sink, if there is one.
pub(super) fn events(said: &Settings) -> Result<Option<nats::Settings>, Error> {
    let Some(servers) = said.events.clone().filter(|servers| !servers.is_empty()) else {
        let beside = [
            ("--events-subject", said.events_subject.is_some()),
            ("--events-stream", said.events_stream.is_some()),
            ("--events-credentials-file", said.events_credentials_file.is_some()),
            ("--events-ca", said.events_ca.is_some()),
        ];
        return match beside.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(None),
            Some((setting, _)) => {
                let (got, wants) = ("set".to_owned(), "set beside --events, or not at all".to_owned());
                Err(Error::Limits { setting, got, wants })
            }
        };
    };
    let settings = nats::Settings {
        servers,
        prefix: said.events_subject.clone().unwrap_or_else(|| "millrace.jobs".to_owned()),
        stream: said.events_stream.clone().unwrap_or_else(|| "millrace-jobs".to_owned()),
        credentials: said.events_credentials_file.clone(),
        ca: said.events_ca.clone(),
    };
    // Addresses are not repeated: a password may be in one.
    let refuse = |(setting, wants): (_, &str)| {
        let (got, wants) = ("not usable".to_owned(), wants.to_owned());
        Error::Limits { setting, got, wants }
    };
    settings.check().map_err(refuse)?;
    Ok(Some(settings))
}
