//! Header compression: RFC 7541.

use super::case::{COMPRESSION_ERROR, Case, Theirs, Want, case};
use super::frames::{WHOLE, asking_block, block};

/// What makes a decoding error (2.3.3, 4.2, 5.2, 6.1, 6.3).
const DAMAGED: Want = Want::ConnectionError(&[COMPRESSION_ERROR]);

/// The first bits of a literal: with incremental indexing, without indexing, never indexed (6.2.1 to 6.2.3).
const INDEXED: u8 = 0x40;
const PLAIN: u8 = 0x00;
const NEVER: u8 = 0x10;
/// `user-agent` in the static table.
const USER_AGENT: usize = 58;

/// The codes of Appendix B that are needed here.
const CODES: [(char, &str); 18] = [
    ('-', "010110"),
    ('2', "00010"),
    ('a', "00011"),
    ('c', "00100"),
    ('e', "00101"),
    ('g', "100110"),
    ('i', "00110"),
    ('k', "1110101"),
    ('l', "101000"),
    ('m', "101001"),
    ('n', "101010"),
    ('o', "00111"),
    ('r', "101100"),
    ('s', "01000"),
    ('t', "01001"),
    ('u', "101101"),
    ('x', "1111001"),
    ('y', "1111010"),
];
/// The code that ends a string and must not be in one.
const EOS: &str = "111111111111111111111111111111";

pub(super) fn cases() -> Vec<Case> {
    [literals(), tables(), damage()].into_iter().flatten().collect()
}

fn literals() -> Vec<Case> {
    let agent = |first: u8, prefix: u8, value: Vec<u8>| [number(first, prefix, USER_AGENT), value].concat();
    let test = |first: u8, name: Vec<u8>, value: Vec<u8>| [vec![first], name, value].concat();
    vec![
        // `accept-encoding: gzip, deflate` is entry 16 of the static table.
        more("RFC 7541, 6.1 an indexed field is accepted", vec![0x80 | 16]),
        more("RFC 7541, 6.2.1 incremental indexing, indexed name", agent(INDEXED, 6, text("client"))),
        more(
            "RFC 7541, 6.2.1 incremental indexing, indexed name, Huffman",
            agent(INDEXED, 6, coded("agent")),
        ),
        more("RFC 7541, 6.2.1 incremental indexing, new name", test(INDEXED, text("x-test"), text("client"))),
        more(
            "RFC 7541, 6.2.1 incremental indexing, new name, Huffman",
            test(INDEXED, coded("x-test"), coded("test")),
        ),
        more("RFC 7541, 6.2.2 without indexing, indexed name", agent(PLAIN, 4, text("client"))),
        more("RFC 7541, 6.2.2 without indexing, indexed name, Huffman", agent(PLAIN, 4, coded("agent"))),
        more("RFC 7541, 6.2.2 without indexing, new name", test(PLAIN, text("x-test"), text("client"))),
        more(
            "RFC 7541, 6.2.2 without indexing, new name, Huffman",
            test(PLAIN, coded("x-test"), coded("test")),
        ),
        more("RFC 7541, 6.2.3 never indexed, indexed name", agent(NEVER, 4, text("client"))),
        more("RFC 7541, 6.2.3 never indexed, indexed name, Huffman", agent(NEVER, 4, coded("agent"))),
        more("RFC 7541, 6.2.3 never indexed, new name", test(NEVER, text("x-test"), text("client"))),
        more("RFC 7541, 6.2.3 never indexed, new name, Huffman", test(NEVER, coded("x-test"), coded("test"))),
    ]
}

fn tables() -> Vec<Case> {
    let sized = |sizes: &[usize]| {
        let updates = sizes.iter().flat_map(|size| number(0x20, 5, *size));
        block(WHOLE, 1, &updates.chain(asking_block()).collect::<Vec<u8>>())
    };
    vec![
        case("RFC 7541, 6.3 a size update is accepted").sends([sized(&[128])]).wants(Want::Answer(1)),
        case("RFC 7541, 4.2 two size updates are accepted")
            .sends([sized(&[128, 4096])])
            .wants(Want::Answer(1)),
        case("RFC 7541, 6.3 a size above SETTINGS_HEADER_TABLE_SIZE is a decoding error")
            .sends_by(|Theirs { table, .. }| {
                let update = number(0x20, 5, *table as usize + 1);
                block(WHOLE, 1, &[update, asking_block()].concat())
            })
            .wants(DAMAGED),
    ]
}

fn damage() -> Vec<Case> {
    // There are 61 entries in the static table, and none in the dynamic one.
    let nowhere = 70;
    let padded = |bits: &str| [vec![PLAIN], coded("x-test"), packed(bits, '1')].concat();
    vec![
        damaged("RFC 7541, 2.3.3 an indexed field beyond both tables", number(0x80, 7, nowhere)),
        damaged(
            "RFC 7541, 2.3.3 a literal whose name is beyond both tables",
            [number(INDEXED, 6, nowhere), text("")].concat(),
        ),
        damaged("RFC 7541, 4.2 a size update behind fields", number(0x20, 5, 1)),
        damaged("RFC 7541, 5.2 Huffman padding of more than 7 bits", padded(&(bits("test") + "11111111"))),
        damaged(
            "RFC 7541, 5.2 Huffman padding of zeros",
            [vec![PLAIN], coded("x-test"), packed(&bits("test"), '0')].concat(),
        ),
        damaged("RFC 7541, 5.2 a Huffman string with EOS in it", padded(&(bits("tes") + EOS + &bits("t")))),
        damaged("RFC 7541, 6.1 an indexed field with index 0", vec![0x80]),
    ]
}

/// A good request with one field more, which is answered.
fn more(name: &'static str, last: Vec<u8>) -> Case {
    case(name).sends([block(WHOLE, 1, &[asking_block(), last].concat())]).wants(Want::Answer(1))
}

/// The same with something that is a decoding error.
fn damaged(name: &'static str, last: Vec<u8>) -> Case {
    case(name).sends([block(WHOLE, 1, &[asking_block(), last].concat())]).wants(DAMAGED)
}

/// A number behind the first bits of its octet (5.1).
fn number(first: u8, prefix: u8, value: usize) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut octets = vec![first | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 128 {
        octets.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    octets.push(u8::try_from(rest).unwrap());
    octets
}

/// A string as it is (5.2).
fn text(text: &str) -> Vec<u8> {
    [number(0, 7, text.len()), text.as_bytes().to_vec()].concat()
}

/// A string by Huffman codes.
fn coded(text: &str) -> Vec<u8> {
    packed(&bits(text), '1')
}

fn bits(text: &str) -> String {
    let code = |letter| CODES.iter().find(|(known, _)| *known == letter).unwrap().1;
    text.chars().map(code).collect()
}

/// Bits as a string of octets, with that for padding.
fn packed(bits: &str, padding: char) -> Vec<u8> {
    let mut bits = bits.to_owned();
    while !bits.len().is_multiple_of(8) {
        bits.push(padding);
    }
    let octets: Vec<u8> = bits
        .as_bytes()
        .chunks(8)
        .map(|octet| u8::from_str_radix(std::str::from_utf8(octet).unwrap(), 2).unwrap())
        .collect();
    [number(0x80, 7, octets.len()), octets].concat()
}

#[test]
fn huffman_codes_are_those_of_the_appendix() {
    // Appendix C.4.3.
    assert_eq!(coded("custom-key"), [0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]);
    assert_eq!(number(0x1f, 5, 1337), [0x1f, 0x9a, 0x0a], "C.1.2");
}
