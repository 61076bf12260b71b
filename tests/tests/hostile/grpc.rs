//! Hostile bytes for the members' port: HTTP/2 that is none, calls that make no sense.

use crate::dice::Dice;
use crate::kinds::{After, Door, Kind, World};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Methods of every service. None is called with a request that it could carry out.
const PATHS: &[&str] = &[
    "/ashlar.v1.ClusterService/GetStatus",
    "/ashlar.v1.ClusterService/DrainNode",
    "/ashlar.v1.ClusterService/JoinMember",
    "/ashlar.v1.ClusterService/ReportLostMember",
    "/ashlar.v1.NodeService/Session",
    "/ashlar.v1.RaftService/Exchange",
    "/ashlar.v1.RegionService/ListZones",
    "/ashlar.v1.VolumeService/AttachVolume",
    "/ashlar.v1.VolumeService/DetachVolume",
    "/ashlar.v1.VolumeService/GrowVolume",
    "/ashlar.v1.VolumeService/GetVolumeMap",
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [len[1], len[2], len[3], kind, flags];
    [head.as_slice(), &stream.to_be_bytes(), payload].concat()
}

fn opened() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A literal field that nobody is to remember.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend(name.as_bytes());
    if value.len() < 127 {
        bytes.push(u8::try_from(value.len()).unwrap());
    } else {
        bytes.push(127);
        let mut rest = value.len() - 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend(value);
    bytes
}

fn fields(path: &str) -> Vec<u8> {
    [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "zone")]
        .iter()
        .chain(&[("content-type", "application/grpc"), ("te", "trailers")])
        .flat_map(|(name, value)| field(name, value.as_bytes()))
        .collect()
}

/// A call whose message is these bytes, compressed or not as `flag` says.
fn call(stream: u32, path: &str, flag: u8, message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [[flag].as_slice(), &len, message].concat();
    let headers = frame(HEADERS, END_HEADERS, stream, &fields(path));
    [headers, frame(DATA, END_STREAM, stream, &body)].concat()
}

/// Fields with numbers that mean something, and contents that do not.
fn message(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..dice.below(8) {
        let number = 1 + dice.byte() % 12;
        if dice.below(2) == 0 {
            bytes.push(number << 3);
            bytes.extend([dice.byte() | 0x80, dice.byte() & 0x7f]);
        } else {
            let count = dice.below(64);
            bytes.extend([number << 3 | 2, u8::try_from(count).unwrap()]);
            bytes.extend(dice.bytes(count));
        }
    }
    bytes
}

fn kind(name: &'static str, after: After, make: fn(&mut Dice, &World) -> Vec<u8>) -> Kind {
    Kind { name, door: Door::Member, after, make, judge: http2 }
}

pub(crate) fn kinds() -> Vec<Kind> {
    let mut kinds = no_http();
    kinds.extend(calls());
    kinds
}

fn no_http() -> Vec<Kind> {
    use After::{EndsAndReads, Leaves, Waits};
    vec![
        kind("grpc: broken preface", Waits, |dice, _| {
            let mut bytes = PREFACE.to_vec();
            let at = dice.below(bytes.len());
            bytes[at] ^= 0x80;
            [bytes, dice.bytes(64)].concat()
        }),
        kind("grpc: garbage behind the preface", EndsAndReads, |dice, _| {
            [PREFACE, &dice.bytes(2_048)].concat()
        }),
        kind("grpc: frame above the limit", Waits, |dice, _| {
            [opened().as_slice(), &[0xff, 0xff, 0xff, dice.byte() % 10, 0, 0, 0, 0, 1]].concat()
        }),
        kind("grpc: flood of resets", EndsAndReads, |dice, _| {
            let mut bytes = opened();
            for number in 0..u32::try_from(1 + dice.below(200)).unwrap() {
                let stream = 2 * number + 1;
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &fields(PATHS[0])));
                bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            }
            bytes
        }),
        kind("grpc: flood of pings and settings", Leaves, |dice, _| {
            let one = [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])].concat();
            [opened(), one.repeat(1 + dice.below(500))].concat()
        }),
        kind("grpc: window that overflows", EndsAndReads, |_, _| {
            let more = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
            [opened(), more.repeat(2)].concat()
        }),
        kind("grpc: headers without end", EndsAndReads, |dice, _| {
            let head = frame(HEADERS, 0, 1, &fields(dice.one(PATHS)));
            let more = frame(CONTINUATION, 0, 1, &field("x-more", &dice.bytes(1_000)));
            [opened(), head, more.repeat(64)].concat()
        }),
    ]
}

fn calls() -> Vec<Kind> {
    use After::EndsAndReads;
    vec![
        kind("grpc: any fields on a real path", EndsAndReads, |dice, _| {
            let message = message(dice);
            [opened(), call(1, dice.one(PATHS), 0, &message)].concat()
        }),
        kind("grpc: message above the limit, or compressed", EndsAndReads, |dice, _| {
            let headers = frame(HEADERS, END_HEADERS, 1, &fields(dice.one(PATHS)));
            let flag = dice.byte() % 3;
            let body = [[flag].as_slice(), &u32::MAX.to_be_bytes(), &[0; 512]].concat();
            [opened(), headers, frame(DATA, END_STREAM, 1, &body)].concat()
        }),
        kind("grpc: unknown method", EndsAndReads, |dice, _| {
            let path = format!("{}{}", dice.one(&["/ashlar.v1.VolumeService/", "/"]), dice.any());
            [opened(), call(1, &path, 0, &[])].concat()
        }),
        kind("grpc: call cut short", EndsAndReads, |dice, _| {
            let bytes = [opened(), call(1, dice.one(PATHS), 0, &message(dice))].concat();
            bytes[..dice.below(bytes.len())].to_vec()
        }),
    ]
}

/// Frames of HTTP/2 of sizes that nobody had to agree to, the last perhaps cut short.
fn http2(answer: &[u8]) -> Result<(), String> {
    let mut rest = answer;
    while let Some((head, behind)) = rest.split_first_chunk::<9>() {
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if len > 16_384 || head[3] > 9 {
            return Err(format!("no frame of HTTP/2: {head:x?}"));
        }
        rest = behind.get(len..).unwrap_or_default();
    }
    Ok(())
}
