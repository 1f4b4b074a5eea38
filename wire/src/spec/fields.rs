//! A body's fields: each taken once, and refused by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Format, INPUT_LENGTH_MAX, Input, LABEL_LENGTH_MAX, LABELS_MAX, Priority, REPLICATE_MAX, RUNGS_MAX,
    Resolution, SPEC_BYTES_MAX, TITLE_LENGTH_MAX, WEBHOOK_URL_LENGTH_MAX,
};
use crate::copies::Durability;
use crate::id::{JobId, PoolId};
use crate::problem::{Code, Problem};

fn bad(field: &str, wants: &str, got: &Value) -> Problem {
    let got = got.to_string();
    let got = if got.chars().count() > 80 {
        format!("{}…", got.chars().take(79).collect::<String>())
    } else {
        got
    };
    Problem::new(Code::BadField, format!("{field} must be {wants}, not {got}")).field(field)
}

/// The fields of a body, whatever they are.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.len() > SPEC_BYTES_MAX {
        let detail = format!("a job spec has at most {SPEC_BYTES_MAX} bytes");
        return Err(Problem::new(Code::SpecTooLarge, detail));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => {
            Err(Problem::new(Code::BadJson, "the body is JSON, but not an object like {\"input_url\": …}"))
        }
        Err(error) => Err(Problem::new(Code::BadJson, format!("the body is no JSON: {error}"))),
    }
}

/// Each rung once, the highest first.
pub(super) fn highest_first(mut rungs: Vec<Resolution>) -> Vec<Resolution> {
    rungs.sort_unstable_by(|a, b| b.cmp(a));
    rungs.dedup();
    rungs
}

/// Takes typed values out of a body's fields, each with an error that names the field.
pub(super) struct Fields(pub(super) Map<String, Value>);

impl Fields {
    pub(super) fn take<T>(
        &mut self,
        field: &str,
        wants: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&value).map(Some).ok_or_else(|| bad(field, wants, &value)),
        }
    }

    pub(super) fn integer(&mut self, field: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(value) = self.0.remove(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let number = value.as_u64().filter(|n| (min..=max).contains(n));
        // In words only where somebody reads them.
        number.map(Some).ok_or_else(|| bad(field, &format!("a whole number from {min} to {max}"), &value))
    }

    pub(super) fn job_id(&mut self) -> Result<Option<JobId>, Problem> {
        let Some(value) = self.0.remove("job_id").filter(|v| !v.is_null()) else { return Ok(None) };
        let bad_id = |detail: String| Problem::new(Code::BadJobId, detail).field("job_id");
        let text = value.as_str().ok_or_else(|| bad_id("job_id must be a string".to_owned()))?;
        text.parse().map(Some).map_err(|error: crate::id::BadName| bad_id(error.to_string()))
    }

    pub(super) fn priority(&mut self) -> Result<Option<Priority>, Problem> {
        self.take("priority", "one of live, normal, batch", |v| {
            Priority::ALL.into_iter().find(|p| v.as_str() == Some(p.as_str()))
        })
    }

    /// The default is left out: the same body is the same job, and one that a worker of before can read.
    pub(super) fn durability(&mut self) -> Result<Option<Durability>, Problem> {
        let said = self.take("durability", "one of single, dual", |v| {
            Durability::ALL.into_iter().find(|one| v.as_str() == Some(one.as_str()))
        })?;
        Ok(said.filter(|durability| *durability != Durability::Single))
    }

    /// Pools by name, in order, each once.
    pub(super) fn pools(&mut self, field: &str) -> Result<Vec<PoolId>, Problem> {
        let pools = self.take(field, "a list of 1 to 8 names of pools", |value| {
            let names = value.as_array().filter(|names| (1..=REPLICATE_MAX).contains(&names.len()))?;
            names.iter().map(|name| name.as_str()?.parse().ok()).collect::<Option<Vec<PoolId>>>()
        })?;
        let mut pools = pools.unwrap_or_default();
        pools.sort_unstable();
        pools.dedup();
        Ok(pools)
    }

    pub(super) fn resolutions(&mut self) -> Result<Vec<Resolution>, Problem> {
        let Some(value) = self.0.remove("resolutions").filter(|v| !v.is_null()) else {
            return Ok(Vec::new());
        };
        let names = value
            .as_array()
            .filter(|names| (1..=RUNGS_MAX).contains(&names.len()))
            .ok_or_else(|| bad("resolutions", "a list of 1 to 8 of 1080p, 720p, 480p, 360p", &value))?;
        let mut rungs = Vec::with_capacity(names.len());
        for name in names {
            let rung = name.as_str().and_then(Resolution::parse).ok_or_else(|| {
                let detail =
                    format!("resolutions has {name}; the ladder's rungs are 1080p, 720p, 480p and 360p");
                Problem::new(Code::BadResolution, detail).field("resolutions")
            })?;
            rungs.push(rung);
        }
        Ok(highest_first(rungs))
    }

    /// One name or a list of names.
    pub(super) fn formats(&mut self) -> Result<Vec<Format>, Problem> {
        let wants = "hls, dash, mp4 or audio, or a list of these";
        let formats = self.take("output_format", wants, |value| {
            let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let formats =
                names.iter().map(|name| Format::parse(name.as_str()?)).collect::<Option<Vec<_>>>()?;
            (1..=Format::ALL.len()).contains(&formats.len()).then_some(formats)
        })?;
        let mut formats = formats.unwrap_or_default();
        formats.sort_unstable();
        formats.dedup();
        // The default by its name: before there was another, it was taken and not kept. The same body must stay the
        // same job, and one that a worker of that version can read.
        Ok(if formats == [Format::Hls] { Vec::new() } else { formats })
    }

    pub(super) fn labels(&mut self) -> Result<BTreeMap<String, String>, Problem> {
        let wants = "an object of at most 32 short strings";
        let labels = self.take("labels", wants, |value| {
            let entries = value.as_object().filter(|entries| entries.len() <= LABELS_MAX)?;
            let text = |(name, value): (&String, &Value)| {
                let value = value.as_str()?;
                (name.len() <= LABEL_LENGTH_MAX && value.len() <= LABEL_LENGTH_MAX)
                    .then(|| (name.clone(), value.to_owned()))
            };
            entries.iter().map(text).collect::<Option<BTreeMap<_, _>>>()
        })?;
        Ok(labels.unwrap_or_default())
    }

    pub(super) fn title(&mut self) -> Result<Option<String>, Problem> {
        self.take("title", "1 to 256 characters", |value| {
            let text = value.as_str()?;
            (1..=TITLE_LENGTH_MAX).contains(&text.chars().count()).then(|| text.to_owned())
        })
    }

    pub(super) fn webhook_url(&mut self) -> Result<Option<String>, Problem> {
        self.take("webhook_url", "an https URL of at most 2048 bytes", |value| {
            let text = value.as_str().filter(|text| text.len() <= WEBHOOK_URL_LENGTH_MAX)?;
            (text.starts_with("https://") || text.starts_with("http://")).then(|| text.to_owned())
        })
    }

    pub(super) fn input(&mut self) -> Result<Input, Problem> {
        let text =
            |v: &Value| v.as_str().filter(|s| (1..=INPUT_LENGTH_MAX).contains(&s.len())).map(str::to_owned);
        let url = self.take("input_url", "an http or https URL of at most 4096 bytes", |v| {
            text(v).filter(|s| s.starts_with("http://") || s.starts_with("https://"))
        })?;
        let path = self.take("input_path", "POOL/KEY as an upload's answer names it", text)?;
        match (url, path) {
            (Some(url), None) => Ok(Input::Url(url)),
            (None, Some(path)) => check_input_path(&path).map(|()| Input::Path(path)),
            (Some(_), Some(_)) => {
                let detail = "give input_url or input_path, not both";
                Err(Problem::new(Code::BadField, detail).field("input_path"))
            }
            (None, None) => {
                let detail = "a job needs input_url (http or https) or input_path (of an upload)";
                Err(Problem::new(Code::BadField, detail).field("input_url"))
            }
        }
    }
}

/// An input path is `POOL/` and plain segments: nothing that could leave the store's root.
fn check_input_path(path: &str) -> Result<(), Problem> {
    let plain = |segment: &str| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && !segment.contains(['\\', '\0'])
            && !segment.contains("%")
    };
    if path.contains('/') && path.split('/').all(plain) {
        return Ok(());
    }
    let detail = "input_path must be POOL/KEY as an upload's answer names it, and cannot leave the store";
    Err(Problem::new(Code::BadInputPath, detail).field("input_path"))
}
