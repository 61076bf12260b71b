//! Hostile bytes for the NBD socket, of the handshake and of what comes behind it.
//!
//! None of them is a request that changes the volume: what was written before must be there
//! afterwards.

use crate::dice::Dice;
use crate::kinds::{After, Door, Judge, Kind, World};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const FLAGS: u32 = 3;
const GREETING_BYTES: usize = 18;
/// Largest payload that the server announces.
const PAYLOAD_MAX: u32 = 32 << 20;

/// Option numbers.
const EXPORT_NAME: u32 = 1;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

/// Error replies to options.
const UNSUPPORTED: u32 = (1 << 31) + 1;
const POLICY: u32 = (1 << 31) + 2;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [option_head(number, len).as_slice(), data].concat()
}

fn option_head(number: u32, len: u32) -> Vec<u8> {
    let (number, len) = (number.to_be_bytes(), len.to_be_bytes());
    [OPTION_MAGIC.to_be_bytes().as_slice(), &number, &len].concat()
}

fn greeted() -> Vec<u8> {
    FLAGS.to_be_bytes().to_vec()
}

fn greeted_with(options: &[u8]) -> Vec<u8> {
    [greeted().as_slice(), options].concat()
}

/// The whole handshake of a client that takes simple replies.
pub(crate) fn go() -> Vec<u8> {
    greeted_with(&option(GO, &[0; 6]))
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The handshake and one request.
fn gone(request: &[u8]) -> Vec<u8> {
    [go().as_slice(), request].concat()
}

fn kind(
    name: &'static str,
    after: After,
    make: fn(&mut Dice, &World) -> Vec<u8>,
    judge: Judge,
) -> Kind {
    Kind { name, door: Door::Nbd, after, make, judge }
}

pub(crate) fn kinds() -> Vec<Kind> {
    let mut kinds = handshake();
    kinds.extend(options());
    kinds.extend(transmission());
    kinds.extend(lengths());
    kinds
}

fn handshake() -> Vec<Kind> {
    vec![
        kind(
            "nbd: garbage",
            After::Waits,
            |dice, _| [vec![0xff], dice.bytes(4_096)].concat(),
            greeting,
        ),
        kind(
            "nbd: wrong client flags",
            After::Waits,
            |dice, _| (dice.word() | 4).to_be_bytes().to_vec(),
            greeting,
        ),
        kind(
            "nbd: wrong option magic",
            After::Waits,
            |dice, _| greeted_with(&[dice.bytes(8), vec![0; 8]].concat()),
            greeting,
        ),
        kind(
            "nbd: handshake cut short",
            After::EndsAndReads,
            |dice, _| {
                let whole = greeted_with(&[option(STRUCTURED, &[]), option(GO, &[0; 6])].concat());
                whole[..dice.below(whole.len())].to_vec()
            },
            greeting,
        ),
        kind(
            "nbd: huge option",
            After::Waits,
            |dice, _| {
                greeted_with(&option_head(dice.word() % 16, (16 << 10) + 1 + dice.word() / 2))
            },
            greeting,
        ),
        kind(
            "nbd: EXPORT_NAME of 4 GiB",
            After::Waits,
            |_, _| greeted_with(&option_head(EXPORT_NAME, u32::MAX)),
            greeting,
        ),
        kind(
            "nbd: unknown EXPORT_NAME",
            After::Waits,
            |dice, _| {
                let count = 1 + dice.below(4_096);
                greeted_with(&option(EXPORT_NAME, &dice.bytes(count)))
            },
            greeting,
        ),
    ]
}

fn options() -> Vec<Kind> {
    vec![
        kind(
            "nbd: unknown option",
            After::EndsAndReads,
            |dice, _| {
                let count = dice.below(4_096);
                greeted_with(&option(100 + dice.word() / 2, &dice.bytes(count)))
            },
            |answer| option_error(answer, UNSUPPORTED),
        ),
        kind(
            "nbd: flood of options",
            After::EndsAndReads,
            |dice, _| {
                let number = dice.one(&[3, 12, 99]);
                greeted_with(&option(number, &[]).repeat(100 + dice.below(1_000)))
            },
            greeting,
        ),
        kind(
            "nbd: malformed GO",
            After::EndsAndReads,
            |dice, _| {
                let len = 1 + dice.word() % u32::MAX;
                greeted_with(&option(GO, &[len.to_be_bytes().as_slice(), &[0; 2]].concat()))
            },
            |answer| option_error(answer, INVALID),
        ),
        kind(
            "nbd: GO to nobody",
            After::EndsAndReads,
            |dice, _| {
                let name = dice.bytes(16);
                let data = [16_u32.to_be_bytes().as_slice(), &name, &[0; 2]].concat();
                greeted_with(&option(GO, &data))
            },
            |answer| option_error(answer, UNKNOWN),
        ),
        kind(
            "nbd: STARTTLS",
            After::EndsAndReads,
            |_, _| greeted_with(&option(STARTTLS, &[])),
            |answer| option_error(answer, POLICY),
        ),
        kind(
            "nbd: extended headers",
            After::EndsAndReads,
            |_, _| greeted_with(&option(EXTENDED_HEADERS, &[])),
            |answer| option_error(answer, UNSUPPORTED),
        ),
        kind(
            "nbd: absurd metadata contexts",
            After::EndsAndReads,
            |dice, _| {
                let mut data = 0_u32.to_be_bytes().to_vec();
                data.extend((dice.word() | 1 << 31).to_be_bytes());
                data.extend(vec![0; 4 * dice.below(2_000)]);
                greeted_with(&option(SET_META_CONTEXT, &data))
            },
            |answer| option_error(answer, INVALID),
        ),
    ]
}

fn transmission() -> Vec<Kind> {
    vec![
        kind(
            "nbd: wrong request magic",
            After::Waits,
            |dice, _| gone(&[vec![0xff], dice.bytes(63)].concat()),
            greeting,
        ),
        kind(
            "nbd: extended request without agreement",
            After::Waits,
            |dice, _| {
                gone(&[EXTENDED_REQUEST_MAGIC.to_be_bytes().as_slice(), &dice.bytes(28)].concat())
            },
            greeting,
        ),
        kind(
            "nbd: option after the handshake",
            After::Waits,
            |_, _| gone(&option(STRUCTURED, &[]).repeat(2)),
            greeting,
        ),
        kind(
            "nbd: unknown command",
            After::EndsAndReads,
            |dice, _| {
                let command = 8 + u16::from(dice.byte());
                gone(&request(0, command, dice.any(), dice.any(), dice.word()))
            },
            |answer| request_errors(answer, &[95]),
        ),
        kind(
            "nbd: block status without context",
            After::EndsAndReads,
            |dice, _| gone(&request(0, 7, dice.any(), 0, 1 + dice.word() / 2)),
            |answer| request_errors(answer, &[22, 95]),
        ),
        kind(
            "nbd: unknown flags",
            After::EndsAndReads,
            |dice, _| gone(&request(0x8000, 0, dice.any(), 0, 4_096)),
            |answer| request_errors(answer, &[22]),
        ),
        kind(
            "nbd: one cookie for many",
            After::EndsAndReads,
            |dice, _| gone(&request(0, 0, dice.any(), 0, 512).repeat(1 + dice.below(16))),
            greeting,
        ),
        kind(
            "nbd: leaves amid reads",
            After::Leaves,
            |dice, _| gone(&request(0, 0, dice.any(), 0, 4_096).repeat(1 + dice.below(64))),
            greeting,
        ),
        kind(
            "nbd: never reads its replies",
            After::Leaves,
            |dice, _| gone(&request(0, 0, dice.any(), 0, 256 << 10).repeat(8)),
            greeting,
        ),
    ]
}

fn lengths() -> Vec<Kind> {
    vec![
        kind(
            "nbd: beyond the end",
            After::EndsAndReads,
            |dice, world| {
                let offset = world.size_bytes - 1 + u64::from(dice.word());
                gone(&request(0, dice.one(&[0, 4, 6]), dice.any(), offset, 4_096))
            },
            |answer| request_errors(answer, &[22, 28]),
        ),
        kind(
            "nbd: wraps around",
            After::EndsAndReads,
            |dice, _| {
                let offset = u64::MAX - u64::from(dice.byte());
                gone(&request(0, dice.one(&[0, 4, 6]), dice.any(), offset, 4_096))
            },
            |answer| request_errors(answer, &[22, 28]),
        ),
        kind(
            "nbd: nothing at all",
            After::EndsAndReads,
            |dice, _| gone(&request(0, dice.one(&[0, 1, 4, 6]), dice.any(), dice.any() >> 44, 0)),
            |answer| request_errors(answer, &[22]),
        ),
        kind(
            "nbd: huge read",
            After::EndsAndReads,
            |dice, _| gone(&request(0, 0, dice.any(), 0, PAYLOAD_MAX + 1 + dice.word() / 2)),
            |answer| request_errors(answer, &[22, 75]),
        ),
        kind(
            "nbd: huge write",
            After::Waits,
            |dice, _| gone(&request(0, 1, dice.any(), 0, PAYLOAD_MAX + 1 + dice.word() / 2)),
            greeting,
        ),
        kind(
            "nbd: half a payload",
            After::EndsAndReads,
            |dice, _| {
                let len = 65_536 + dice.word() % (PAYLOAD_MAX - 65_536);
                let count = dice.below(65_536);
                gone(&[request(0, 1, dice.any(), 0, len), dice.bytes(count)].concat())
            },
            greeting,
        ),
    ]
}

/// The server's greeting and, behind it, well-formed replies to options; then what follows `GO`.
fn replies(answer: &[u8]) -> Result<(Vec<u32>, &[u8]), String> {
    if answer.get(..8) != Some(b"NBDMAGIC") || answer.len() < GREETING_BYTES {
        return Err("no greeting".to_owned());
    }
    let (mut rest, mut kinds) = (&answer[GREETING_BYTES..], Vec::new());
    while let Some((head, behind)) = rest.split_first_chunk::<20>() {
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        if head[..8] != REPLY_MAGIC.to_be_bytes() {
            return Err("what should be a reply to an option is none".to_owned());
        }
        let (number, kind, len) = (word(8), word(12), word(16) as usize);
        rest = behind.get(len..).ok_or("a reply to an option is cut short")?;
        kinds.push(kind);
        if number == GO && kind == 1 {
            break;
        }
    }
    Ok((kinds, rest))
}

fn greeting(answer: &[u8]) -> Result<(), String> {
    // The handshake of EXPORT_NAME is answered without a head, which no kind here gets as far as.
    replies(answer).map(drop)
}

fn option_error(answer: &[u8], wanted: u32) -> Result<(), String> {
    let (kinds, rest) = replies(answer)?;
    let good = kinds == [wanted] && rest.is_empty();
    good.then_some(()).ok_or(format!("{kinds:x?} instead of the error {wanted:x}"))
}

/// Exactly one simple reply with one of these numbers.
fn request_errors(answer: &[u8], wanted: &[u32]) -> Result<(), String> {
    let (_, rest) = replies(answer)?;
    let word = |at: usize| rest.get(at..at + 4).map(|word| word.try_into().unwrap());
    let (magic, number) = (word(0).map(u32::from_be_bytes), word(4).map(u32::from_be_bytes));
    let good = magic == Some(SIMPLE_MAGIC)
        && number.is_some_and(|number| wanted.contains(&number))
        && rest.len() == 16;
    let shown = &rest[..rest.len().min(16)];
    good.then_some(()).ok_or(format!("{shown:x?} instead of one of the errors {wanted:?}"))
}
