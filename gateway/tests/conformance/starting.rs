//! How a connection begins, what a frame is, and which header blocks there are: sections 3 and 4 of RFC 9113.

use super::case::{CANCEL, COMPRESSION_ERROR, Case, FRAME_SIZE_ERROR, PROTOCOL_ERROR, Want, bare, case};
use super::frames::{
    PATH, WHOLE, asking, asking_block, block, continuation, field, get, goaway, headers, ping, priority, put,
    reset, unfinished, unknown, weight, window, writing,
};
use crate::front::h2raw::{self, END_HEADERS, HEADERS, PING, PREFACE};

const DATA: [u8; 8] = *b"a-ping-8";

pub(super) fn cases() -> Vec<Case> {
    vec![
        bare("3.4 a client begins with the preface and settings, which are accepted")
            .sends([PREFACE.to_vec(), h2raw::settings(&[(4, 65_535)])])
            .wants(Want::SettingsFirst)
            .wants(Want::SettingsAck),
        bare("3.4 the server's settings are the first frame that it sends")
            .sends([h2raw::opening(), get(1)])
            .wants(Want::SettingsFirst),
        bare("3.4 an invalid preface is a connection error PROTOCOL_ERROR")
            .sends([b"PRETTY MUCH NO PREFACE AT ALL\r\n\r\n".to_vec()])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("4.1 a frame of unknown type is ignored").sends([unknown(), ping(DATA)]).wants(Want::Pong(DATA)),
        case("4.1 a flag that the type does not know is ignored")
            .sends([h2raw::frame(PING, 0x16, 0, &DATA)])
            .wants(Want::Pong(DATA)),
        case("4.1 the reserved bit of the stream identifier is ignored")
            .sends([h2raw::frame(PING, 0, 1 << 31, &DATA)])
            .wants(Want::Pong(DATA)),
        case("4.2 a frame of 2^14 octets is received")
            .sends([put(1), h2raw::data(1, &[b'x'; 16_384], true)])
            .wants(Want::Answer(1)),
        case("4.2 a DATA frame above SETTINGS_MAX_FRAME_SIZE is FRAME_SIZE_ERROR")
            .sends([put(1)])
            .sends_by(|theirs| h2raw::data(1, &vec![b'x'; theirs.frame as usize + 1], true))
            .wants(Want::StreamError(&[FRAME_SIZE_ERROR])),
        case("4.2 a HEADERS frame above SETTINGS_MAX_FRAME_SIZE is a connection error FRAME_SIZE_ERROR")
            .sends_by(|theirs| {
                let long = "x".repeat(theirs.frame as usize);
                let fields = asking(&[("x-long", &long)]);
                h2raw::frame(HEADERS, WHOLE, 1, &h2raw::block(&fields))
            })
            .wants(Want::ConnectionError(&[FRAME_SIZE_ERROR])),
        case("4.3 a header block that does not decode is a connection error COMPRESSION_ERROR")
            // A literal that ends before its name.
            .sends([block(WHOLE, 1, &[0x40])])
            .wants(Want::ConnectionError(&[COMPRESSION_ERROR])),
        case("4.3 a PRIORITY frame within a header block is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, false), priority(1, &weight(0, false, 255)), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("4.3 another stream's HEADERS within a header block is a connection error PROTOCOL_ERROR")
            .sends([unfinished(1, false), get(3), continuation(1, true)])
            .wants(Want::ConnectionError(&[PROTOCOL_ERROR])),
        case("6.1 a body in one DATA frame is accepted")
            .sends([put(1), h2raw::data(1, b"test", true)])
            .wants(Want::Answer(1)),
        case("6.1 a body in several DATA frames is accepted")
            .sends([put(1), h2raw::data(1, b"test", false), h2raw::data(1, b"test", true)])
            .wants(Want::Answer(1)),
        case("6.1 a DATA frame with padding is accepted")
            .sends([
                put(1),
                h2raw::frame(h2raw::DATA, h2raw::PADDED | h2raw::END_STREAM, 1, b"\x05test\0\0\0\0\0"),
            ])
            .wants(Want::Answer(1)),
        case("6.2 a request in one HEADERS frame is accepted").sends([get(1)]).wants(Want::Answer(1)),
        case("6.2 a HEADERS frame with padding is accepted")
            .sends([{
                let padded = [&[8][..], &asking_block(), &[0; 8]].concat();
                block(WHOLE | h2raw::PADDED, 1, &padded)
            }])
            .wants(Want::Answer(1)),
        case("6.2 a HEADERS frame with a priority is accepted")
            .sends([{
                let weighed = [weight(0, false, 255), asking_block()].concat();
                block(WHOLE | h2raw::WITH_PRIORITY, 1, &weighed)
            }])
            .wants(Want::Answer(1)),
        case("6.3 a PRIORITY frame with weight 1 is accepted")
            .sends([priority(1, &weight(0, false, 0)), get(1)])
            .wants(Want::Answer(1)),
        case("6.3 a PRIORITY frame with weight 256 is accepted")
            .sends([priority(1, &weight(0, false, 255)), get(1)])
            .wants(Want::Answer(1)),
        case("6.3 a PRIORITY frame with a dependency is accepted")
            .sends([priority(3, &weight(1, false, 0)), get(3)])
            .wants(Want::Answer(3)),
        case("6.3 a PRIORITY frame with an exclusive dependency is accepted")
            .sends([priority(3, &weight(1, true, 0)), get(3)])
            .wants(Want::Answer(3)),
        case("6.3 a PRIORITY frame for an idle stream does not use up those below it")
            .sends([priority(5, &weight(0, false, 255)), get(3)])
            .wants(Want::Answer(3)),
        case("6.4 a RST_STREAM frame is accepted")
            .sends([put(1), reset(1, CANCEL), ping(DATA)])
            .wants(Want::Pong(DATA)),
        case("6.5 a SETTINGS frame is accepted")
            .sends([h2raw::settings(&[(3, 100), (4, 65_535), (5, 16_384)])])
            .wants(Want::SettingsAck),
        case("6.7 a PING frame is accepted").sends([ping([0; 8])]).wants(Want::Pong([0; 8])),
        case("6.8 a GOAWAY frame is accepted")
            .sends([goaway(0, 0), ping(DATA)])
            .wants(Want::PongOrClosed(DATA)),
        case("6.9 a WINDOW_UPDATE frame for the connection is accepted")
            .sends([window(0, 1), ping(DATA)])
            .wants(Want::Pong(DATA)),
        case("6.9 a WINDOW_UPDATE frame for a stream is accepted")
            .sends([put(1), window(1, 1), h2raw::data(1, b"test", true)])
            .wants(Want::Answer(1)),
        case("6.10 a header in HEADERS and one CONTINUATION is accepted")
            .sends([unfinished(1, true), continuation(1, true)])
            .wants(Want::Answer(1)),
        case("6.10 a header in HEADERS and several CONTINUATION is accepted")
            .sends([unfinished(1, true), continuation(1, false), continuation(1, true)])
            .wants(Want::Answer(1)),
        case("8.1 a GET request is answered").sends([headers(1, &asking(&[]))]).wants(Want::Answer(1)),
        case("8.1 a HEAD request is answered")
            .sends([headers(1, &h2raw::request("HEAD", PATH))])
            .wants(Want::Answer(1)),
        case("8.1 a request with a body is answered")
            .sends([
                h2raw::headers(1, &writing(&[("content-length", "4")]), false),
                h2raw::data(1, b"test", true),
            ])
            .wants(Want::Answer(1)),
        case("8.1 a request with trailers is answered")
            .sends([
                h2raw::headers(1, &writing(&[("trailer", "x-test")]), false),
                h2raw::data(1, b"test", false),
                h2raw::frame(
                    HEADERS,
                    END_HEADERS | h2raw::END_STREAM,
                    1,
                    &h2raw::block(&[field("x-test", "ok")]),
                ),
            ])
            .wants(Want::Answer(1)),
    ]
}
