//! The fixed newstyle handshake: options until GO or EXPORT_NAME.

use super::{Export, NAME_BYTES_MAX, NbdError, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX};
use ashlar_types::BLOCK_SIZE;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 1 << 1;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_STARTTLS: u32 = 5;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_LIST_META_CONTEXT: u32 = 9;
const OPTION_SET_META_CONTEXT: u32 = 10;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const ERROR_UNSUPPORTED: u32 = (1 << 31) + 1;
const ERROR_POLICY: u32 = (1 << 31) + 2;
const ERROR_INVALID: u32 = (1 << 31) + 3;
const ERROR_UNKNOWN: u32 = (1 << 31) + 6;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

/// Where the handshake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send what is in the output, read more.
    More,
    /// Send what is in the output; requests follow.
    Transmission {
        /// Reads must be answered by structured replies.
        structured: bool,
    },
    /// Send what is in the output and close.
    Closed,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    export: Export,
    greeted: bool,
    no_zeroes: bool,
    structured: bool,
}

impl Handshake {
    /// A connection that was just accepted. Appends the greeting to `out`.
    pub fn new(export: Export, out: &mut BytesMut) -> Self {
        out.put_u64(GREETING_MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self { export, greeted: false, no_zeroes: false, structured: false }
    }

    /// Takes whole options off the front of `input` and appends the answers to `out`. Call again
    /// when more has arrived; after [`Step::Transmission`] the rest of `input` is requests.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub fn feed(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Step, NbdError> {
        if !self.greeted {
            if input.len() < 4 {
                return Ok(Step::More);
            }
            let flags = input.get_u32();
            let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
            if flags & !known != 0 || flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
                return Err(NbdError::ClientFlags(flags));
            }
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            self.greeted = true;
        }
        while let Some((option, data)) = next_option(input)? {
            let step = self.on_option(option, data, out)?;
            if step != Step::More {
                return Ok(step);
            }
        }
        Ok(Step::More)
    }

    fn on_option(
        &mut self,
        option: u32,
        data: Bytes,
        out: &mut BytesMut,
    ) -> Result<Step, NbdError> {
        match option {
            OPTION_EXPORT_NAME => return self.on_export_name(&data, out),
            OPTION_ABORT => {
                reply(out, option, REPLY_ACK, &[]);
                return Ok(Step::Closed);
            }
            OPTION_LIST if data.is_empty() => {
                let name = self.export.name.as_bytes();
                let mut server = BytesMut::with_capacity(4 + name.len());
                server.put_u32(u32::try_from(name.len()).unwrap_or(0));
                server.put_slice(name);
                reply(out, option, REPLY_SERVER, &server);
                reply(out, option, REPLY_ACK, &[]);
            }
            OPTION_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, REPLY_ACK, &[]);
            }
            OPTION_INFO | OPTION_GO => return Ok(self.on_info(option, data, out)),
            OPTION_LIST_META_CONTEXT | OPTION_SET_META_CONTEXT => {
                self.on_meta_context(option, data, out);
            }
            OPTION_LIST | OPTION_STRUCTURED_REPLY => reply(out, option, ERROR_INVALID, &[]),
            OPTION_STARTTLS => reply(out, option, ERROR_POLICY, b"TLS is not built"),
            _ => reply(out, option, ERROR_UNSUPPORTED, &[]),
        }
        Ok(Step::More)
    }

    fn on_export_name(&self, name: &[u8], out: &mut BytesMut) -> Result<Step, NbdError> {
        if !self.is_ours(name) {
            return Err(NbdError::UnknownExport);
        }
        out.put_u64(self.export.size_bytes);
        out.put_u16(self.export.flags());
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        Ok(Step::Transmission { structured: self.structured })
    }

    fn on_info(&self, option: u32, mut data: Bytes, out: &mut BytesMut) -> Step {
        let Some((name, wanted)) = take_name(&mut data).and_then(|name| {
            let count = data.try_get_u16().ok()?;
            let whole = data.len() == usize::from(count) * 2;
            whole.then_some((name, data))
        }) else {
            reply(out, option, ERROR_INVALID, b"malformed request for an export");
            return Step::More;
        };
        if !self.is_ours(&name) {
            reply(out, option, ERROR_UNKNOWN, b"no such export");
            return Step::More;
        }
        let mut info = BytesMut::with_capacity(16);
        info.put_u16(INFO_EXPORT);
        info.put_u64(self.export.size_bytes);
        info.put_u16(self.export.flags());
        reply(out, option, REPLY_INFO, &info);
        // Sent unasked too: a client that does not know it ignores it.
        info.clear();
        info.put_u16(INFO_BLOCK_SIZE);
        info.put_u32(1);
        info.put_u32(u32::try_from(BLOCK_SIZE).unwrap_or(u32::MAX));
        info.put_u32(PAYLOAD_BYTES_MAX);
        reply(out, option, REPLY_INFO, &info);
        if wanted.chunks_exact(2).any(|kind| kind == INFO_NAME.to_be_bytes()) {
            info.clear();
            info.put_u16(INFO_NAME);
            info.put_slice(self.export.name.as_bytes());
            reply(out, option, REPLY_INFO, &info);
        }
        reply(out, option, REPLY_ACK, &[]);
        if option == OPTION_GO {
            Step::Transmission { structured: self.structured }
        } else {
            Step::More
        }
    }

    /// No context is offered, which is a valid answer: an acknowledgement without contexts.
    fn on_meta_context(&self, option: u32, mut data: Bytes, out: &mut BytesMut) {
        let Some(name) = take_name(&mut data) else {
            return reply(out, option, ERROR_INVALID, b"malformed metadata query");
        };
        let well_formed = data.try_get_u32().is_ok_and(|count| {
            (0..count).all(|_| take_name(&mut data).is_some()) && data.is_empty()
        });
        if !well_formed || (option == OPTION_SET_META_CONTEXT && !self.structured) {
            reply(out, option, ERROR_INVALID, b"malformed metadata query");
        } else if self.is_ours(&name) {
            reply(out, option, REPLY_ACK, &[]);
        } else {
            reply(out, option, ERROR_UNKNOWN, b"no such export");
        }
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }
}

fn next_option(input: &mut BytesMut) -> Result<Option<(u32, Bytes)>, NbdError> {
    let mut head: &[u8] = input;
    if head.len() < 16 {
        return Ok(None);
    }
    if head.get_u64() != OPTION_MAGIC {
        return Err(NbdError::Magic("option"));
    }
    let (option, len) = (head.get_u32(), head.get_u32());
    if len > OPTION_BYTES_MAX {
        return Err(NbdError::OptionTooLarge(len));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if head.len() < len {
        return Ok(None);
    }
    input.advance(16);
    Ok(Some((option, input.split_to(len).freeze())))
}

/// A 32-bit length and that many bytes.
fn take_name(data: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(data.try_get_u32().ok()?).ok()?;
    if len > NAME_BYTES_MAX || len > data.len() {
        return None;
    }
    Some(data.split_to(len))
}

fn reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(data.len()).unwrap_or(0));
    out.put_slice(data);
}
