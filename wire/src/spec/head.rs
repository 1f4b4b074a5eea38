//! What routing reads of a body, without making anything of the rest.

use serde::Deserialize;

use super::fields::{Fields, highest_first, object};
use super::{
    DURATION_HINT_MAX_S, Priority, RUNGS_MAX, Resolution, SIZE_HINT_MAX_BYTES, SPEC_BYTES_MAX, SpecHead,
};
use crate::problem::Problem;

/// Reads it.
///
/// # Errors
/// As [`SpecHead::peek`].
pub(super) fn read(body: &[u8]) -> Result<SpecHead, Problem> {
    // What is odd or wrong is read, and said, by who looks at all of it.
    plain(body).map_or_else(|| whole(body), Ok)
}

/// The fields of a body that has nothing odd in them: each once, its strings without escapes.
#[derive(Deserialize)]
struct Plain<'a> {
    job_id: Option<&'a str>,
    priority: Option<&'a str>,
    input_path: Option<&'a str>,
    duration_hint_s: Option<u64>,
    size_hint_bytes: Option<u64>,
    #[serde(borrow)]
    resolutions: Option<Vec<&'a str>>,
}

fn plain(body: &[u8]) -> Option<SpecHead> {
    // Of a list serde would make a struct, too.
    if body.len() > SPEC_BYTES_MAX || body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let read: Plain<'_> = serde_json::from_slice(body).ok()?;
    let rungs = read.resolutions.as_deref().map_or(Some(Vec::new()), |names| {
        let rungs = names.iter().map(|name| Resolution::parse(name));
        (1..=RUNGS_MAX).contains(&names.len()).then(|| rungs.collect())?
    })?;
    Some(SpecHead {
        job_id: read.job_id.map(str::parse).transpose().ok()?,
        priority: match read.priority {
            None => Priority::default(),
            Some(name) => Priority::ALL.into_iter().find(|priority| priority.as_str() == name)?,
        },
        input_pool: read.input_path.and_then(pool),
        duration_hint_s: read
            .duration_hint_s
            .filter(|s| (1..=DURATION_HINT_MAX_S).contains(s))
            .map(|s| s as u32),
        size_hint_bytes: read.size_hint_bytes.filter(|bytes| (1..=SIZE_HINT_MAX_BYTES).contains(bytes)),
        heights: heights(highest_first(rungs)),
    })
}

fn whole(body: &[u8]) -> Result<SpecHead, Problem> {
    let mut fields = Fields(object(body)?);
    let job_id = fields.job_id()?;
    let path = fields.0.get("input_path").and_then(serde_json::Value::as_str);
    let input_pool = path.and_then(pool);
    Ok(SpecHead {
        job_id,
        priority: fields.priority()?.unwrap_or_default(),
        input_pool,
        duration_hint_s: fields
            .integer("duration_hint_s", 1, DURATION_HINT_MAX_S)
            .ok()
            .flatten()
            .map(|s| s as u32),
        size_hint_bytes: fields.integer("size_hint_bytes", 1, SIZE_HINT_MAX_BYTES).ok().flatten(),
        heights: heights(fields.resolutions().unwrap_or_default()),
    })
}

fn pool(path: &str) -> Option<String> {
    path.split_once('/').map(|(pool, _)| pool.to_owned())
}

fn heights(rungs: Vec<Resolution>) -> Vec<u32> {
    rungs.into_iter().map(Resolution::height).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plain_body_is_read_as_any_other() {
        let body = br#"{"input_path":"aws/k/v.mp4","resolutions":["480p","1080p","480p"],"priority":"batch","labels":
            {"job_id":"b","priority":7},"job_id":"a","duration_hint_s":183,"size_hint_bytes":114623512,"strict":null}"#;
        let read = plain(body).unwrap();
        assert_eq!(read, whole(body).unwrap());
        assert_eq!(
            (read.job_id.unwrap().as_str(), read.priority, read.heights),
            ("a", Priority::Batch, vec![1080, 480])
        );
        assert_eq!((read.input_pool.as_deref(), read.duration_hint_s), (Some("aws"), Some(183)));
        for odd in [
            r#"{"job_id":"a","job_id":"c"}"#,
            r#"{"job\u005fid":"a","input_path":"aws\/k"}"#,
            r#"[null,"live"]"#,
            r#"{"priority":"urgent"}"#,
            r#"{"resolutions":[]}"#,
            r#"{"resolutions":"1080p"}"#,
            r#"{"job_id":7}"#,
            r#"{"duration_hint_s":7.5}"#,
            "{} {}",
        ] {
            assert_eq!(plain(odd.as_bytes()), None, "{odd}");
        }
        let last = whole(br#"{"job_id":"a","job_id":"c"}"#).unwrap();
        assert_eq!(last.job_id.unwrap().as_str(), "c");
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused() {
        let long = format!("{{\"x\":\"{}\"}}", "x".repeat(SPEC_BYTES_MAX));
        assert!(read(long.as_bytes()).is_err());
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::json;
        prop_oneof![
            Just(json!(null)),
            Just(json!(true)),
            (-9i64..100_000).prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            "(a|aws/k|live|batch|1080p|\\PC{0,3})".prop_map(|text| json!(text)),
            proptest::collection::vec("(1080p|720p|360p|4k)", 0..10).prop_map(|names| json!(names)),
        ]
    }

    proptest! {
        #[test]
        fn whoever_reads_it_reads_the_same(fields in proptest::collection::hash_map(
            "(job_id|priority|input_path|duration_hint_s|size_hint_bytes|resolutions|other)", value(), 0..7)) {
            let body = serde_json::to_vec(&fields).unwrap();
            if let Some(read) = plain(&body) {
                prop_assert_eq!(Ok(read), whole(&body));
            }
        }

        #[test]
        fn no_body_is_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }
    }
}
