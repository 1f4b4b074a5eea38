//! What each frame may and must not be: sections 6 and 7 of RFC 9113.

use super::case::{
    CANCEL, Case, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR, STREAM_CLOSED, Want, case,
};
use super::frames::{
    WHOLE, asking_block, block, continuation, get, goaway, ping, priority, put, reset, unfinished, weight,
    window, writing,
};
use crate::front::h2raw::{
    self, ACK, CONTINUATION, END_STREAM, GOAWAY, PADDED, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

const DATA: [u8; 8] = *b"a-ping-8";
/// Identifiers of settings (6.5.2).
const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
/// The largest window that there is.
const WINDOW_MAX: u32 = (1 << 31) - 1;

pub(super) fn cases() -> Vec<Case> {
    let all = [
        data(),
        headers(),
        priorities_and_resets(),
        settings(),
        pings(),
        windows(),
        continuations(),
        codes(),
    ];
    all.into_iter().flatten().collect()
}

fn data() -> Vec<Case> {
    vec![
        case("6.1 DATA on stream 0 is a connection error PROTOCOL_ERROR")
            .sends([h2raw::data(0, b"test", true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.1 DATA on a stream that is not open is a stream error STREAM_CLOSED")
            .sends([h2raw::headers(1, &writing(&[]), true), h2raw::data(1, b"test", true)])
            .wants(Want::StreamError(&[STREAM_CLOSED])),
        case("6.1 padding as long as the frame is a connection error PROTOCOL_ERROR")
            .sends([
                h2raw::headers(1, &writing(&[("content-length", "4")]), false),
                h2raw::frame(h2raw::DATA, PADDED | END_STREAM, 1, b"\x06test"),
            ])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        case("6.2 PRIORITY after HEADERS without END_HEADERS is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, true), priority(1, &weight(0, false, 255)), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.2 another stream's HEADERS after one without END_HEADERS is PROTOCOL_ERROR")
            .sends([unfinished(1, true), get(3), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.2 HEADERS on stream 0 is a connection error PROTOCOL_ERROR")
            .sends([get(0)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.2 padding longer than the frame is PROTOCOL_ERROR")
            .sends([{
                let fields = asking_block();
                let length = u8::try_from(fields.len() + 1).unwrap();
                block(WHOLE | PADDED, 1, &[&[length][..], &fields].concat())
            }])
            .wants(Want::StreamError(&[PROTOCOL_ERROR])),
    ]
}

fn priorities_and_resets() -> Vec<Case> {
    vec![
        case("6.3 PRIORITY on stream 0 is a connection error PROTOCOL_ERROR")
            .sends([priority(0, &weight(0, false, 255))])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.3 PRIORITY of another length than 5 is a stream error FRAME_SIZE_ERROR")
            .sends([get(1), h2raw::frame(PRIORITY, 0, 1, &[0; 4])])
            .wants(Want::StreamError(&[FRAME_SIZE_ERROR])),
        case("6.4 RST_STREAM on stream 0 is a connection error PROTOCOL_ERROR")
            .sends([reset(0, CANCEL)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.4 RST_STREAM on an idle stream is a connection error PROTOCOL_ERROR")
            .sends([reset(1, CANCEL)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.4 RST_STREAM of another length than 4 is a connection error FRAME_SIZE_ERROR")
            .sends([get(1), h2raw::frame(RST_STREAM, 0, 1, &[0; 3])])
            .wants(Want::StreamError(&[FRAME_SIZE_ERROR])),
    ]
}

fn settings() -> Vec<Case> {
    let one = |id: u16, value: u32| h2raw::settings(&[(id, value)]);
    vec![
        case("6.5 an acknowledgement that carries something is a connection error FRAME_SIZE_ERROR")
            .sends([h2raw::frame(SETTINGS, ACK, 0, &[0])])
            .wants(Want::ConnectionError(&[FRAME_SIZE_ERROR])),
        case("6.5 SETTINGS on a stream is a connection error PROTOCOL_ERROR")
            .sends([h2raw::frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100])])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.5 SETTINGS of a length that is no multiple of 6 is a connection error FRAME_SIZE_ERROR")
            .sends([h2raw::frame(SETTINGS, 0, 0, &[0, 3, 0])])
            .wants(Want::StreamError(&[FRAME_SIZE_ERROR])),
        case("6.5.2 SETTINGS_ENABLE_PUSH other than 0 and 1 is a connection error PROTOCOL_ERROR")
            .sends([one(ENABLE_PUSH, 2)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.5.2 SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1 is a connection error FLOW_CONTROL_ERROR")
            .sends([one(INITIAL_WINDOW_SIZE, WINDOW_MAX + 1)])
            .wants(Want::ConnectionError(&[FLOW_CONTROL_ERROR])),
        case("6.5.2 SETTINGS_MAX_FRAME_SIZE below 2^14 is a connection error PROTOCOL_ERROR")
            .sends([one(MAX_FRAME_SIZE, (1 << 14) - 1)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.5.2 SETTINGS_MAX_FRAME_SIZE above 2^24-1 is a connection error PROTOCOL_ERROR")
            .sends([one(MAX_FRAME_SIZE, 1 << 24)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.5.2 a setting with an unknown identifier is ignored")
            .sends([one(0xff, 1), ping(DATA)])
            .wants(Want::Pong(DATA)),
        case("6.5.3 values are processed in the order they appear: the last one counts")
            .sends([h2raw::settings(&[(INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)])])
            .wants(Want::SettingsAck)
            .sends([get(1)])
            .wants(Want::DataOf(1)),
        case("6.5.3 settings are acknowledged").sends([one(ENABLE_PUSH, 0)]).wants(Want::SettingsAck),
    ]
}

fn pings() -> Vec<Case> {
    vec![
        case("6.7 a ping is answered with what it carries").sends([ping(DATA)]).wants(Want::Pong(DATA)),
        case("6.7 the answer to a ping is not answered")
            .sends([h2raw::frame(PING, ACK, 0, b"an-echo!"), ping(DATA)])
            .wants(Want::Pong(DATA)),
        case("6.7 PING on a stream is a connection error PROTOCOL_ERROR")
            .sends([h2raw::frame(PING, 0, 1, &DATA)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.7 PING of another length than 8 is a connection error FRAME_SIZE_ERROR")
            .sends([h2raw::frame(PING, 0, 0, &[0; 6])])
            .wants(Want::ConnectionError(&[FRAME_SIZE_ERROR])),
        case("6.8 GOAWAY on a stream is a connection error PROTOCOL_ERROR")
            .sends([h2raw::frame(GOAWAY, 0, 1, &[0; 8])])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

fn windows() -> Vec<Case> {
    let initial = |size: u32| h2raw::settings(&[(INITIAL_WINDOW_SIZE, size)]);
    vec![
        case("6.9 an increment of 0 for the connection is a connection error PROTOCOL_ERROR")
            .sends([window(0, 0)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.9 an increment of 0 for a stream is a stream error PROTOCOL_ERROR")
            .sends([put(1), window(1, 0)])
            .wants(Want::StreamError(&[PROTOCOL_ERROR])),
        case("6.9 WINDOW_UPDATE of another length than 4 is a connection error FRAME_SIZE_ERROR")
            .sends([h2raw::frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])])
            .wants(Want::ConnectionError(&[FRAME_SIZE_ERROR])),
        case("6.9.1 no more comes than the window allows")
            .sends([initial(1)])
            .wants(Want::SettingsAck)
            .sends([get(1)])
            .wants(Want::DataOf(1)),
        case("6.9.1 a connection's window above 2^31-1 is answered by GOAWAY FLOW_CONTROL_ERROR")
            .sends([window(0, WINDOW_MAX), window(0, WINDOW_MAX)])
            .wants(Want::GoAway(FLOW_CONTROL_ERROR)),
        case("6.9.1 a stream's window above 2^31-1 is answered by RST_STREAM FLOW_CONTROL_ERROR")
            .sends([put(1), window(1, WINDOW_MAX), window(1, WINDOW_MAX)])
            .wants(Want::Reset(1, FLOW_CONTROL_ERROR)),
        case("6.9.2 a changed initial window size counts for streams that are open")
            .sends([initial(0)])
            .wants(Want::SettingsAck)
            .sends([get(1), initial(1)])
            .wants(Want::DataOf(1)),
        case("6.9.2 a window may become negative, and is waited for")
            .sends([initial(3)])
            .wants(Want::SettingsAck)
            .sends([get(1)])
            .wants(Want::DataOf(3))
            .sends([initial(2)])
            .wants(Want::SettingsAck)
            .sends([window(1, 2)])
            .wants(Want::DataOf(1)),
        case("6.9.2 an initial window size above 2^31-1 is a connection error FLOW_CONTROL_ERROR")
            .sends([initial(u32::MAX)])
            .wants(Want::ConnectionError(&[FLOW_CONTROL_ERROR])),
    ]
}

fn continuations() -> Vec<Case> {
    let empty = |stream: u32| h2raw::frame(CONTINUATION, 0, stream, &[]);
    vec![
        case("6.10 any number of CONTINUATION may follow HEADERS")
            .sends([unfinished(1, true), continuation(1, false), empty(1), continuation(1, true)])
            .wants(Want::Answer(1)),
        case("6.10 another frame after CONTINUATION without END_HEADERS is PROTOCOL_ERROR")
            .sends([unfinished(1, false), continuation(1, false), h2raw::data(1, b"test", true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.10 CONTINUATION on stream 0 is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, true), continuation(0, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.10 CONTINUATION after HEADERS with END_HEADERS is a connection error PROTOCOL_ERROR")
            .sends([get(1), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.10 CONTINUATION after CONTINUATION with END_HEADERS is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, true), continuation(1, true), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.10 CONTINUATION after DATA is a connection error PROTOCOL_ERROR")
            .sends([put(1), h2raw::data(1, b"test", true), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
    ]
}

fn codes() -> Vec<Case> {
    vec![
        case("7 GOAWAY with an unknown code is nothing special")
            .sends([goaway(0, 0xff), ping(DATA)])
            .wants(Want::PongOrClosed(DATA)),
        case("7 RST_STREAM with an unknown code is nothing special")
            .sends([put(1), reset(1, 0xff), ping(DATA)])
            .wants(Want::PongOrClosed(DATA)),
    ]
}
