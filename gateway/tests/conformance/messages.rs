//! Which requests are well-formed: section 8 of RFC 9113.

use super::case::{Case, PROTOCOL_ERROR, Want, case};
use super::frames::{PATH, WHOLE, asking, asking_block, field, headers, writing};
use crate::front::h2raw::{self, END_HEADERS, HEADERS, PUSH_PROMISE};

/// All that is malformed is this (8.1.1).
const MALFORMED: Want = Want::StreamError(&[PROTOCOL_ERROR]);

/// h2 takes such fields out of trailers and goes on: nobody behind it sees them, but the request should be refused.
pub(super) const PSEUDO_FIELDS_IN_TRAILERS: &str = "8.1 pseudo-header fields in trailers are malformed";

pub(super) fn cases() -> Vec<Case> {
    [exchanges(), fields(), pseudo_fields()].into_iter().flatten().collect()
}

fn exchanges() -> Vec<Case> {
    let sized = || h2raw::headers(1, &writing(&[("content-length", "1")]), false);
    let second = |fields: &[(String, String)]| h2raw::frame(HEADERS, END_HEADERS, 1, &h2raw::block(fields));
    vec![
        case("8.1 a second HEADERS without END_STREAM is malformed")
            .sends([
                h2raw::headers(1, &writing(&[]), false),
                h2raw::data(1, b"test", false),
                second(&[field("x-test", "ok")]),
            ])
            .wants(MALFORMED),
        case(PSEUDO_FIELDS_IN_TRAILERS)
            .sends([
                h2raw::headers(1, &writing(&[]), false),
                h2raw::data(1, b"test", false),
                h2raw::frame(HEADERS, WHOLE, 1, &h2raw::block(&[field(":method", "PUT")])),
            ])
            .wants(MALFORMED),
        case("8.1.1 a body of another length than content-length is malformed")
            .sends([sized(), h2raw::data(1, b"test", true)])
            .wants(MALFORMED),
        case("8.1.1 bodies whose sum is another than content-length are malformed")
            .sends([sized(), h2raw::data(1, b"test", false), h2raw::data(1, b"test", true)])
            .wants(MALFORMED),
        case("8.4 PUSH_PROMISE of a client is a connection error PROTOCOL_ERROR")
            .sends([h2raw::frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 3][..], &asking_block()].concat(),
            )])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

fn fields() -> Vec<Case> {
    let with = |name: &str, value: &str| headers(1, &asking(&[(name, value)]));
    vec![
        case("8.2 capitals in a field's name are malformed").sends([with("X-TEST", "ok")]).wants(MALFORMED),
        case("8.2.2 connection-specific fields are malformed")
            .sends([with("connection", "keep-alive")])
            .wants(MALFORMED),
        case("8.2.2 a TE field with anything but trailers is malformed")
            .sends([with("te", "trailers, deflate")])
            .wants(MALFORMED),
    ]
}

fn pseudo_fields() -> Vec<Case> {
    let with = |name: &str, value: &str| headers(1, &asking(&[(name, value)]));
    let without = |name: &str| {
        let mut fields = asking(&[]);
        fields.retain(|(known, _)| known != name);
        headers(1, &fields)
    };
    vec![
        case("8.3 an unknown pseudo-header field is malformed").sends([with(":test", "ok")]).wants(MALFORMED),
        case("8.3 a response's pseudo-header field in a request is malformed")
            .sends([with(":status", "200")])
            .wants(MALFORMED),
        case("8.3 pseudo-header fields after others are malformed")
            .sends([headers(1, &[vec![field("x-test", "ok")], asking(&[])].concat())])
            .wants(MALFORMED),
        case("8.3.1 an empty :path is malformed")
            .sends([headers(1, &h2raw::request("GET", ""))])
            .wants(MALFORMED),
        case("8.3.1 a request without :method is malformed").sends([without(":method")]).wants(MALFORMED),
        case("8.3.1 a request without :scheme is malformed").sends([without(":scheme")]).wants(MALFORMED),
        case("8.3.1 a request without :path is malformed").sends([without(":path")]).wants(MALFORMED),
        case("8.3.1 two :method are malformed").sends([with(":method", "GET")]).wants(MALFORMED),
        case("8.3.1 two :scheme are malformed").sends([with(":scheme", "http")]).wants(MALFORMED),
        case("8.3.1 two :path are malformed").sends([with(":path", PATH)]).wants(MALFORMED),
    ]
}
