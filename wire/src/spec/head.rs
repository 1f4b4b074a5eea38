//! A body's fields that routing reads, without making anything of the others.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::SPEC_BYTES_MAX;
use super::fields::object;
use crate::problem::Problem;

/// The fields that [`super::SpecHead`] is made of.
const READ: [&str; 6] =
    ["job_id", "priority", "input_path", "duration_hint_s", "size_hint_bytes", "resolutions"];

/// Those fields of a body, whatever they are.
pub(super) fn head(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.len() <= SPEC_BYTES_MAX
        && let Ok(Head(fields)) = serde_json::from_slice(body)
    {
        return Ok(fields);
    }
    // What is wrong is said by who reads all of it.
    object(body)
}

struct Head(Map<String, Value>);

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

/// A field's name: its place in [`READ`].
struct Name(Option<usize>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameReader)
    }
}

struct NameReader;

impl Visitor<'_> for NameReader {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name(READ.iter().position(|known| *known == name)))
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Head;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut body: A) -> Result<Head, A::Error> {
        let mut fields = Map::new();
        while let Some(Name(place)) = body.next_key()? {
            match place {
                // The last of a name counts, as it does where all of them are read.
                Some(place) => drop(fields.insert(READ[place].to_owned(), body.next_value()?)),
                None => drop(body.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Head(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_routing_reads_is_read_as_when_everything_is() {
        for body in [
            r#"{"job_id":"a","labels":{"job_id":"b"},"job_id":"c","x":[1,{"priority":"live"}],"priority":"batch"}"#,
            r#" {"resolutions" : ["1080p"], "strict":true , "duration_hint_s":7,"size_hint_bytes":null}"#,
            r#"{"job\u005fid":"a","input_path":"aws/k"}"#,
            "{}",
        ] {
            let mut all = object(body.as_bytes()).unwrap();
            all.retain(|name, _| READ.contains(&name.as_str()));
            assert_eq!(head(body.as_bytes()).unwrap(), all, "{body}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused_in_the_same_words() {
        let long = format!("{{\"x\":\"{}\"}}", "x".repeat(SPEC_BYTES_MAX));
        for bad in ["", "[]", "7", "{", "{\"job_id\":}", "{} {}", "{\"a\":1,}", "\"job_id\"", &long] {
            assert_eq!(head(bad.as_bytes()), Err(object(bad.as_bytes()).unwrap_err()), "{bad:.40}");
        }
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = head(&body);
        }
    }
}
