//! What is looked for in a request's header, found in one pass over it.
//!
//! A header is a hash map, but to look a name up costs as much as to pass ten by: to hash it, and to compare it.

use http::{HeaderMap, HeaderValue};

use crate::{auth, trace};

/// What a field takes beside its name and value: colon, space, and the line's end.
const FRAME_BYTES: usize = 4;

/// A field that may be there once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Field<'a> {
    /// It is not.
    #[default]
    Absent,
    /// It is, once.
    Once(&'a HeaderValue),
    /// It is there more than once, so it says nothing.
    Often,
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Often => Self::Often,
        };
    }

    /// Its value, if it says something.
    pub fn once(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Once(value) => Some(value),
            Self::Absent | Self::Often => None,
        }
    }
}

/// What a header has of what is looked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Glance<'a> {
    /// [`trace::TRACEPARENT`]
    pub traceparent: Field<'a>,
    /// [`trace::REQUEST_ID`]
    pub request_id: Field<'a>,
    /// `Authorization`
    pub authorization: Field<'a>,
    /// [`auth::API_KEY`]
    pub api_key: Field<'a>,
    /// Whether the body comes in chunks, or in whatever else `Transfer-Encoding` says.
    pub transfer_encoding: bool,
    /// How many fields there are.
    pub fields: usize,
    /// What they take as HTTP/1 would write them, in bytes.
    pub bytes: usize,
}

impl<'a> From<&'a HeaderMap> for Glance<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        let mut seen = Self { fields: headers.len(), ..Self::default() };
        for (name, value) in headers {
            let name = name.as_str();
            seen.bytes += name.len() + value.len() + FRAME_BYTES;
            match name {
                trace::TRACEPARENT => seen.traceparent.add(value),
                trace::REQUEST_ID => seen.request_id.add(value),
                auth::API_KEY => seen.api_key.add(value),
                "authorization" => seen.authorization.add(value),
                "transfer-encoding" => seen.transfer_encoding = true,
                _ => {}
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_finds_what_stands_once_and_counts_all() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-api-key", "a"), ("X-Request-Id", "b"), ("accept", "c"), ("accept", "d")] {
            headers.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        let seen = Glance::from(&headers);
        assert_eq!(seen.api_key.once().unwrap(), "a");
        assert_eq!(seen.request_id.once().unwrap(), "b");
        assert_eq!((seen.authorization, seen.transfer_encoding), (Field::Absent, false));
        assert_eq!((seen.fields, seen.bytes), (4, 9 + 12 + 6 + 6 + 4 + 4 * FRAME_BYTES));
        headers.append("x-api-key", "a".parse().unwrap());
        headers.append("transfer-encoding", "chunked".parse().unwrap());
        let seen = Glance::from(&headers);
        assert_eq!((seen.api_key, seen.api_key.once()), (Field::Often, None));
        assert!(seen.transfer_encoding);
    }
}
