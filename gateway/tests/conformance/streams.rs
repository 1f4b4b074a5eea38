//! Streams and their states: section 5 of RFC 9113, and 5.3.1 of RFC 7540.

use super::case::{CANCEL, Case, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, Want, case};
use super::frames::{
    WHOLE, asking_block, block, continuation, get, ping, priority, put, reset, unfinished, unknown, weight,
    window,
};
use crate::front::h2raw::{self, PING, WITH_PRIORITY};

const DATA: [u8; 8] = *b"a-ping-8";
/// Settings by which no body comes, so that an answered stream stays as it is.
const NO_WINDOW: [(u16, u32); 1] = [(4, 0)];

pub(super) fn cases() -> Vec<Case> {
    [idle(), half_closed(), closed(), numbers(), errors()].into_iter().flatten().collect()
}

fn idle() -> Vec<Case> {
    vec![
        case("5.1 idle: PRIORITY is accepted")
            .sends([priority(1, &weight(0, false, 255)), ping(DATA)])
            .wants(Want::Pong(DATA)),
        // 6.1 makes a stream error STREAM_CLOSED of it.
        case("5.1 idle: DATA is a connection error PROTOCOL_ERROR")
            .sends([h2raw::data(1, b"test", true)])
            .wants(Want::StreamError(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        case("5.1 idle: RST_STREAM is a connection error PROTOCOL_ERROR")
            .sends([reset(1, CANCEL)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("5.1 idle: WINDOW_UPDATE is a connection error PROTOCOL_ERROR")
            .sends([window(1, 100)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("5.1 idle: CONTINUATION is a connection error PROTOCOL_ERROR")
            .sends([continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

fn half_closed() -> Vec<Case> {
    vec![
        case("5.1 half-closed (remote): WINDOW_UPDATE is accepted")
            .sends([h2raw::settings(&NO_WINDOW), get(1), window(1, 1)])
            .wants(Want::DataOf(1)),
        case("5.1 half-closed (remote): PRIORITY is accepted")
            .sends([h2raw::settings(&NO_WINDOW), get(1), priority(1, &weight(0, false, 255)), window(1, 1)])
            .wants(Want::DataOf(1)),
        case("5.1 half-closed (remote): RST_STREAM is accepted")
            .sends([get(1), reset(1, CANCEL), ping(DATA)])
            .wants(Want::PongOrClosed(DATA)),
        case("5.1 half-closed (remote): DATA is a stream error STREAM_CLOSED")
            .sends([get(1), h2raw::data(1, b"test", true)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("5.1 half-closed (remote): HEADERS is a stream error STREAM_CLOSED")
            .sends([get(1), get(1)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("5.1 half-closed (remote): CONTINUATION is an error STREAM_CLOSED or PROTOCOL_ERROR")
            .sends([get(1), continuation(1, true)])
            .wants(Want::StreamError(&[STREAM_CLOSED, PROTOCOL_ERROR])),
    ]
}

fn closed() -> Vec<Case> {
    vec![
        case("5.1 closed: PRIORITY is accepted")
            .sends([get(1)])
            .wants(Want::Ended(1))
            .sends([priority(1, &weight(0, false, 255)), ping(DATA)])
            .wants(Want::Pong(DATA)),
        case("5.1 closed by our RST_STREAM: DATA is a stream error STREAM_CLOSED")
            .sends([put(1), reset(1, CANCEL), h2raw::data(1, b"test", true)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("5.1 closed by our RST_STREAM: HEADERS is a stream error STREAM_CLOSED")
            .sends([put(1), reset(1, CANCEL), get(1)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("5.1 closed by our RST_STREAM: CONTINUATION is an error STREAM_CLOSED or PROTOCOL_ERROR")
            .sends([put(1), reset(1, CANCEL), continuation(1, true)])
            .wants(Want::StreamError(&[STREAM_CLOSED, PROTOCOL_ERROR])),
        case("5.1 closed: DATA is a stream error STREAM_CLOSED")
            .sends([get(1)])
            .wants(Want::Ended(1))
            .sends([h2raw::data(1, b"test", true)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("5.1 closed: HEADERS is a connection error STREAM_CLOSED")
            .sends([get(1)])
            .wants(Want::Ended(1))
            .sends([get(1)])
            .wants(Want::ConnectionError(&[STREAM_CLOSED])),
        case("5.1 closed: CONTINUATION is a connection error STREAM_CLOSED or PROTOCOL_ERROR")
            .sends([get(1)])
            .wants(Want::Ended(1))
            .sends([continuation(1, true)])
            .wants(Want::ConnectionError(&[STREAM_CLOSED, PROTOCOL_ERROR])),
    ]
}

fn numbers() -> Vec<Case> {
    vec![
        case("5.1.1 an even stream identifier is a connection error PROTOCOL_ERROR")
            .sends([get(2)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("5.1.1 a smaller stream identifier than before is a connection error PROTOCOL_ERROR")
            .sends([get(5), get(3)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("5.1.2 a stream above SETTINGS_MAX_CONCURRENT_STREAMS is PROTOCOL_ERROR or REFUSED_STREAM")
            .sends_by(|theirs| {
                // A server without a limit is tried with one of its own making, which it may well exceed.
                let most = theirs.streams.unwrap_or(1000);
                let streams = (0..=most).flat_map(|n| get(2 * n + 1));
                h2raw::settings(&NO_WINDOW).into_iter().chain(streams).collect()
            })
            .wants(Want::StreamError(&[PROTOCOL_ERROR, REFUSED_STREAM])),
        case("RFC 7540, 5.3.1 HEADERS that depends on itself is a stream error PROTOCOL_ERROR")
            .sends([block(WHOLE | WITH_PRIORITY, 1, &[weight(1, false, 255), asking_block()].concat())])
            .wants(Want::StreamError(&[PROTOCOL_ERROR])),
        case("RFC 7540, 5.3.1 PRIORITY that depends on itself is a stream error PROTOCOL_ERROR")
            .sends([priority(1, &weight(1, false, 255))])
            .wants(Want::StreamError(&[PROTOCOL_ERROR])),
    ]
}

fn errors() -> Vec<Case> {
    let wrong = || h2raw::frame(PING, 0, 3, &DATA);
    vec![
        case("5.4.1 after a connection error the connection is closed").sends([wrong()]).wants(Want::Closed),
        case("5.4.1 before a connection is closed for an error, GOAWAY says so")
            .sends([wrong()])
            .wants(Want::GoAway(PROTOCOL_ERROR)),
        case("5.5 an extension's frame is ignored").sends([unknown(), ping(DATA)]).wants(Want::Pong(DATA)),
        case("5.5 an extension's frame within a header block is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, true), unknown()])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}
