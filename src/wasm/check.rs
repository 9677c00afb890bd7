//! Whether Envoy will take a module. It matters to know before Envoy tries: a config that Envoy
//! refuses does lasting harm (it poisons later updates, and ends the warming of others), and some
//! modules end the process.
//!
//! Reads the module from disk, forwards, perhaps while it is still being written, in bounded memory: custom sections and data are skipped,
//! [`Budgets`] are enforced before wasmparser sees a section, and functions are validated one by
//! one, several at a time. What cannot be known without running the module (a start function that traps, a plugin that
//! refuses its configuration) is not checked.

use std::io::{Read, Seek};

use wasmparser::types::Types;
use wasmparser::{Chunk, FuncToValidate, Parser, ValidPayload, Validator, ValidatorResources, WasmFeatures};

use super::abi::{self, AbiVersion};
use super::budget::{Budgets, within};
use super::error::ModuleError;
use super::functions;
use super::input::Input;
use super::{ReadToSlice as _, looks_like, printable};

/// The WebAssembly that V8 takes in Envoy 1.40.0 as it is built, proposal by proposal: each was tried.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::GC_TYPES)
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::THREADS)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::MEMORY64)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::EXCEPTIONS)
    .union(WasmFeatures::LEGACY_EXCEPTIONS)
    .union(WasmFeatures::FUNCTION_REFERENCES)
    .union(WasmFeatures::GC);

/// What is known of a module that Envoy will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleInfo {
    pub abi: AbiVersion,
    /// Bytes.
    pub size: u64,
    /// Functions with a body.
    pub functions: u32,
    /// Imported functions, memories and tables.
    pub imports: u32,
}

/// Checks that Envoy will take the module.
///
/// # Errors
///
/// The first thing that is wrong, see [`ModuleError`]. Except for [`ModuleError::Read`] the answer
/// is the same whenever the same bytes are checked with the same budgets.
pub fn check(mut module: impl Read + Seek, budgets: &Budgets) -> Result<ModuleInfo, ModuleError> {
    let mut head = [0; 512];
    module.rewind()?;
    let filled = module.read_to_slice(&mut head)?;
    check_header(head.get(..filled).unwrap_or_default())?;
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    let walk = Walk {
        input: Input::new(module)?,
        budgets,
        parser,
        validator: Validator::new_with_features(FEATURES),
        fed: 0,
        chunk: Vec::new(),
        functions: 0,
        names_seen: false,
    };
    walk.module()
}

/// Holds the first bytes of a module, as many as there are, against a module's header.
fn check_header(head: &[u8]) -> Result<(), ModuleError> {
    match head {
        [] => Err(ModuleError::Empty),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Err(ModuleError::Component),
        [0, b'a', b's', b'm', a, b, c, d, ..] => {
            Err(ModuleError::Version(u32::from_le_bytes([*a, *b, *c, *d])))
        }
        _ if b"\0asm\x01\0\0\0".starts_with(head) => Err(ModuleError::Truncated { size: head.len() as u64 }),
        _ => Err(ModuleError::NotWasm(looks_like(head))),
    }
}

/// The walk over the sections. What the validator gets to see is the module without custom sections
/// and with every data segment emptied; neither changes whether it is valid.
struct Walk<'a, R> {
    input: Input<R>,
    budgets: &'a Budgets,
    parser: Parser,
    validator: Validator,
    /// How many bytes the parser got, which is where it believes to be.
    fed: u64,
    /// What the parser gets next: the header, a section or a function. The one buffer for all.
    chunk: Vec<u8>,
    functions: u32,
    names_seen: bool,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn module(mut self) -> Result<ModuleInfo, ModuleError> {
        self.input.append(8, &mut self.chunk)?;
        self.feed_chunk(0)?;
        while !self.input.is_at_end()? {
            self.section()?;
        }
        let types = self.end()?;
        let abi = abi::check_interface(types.as_ref())?;
        let imports = types.as_ref().core_imports().into_iter().flatten().count();
        Ok(ModuleInfo {
            abi,
            size: self.input.position(),
            functions: self.functions,
            imports: u32::try_from(imports).unwrap_or(u32::MAX),
        })
    }

    fn section(&mut self) -> Result<(), ModuleError> {
        let start = self.input.position();
        self.chunk.clear();
        let id = self.input.byte()?;
        self.chunk.push(id);
        let size = self.input.number(&mut self.chunk)?;
        self.input.enter(size);
        match id {
            0 => self.custom()?,
            10 => self.code(start)?,
            11 => self.data(start)?,
            1..=13 => {
                within("bytes in one section", size.into(), self.budgets.section_bytes)?;
                let (offset, header) = (self.input.position(), self.chunk.len());
                self.input.append(size, &mut self.chunk)?;
                self.budgets.check_section(id, self.chunk.get(header..).unwrap_or_default(), offset)?;
                self.feed_chunk(start)?;
            }
            _ => return Err(ModuleError::invalid(start, format!("unknown section {id}"))),
        }
        self.input.leave()
    }

    /// Hands the chunk on, see [`feed`](Self::feed).
    fn feed_chunk(
        &mut self,
        start: u64,
    ) -> Result<Option<(FuncToValidate<ValidatorResources>, usize)>, ModuleError> {
        let chunk = std::mem::take(&mut self.chunk);
        let outcome = self.feed(&chunk, start);
        self.chunk = chunk;
        outcome
    }

    /// Hands bytes that begin at `start` in the module to the parser and what that makes of them to
    /// the validator. A function is returned: what is left to do, and where in the bytes its body
    /// begins.
    fn feed(
        &mut self,
        chunk: &[u8],
        start: u64,
    ) -> Result<Option<(FuncToValidate<ValidatorResources>, usize)>, ModuleError> {
        let fed = self.fed;
        let place = move |error: wasmparser::Error| {
            let offset = start.saturating_add(error.offset().saturating_sub(fed));
            ModuleError::invalid(offset, error.message().to_owned())
        };
        match self.parser.parse(chunk, false).map_err(place)? {
            Chunk::Parsed { consumed, payload } if consumed == chunk.len() => {
                self.fed = fed.saturating_add(consumed as u64);
                Ok(match self.validator.payload(&payload).map_err(place)? {
                    ValidPayload::Func(function, body) => {
                        Some((function, consumed.saturating_sub(body.as_bytes().len())))
                    }
                    _ => None,
                })
            }
            _ => Err(ModuleError::invalid(start, "it does not end where its size says".to_owned())),
        }
    }

    fn end(&mut self) -> Result<Types, ModuleError> {
        let place = |error: wasmparser::Error| {
            ModuleError::invalid(self.input.position(), error.message().to_owned())
        };
        if let Chunk::Parsed { payload, .. } = self.parser.parse(&[], true).map_err(place)?
            && let ValidPayload::End(types) = self.validator.payload(&payload).map_err(place)?
        {
            return Ok(types);
        }
        Err(ModuleError::Truncated { size: self.input.position() })
    }

    fn code(&mut self, start: u64) -> Result<(), ModuleError> {
        let functions = self.input.number(&mut self.chunk)?;
        self.functions = functions;
        self.feed_chunk(start)?;
        functions::validate(self.budgets, |validation| {
            for _ in 0..functions {
                if validation.has_failed() {
                    break;
                }
                let start = self.input.position();
                // Bodies are most of a module: they are read to where they stay.
                let bytes = validation.bytes();
                let begin = bytes.len();
                let size = self.input.number(bytes)?;
                within("bytes in one function", size.into(), self.budgets.function_body_bytes)?;
                if size as usize > functions::BATCH {
                    self.chunk.clear();
                    self.chunk.extend(bytes.drain(begin..));
                    self.input.append(size, &mut self.chunk)?;
                    if let Some((function, body)) = self.feed_chunk(start)? {
                        let offset = start.saturating_add(body as u64);
                        validation.add_large(function, self.chunk.get(body..).unwrap_or_default(), offset);
                    }
                    continue;
                }
                self.input.append(size, bytes)?;
                if let Some((function, body)) = self.feed(bytes.get(begin..).unwrap_or_default(), start)? {
                    validation.add(function, begin + body, start.saturating_add(body as u64));
                }
            }
            Ok(())
        })
    }

    /// Gives the validator a data section whose segments have no data.
    fn data(&mut self, start: u64) -> Result<(), ModuleError> {
        let mut headers = Vec::new();
        let mut ignored = Vec::new();
        for _ in 0..self.input.number(&mut headers)? {
            let mode = self.input.number(&mut headers)?;
            if mode == 2 {
                self.input.number(&mut headers)?;
            }
            if mode != 1 {
                self.offset_expression(&mut headers)?;
            }
            ignored.clear();
            let size = self.input.number(&mut ignored)?;
            self.input.skip(size.into())?;
            headers.push(0);
            within("bytes in the data section's headers", headers.len() as u64, self.budgets.section_bytes)?;
        }
        self.chunk.clear();
        self.chunk.push(11);
        let size = u32::try_from(headers.len()).unwrap_or(u32::MAX);
        self.chunk.extend((0..5).map(|n| (size >> (7 * n)) as u8 & 0x7f | if n < 4 { 0x80 } else { 0 }));
        self.chunk.extend(headers);
        // The parser's offsets mean nothing here.
        self.feed_chunk(start).map(drop).map_err(|error| match error {
            ModuleError::Invalid { what, .. } => ModuleError::invalid(start, what),
            other => other,
        })
    }

    /// Copies the expression that places a data segment. Only these operators can make a number.
    fn offset_expression(&mut self, to: &mut Vec<u8>) -> Result<(), ModuleError> {
        loop {
            let operator = self.input.byte()?;
            to.push(operator);
            match operator {
                // end
                0x0b => return Ok(()),
                // add, sub, mul of i32 and i64
                0x6a..=0x6c | 0x7c..=0x7e => {}
                // global.get, i32.const, i64.const: the last of the number's bytes has its high bit clear
                0x23 | 0x41 | 0x42 => loop {
                    let byte = self.input.byte()?;
                    to.push(byte);
                    if byte & 0x80 == 0 {
                        break;
                    }
                },
                _ => return Err(self.input.invalid("the offset of a data segment is not a constant number")),
            }
            within("bytes in the data section's headers", to.len() as u64, self.budgets.section_bytes)?;
        }
    }

    fn custom(&mut self) -> Result<(), ModuleError> {
        self.chunk.clear();
        let length = self.input.number(&mut self.chunk)?;
        within("bytes in the name of a custom section", length.into(), self.budgets.section_bytes)?;
        self.chunk.clear();
        self.input.append(length, &mut self.chunk)?;
        let name = std::str::from_utf8(&self.chunk)
            .map_err(|_| self.input.invalid("the name of a custom section is not UTF-8"))?;
        if name.contains("precompiled_") || name.contains("wamr-aot") {
            return Err(ModuleError::Precompiled { section: printable(name.as_bytes()) });
        }
        if name == "name" && !std::mem::replace(&mut self.names_seen, true) {
            self.names()?;
        }
        self.input.skip(self.input.left())
    }

    /// Engines ignore a malformed name section. Envoy does not: it reads the first one itself, for
    /// backtraces, and refuses the module where it cannot.
    fn names(&mut self) -> Result<(), ModuleError> {
        let malformed = |input: &Input<R>| ModuleError::NameSection { offset: input.position() };
        let mut ignored = Vec::new();
        let mut number = |input: &mut Input<R>| {
            ignored.clear();
            input.number(&mut ignored).map_err(|error| match error {
                ModuleError::Invalid { offset, .. } => ModuleError::NameSection { offset },
                other => other,
            })
        };
        let input = &mut self.input;
        while input.left() > 0 {
            let id = input.byte()?;
            let size = u64::from(number(input)?);
            let end = input.left().checked_sub(size).ok_or_else(|| malformed(input))?;
            if id != 1 {
                input.skip(size)?;
                continue;
            }
            for _ in 0..number(input)? {
                number(input)?;
                let length = u64::from(number(input)?);
                if length > input.left() {
                    return Err(malformed(input));
                }
                input.skip(length)?;
            }
            if input.left() != end {
                return Err(malformed(input));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
