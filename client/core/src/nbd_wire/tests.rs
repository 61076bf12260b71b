//! The NBD protocol against its text, byte by byte, and against garbage.

use super::*;
use alloc::vec::Vec;
use bytes::{BufMut, Bytes, BytesMut};

fn export() -> Export {
    Export { name: "demo".into(), size_bytes: 1 << 20, read_only: false }
}

fn greeted() -> (Handshake, BytesMut, BytesMut) {
    let mut out = BytesMut::new();
    let handshake = Handshake::new(export(), &mut out);
    assert_eq!(&out[..], b"NBDMAGICIHAVEOPT\0\x03");
    out.clear();
    let mut input = BytesMut::new();
    input.put_u32(3);
    (handshake, input, out)
}

fn option(input: &mut BytesMut, number: u32, data: &[u8]) {
    input.put_slice(b"IHAVEOPT");
    input.put_u32(number);
    input.put_u32(data.len() as u32);
    input.put_slice(data);
}

fn go(name: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name);
    data.put_u16(0);
    data
}

/// (option, type) of each reply.
fn replies(out: &[u8]) -> Vec<(u32, u32)> {
    let mut rest = out;
    let mut found = Vec::new();
    while !rest.is_empty() {
        use bytes::Buf;
        assert_eq!(rest.get_u64(), 0x0003_e889_0455_65a9);
        found.push((rest.get_u32(), rest.get_u32()));
        let len = rest.get_u32() as usize;
        rest.advance(len);
    }
    found
}

#[test]
fn go_gives_size_flags_and_block_sizes_then_requests_follow() {
    let (mut handshake, mut input, mut out) = greeted();
    option(&mut input, 8, &[]);
    option(&mut input, 7, &go(b"demo"));
    input.put_slice(b"rest");
    let step = handshake.feed(&mut input, &mut out);
    assert_eq!(step, Ok(Step::Transmission { structured: true }));
    assert_eq!(replies(&out), [(8, 1), (7, 3), (7, 3), (7, 1)]);
    assert_eq!(&input[..], b"rest");
}

#[test]
fn the_handshake_works_byte_by_byte() {
    let (mut handshake, whole, mut out) = greeted();
    let mut bytes = whole;
    option(&mut bytes, 6, &go(b""));
    option(&mut bytes, 3, &[]);
    option(&mut bytes, 2, &[]);
    let mut input = BytesMut::new();
    let mut last = Step::More;
    for byte in bytes {
        assert_eq!(last, Step::More);
        input.put_u8(byte);
        last = handshake.feed(&mut input, &mut out).unwrap();
    }
    assert_eq!(last, Step::Closed);
    assert_eq!(replies(&out), [(6, 3), (6, 3), (6, 1), (3, 2), (3, 1), (2, 1)]);
}

#[test]
fn unknown_exports_options_and_malformed_ones_get_their_error() {
    let (mut handshake, mut input, mut out) = greeted();
    option(&mut input, 7, &go(b"other"));
    option(&mut input, 7, b"\xff\xff\xff\xff");
    option(&mut input, 5, &[]);
    option(&mut input, 99, &[]);
    option(&mut input, 10, &go(b""));
    assert_eq!(handshake.feed(&mut input, &mut out), Ok(Step::More));
    let error = |n: u32| (1_u32 << 31) + n;
    let kinds: Vec<u32> = replies(&out).into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(kinds, [error(6), error(3), error(2), error(1), error(3)]);
    option(&mut input, 1, b"other");
    assert_eq!(handshake.feed(&mut input, &mut out), Err(NbdError::UnknownExport));
}

#[test]
fn export_name_of_an_old_client_is_padded() {
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(export(), &mut out);
    out.clear();
    let mut input = BytesMut::new();
    input.put_u32(1);
    option(&mut input, 1, b"demo");
    let step = handshake.feed(&mut input, &mut out);
    assert_eq!(step, Ok(Step::Transmission { structured: false }));
    assert_eq!(out.len(), 8 + 2 + 124);
}

#[test]
fn a_metadata_query_is_answered_with_no_contexts() {
    let (mut handshake, mut input, mut out) = greeted();
    option(&mut input, 8, &[]);
    let mut query = Vec::new();
    query.put_u32(0);
    query.put_u32(1);
    query.put_u32(15);
    query.put_slice(b"base:allocation");
    option(&mut input, 10, &query);
    assert_eq!(handshake.feed(&mut input, &mut out), Ok(Step::More));
    assert_eq!(replies(&out), [(8, 1), (10, 1)]);
}

fn request(flags: u16, command: u16, offset: u64, len: u32) -> BytesMut {
    let mut input = BytesMut::new();
    input.put_u32(0x2560_9513);
    input.put_u16(flags);
    input.put_u16(command);
    input.put_u64(77);
    input.put_u64(offset);
    input.put_u32(len);
    input
}

#[test]
fn requests_are_taken_whole_and_in_order() {
    let mut input = request(0, 1, 512, 3);
    assert_eq!(next_request(&mut input, &export()), Ok(None));
    input.put_slice(b"abc");
    input.unsplit(request(4, 0, 0, 4096));
    let write = NbdCommand::Write { offset: 512, data: Bytes::from_static(b"abc") };
    let parsed = |command| Ok(Some(Parsed::Request(NbdRequest { cookie: 77, command })));
    assert_eq!(next_request(&mut input, &export()), parsed(write));
    let read = NbdCommand::Read { offset: 0, len: 4096, one_piece: true };
    assert_eq!(next_request(&mut input, &export()), parsed(read));
    assert!(input.is_empty());
    for (command, expected) in [
        (3, NbdCommand::Flush),
        (2, NbdCommand::Disconnect),
        (4, NbdCommand::Zero { offset: 0, len: 0x10_0000 }),
    ] {
        let len = if command == 4 { 0x10_0000 } else { 0 };
        let found = next_request(&mut request(0, command, 0, len), &export());
        assert_eq!(found, parsed(expected));
    }
}

#[test]
fn requests_outside_the_export_or_too_large_get_their_error() {
    let refused = |errno, read| Ok(Some(Parsed::Refuse { cookie: 77, errno, read }));
    let mut read_only = export();
    read_only.read_only = true;
    let cases = [
        (request(0, 0, 1 << 20, 1), refused(NbdErrno::Invalid, true)),
        (request(0, 0, u64::MAX, 2), refused(NbdErrno::Invalid, true)),
        (request(0, 0, 0, 0), refused(NbdErrno::Invalid, true)),
        (request(1 << 15, 0, 0, 512), refused(NbdErrno::Invalid, true)),
        (request(1 << 4, 6, 0, 512), refused(NbdErrno::Invalid, false)),
        (request(0, 0, 0, u32::MAX), refused(NbdErrno::Overflow, true)),
        (request(0, 6, 1, u32::MAX), refused(NbdErrno::NoSpace, false)),
        (request(0, 42, 0, 0), refused(NbdErrno::NotSupported, false)),
    ];
    for (mut input, expected) in cases {
        assert_eq!(next_request(&mut input, &export()), expected);
    }
    let found = next_request(&mut request(0, 4, 0, 512), &read_only);
    assert_eq!(found, refused(NbdErrno::Perm, false));
}

#[test]
fn garbage_and_huge_lengths_end_the_connection_without_an_allocation() {
    let mut input = request(0, 1, 0, u32::MAX);
    let before = input.capacity();
    assert_eq!(next_request(&mut input, &export()), Err(NbdError::PayloadTooLarge(u32::MAX)));
    assert_eq!(input.capacity(), before);
    let mut input = BytesMut::from(&[0xff; 28][..]);
    assert_eq!(next_request(&mut input, &export()), Err(NbdError::Magic("request")));

    let (mut handshake, mut input, mut out) = greeted();
    input.put_slice(b"IHAVEOPT");
    input.put_u32(7);
    input.put_u32(u32::MAX);
    let found = handshake.feed(&mut input, &mut out);
    assert_eq!(found, Err(NbdError::OptionTooLarge(u32::MAX)));

    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(export(), &mut out);
    let found = handshake.feed(&mut BytesMut::from(&b"GET / HTTP/1.1"[..]), &mut out);
    assert_eq!(found, Err(NbdError::ClientFlags(0x4745_5420)));
}

#[test]
fn random_bytes_never_panic_or_ask_for_much_memory() {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..2_000 {
        let (mut handshake, mut input, mut out) = greeted();
        if next() % 2 == 0 {
            input.put_slice(b"IHAVEOPT");
            input.put_u32((next() % 12) as u32);
            input.put_u32((next() % 64) as u32);
        }
        let mut requests =
            request(0, (next() % 9) as u16, next() % (1 << 21), (next() % 999) as u32);
        for _ in 0..next() % 200 {
            input.put_u8(next() as u8);
            requests.put_u8(next() as u8);
        }
        while matches!(handshake.feed(&mut input, &mut out), Ok(Step::More)) && next() % 3 > 0 {}
        while matches!(next_request(&mut requests, &export()), Ok(Some(_))) {}
        assert!(requests.capacity() < 64 << 10 && out.len() < 64 << 10);
    }
}

#[test]
fn replies_have_the_lengths_that_the_protocol_gives_them() {
    assert_eq!(simple_reply(1, 5), *b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x01");
    let head = data_head(1, 512, 4096, true);
    assert_eq!(head[16..20], 4104_u32.to_be_bytes());
    assert_eq!(head[4..8], [0, 1, 0, 1]);
    let hole = hole_chunk(1, 512, 4096, false);
    assert_eq!((&hole[4..8], &hole[28..]), (&[0, 0, 0, 2][..], &4096_u32.to_be_bytes()[..]));
    assert_eq!(read_error_chunk(1, NbdErrno::Io)[4..8], [0, 1, 0x80, 1]);
}
