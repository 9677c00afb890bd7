//! A module on disk, read forwards: numbers and names one by one, payloads skipped without reading
//! them. Never reads over the end of the section that it is in, and asks for the module's size only
//! at its end: it may still be on its way.

use std::io::{BufRead as _, BufReader, Read, Seek, SeekFrom};

use super::error::ModuleError;

const BUFFER: usize = 64 * 1024;

pub(super) struct Input<R> {
    inner: BufReader<R>,
    position: u64,
    /// Where the current section ends.
    end: Option<u64>,
}

impl<R: Read + Seek> Input<R> {
    pub fn new(mut module: R) -> Result<Self, ModuleError> {
        module.rewind()?;
        Ok(Self { inner: BufReader::with_capacity(BUFFER, module), position: 0, end: None })
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes up to the end of the section.
    pub fn left(&self) -> u64 {
        self.end.unwrap_or(self.position).saturating_sub(self.position)
    }

    /// Between two sections: whether the module ends here.
    pub fn is_at_end(&mut self) -> Result<bool, ModuleError> {
        if !self.inner.fill_buf()?.is_empty() {
            return Ok(false);
        }
        // What was skipped was perhaps not there.
        if self.size()? == self.position { Ok(true) } else { Err(self.truncated()) }
    }

    /// Enters a section of this size.
    pub fn enter(&mut self, size: u32) {
        self.end = Some(self.position.saturating_add(size.into()));
    }

    /// Leaves the section, whose end must have been reached.
    pub fn leave(&mut self) -> Result<(), ModuleError> {
        if self.left() > 0 {
            return Err(self.invalid("the section goes on after its last item"));
        }
        self.end = None;
        Ok(())
    }

    pub fn skip(&mut self, bytes: u64) -> Result<(), ModuleError> {
        self.need(bytes)?;
        self.inner.seek_relative(i64::try_from(bytes).unwrap_or(i64::MAX))?;
        self.position = self.position.saturating_add(bytes);
        Ok(())
    }

    /// Reads bytes onto the end of `to`.
    pub fn append(&mut self, bytes: u32, to: &mut Vec<u8>) -> Result<(), ModuleError> {
        self.need(bytes.into())?;
        let mut left = bytes as usize;
        while left > 0 {
            let there = self.inner.fill_buf()?;
            let part = there.get(..left).unwrap_or(there);
            if part.is_empty() {
                return Err(self.truncated());
            }
            to.extend_from_slice(part);
            let count = part.len();
            self.inner.consume(count);
            left -= count;
            self.position = self.position.saturating_add(count as u64);
        }
        Ok(())
    }

    pub fn byte(&mut self) -> Result<u8, ModuleError> {
        self.need(1)?;
        let Some(byte) = self.inner.fill_buf()?.first().copied() else { return Err(self.truncated()) };
        self.inner.consume(1);
        self.position = self.position.saturating_add(1);
        Ok(byte)
    }

    /// A number in LEB128, whose bytes are also put on the end of `to` as they are.
    pub fn number(&mut self, to: &mut Vec<u8>) -> Result<u32, ModuleError> {
        let mut number = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            to.push(byte);
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && byte > 0x0f {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.invalid("a number is longer than 32 bits"))
    }

    pub fn invalid(&self, what: &str) -> ModuleError {
        ModuleError::invalid(self.position, what.to_owned())
    }

    /// The module's size. Where it is still being written, this waits for its end.
    fn size(&mut self) -> Result<u64, ModuleError> {
        let module = self.inner.get_mut();
        let (position, size) = (module.stream_position()?, module.seek(SeekFrom::End(0))?);
        module.seek(SeekFrom::Start(position))?;
        Ok(size)
    }

    fn truncated(&mut self) -> ModuleError {
        match self.size() {
            Ok(size) => ModuleError::Truncated { size },
            Err(error) => error,
        }
    }

    /// Holds what is to be read next against the section's end.
    fn need(&self, bytes: u64) -> Result<(), ModuleError> {
        match self.end {
            Some(end) if bytes > end.saturating_sub(self.position) => {
                Err(self.invalid("the section ends too early"))
            }
            _ => Ok(()),
        }
    }
}
