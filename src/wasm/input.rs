//! A module on disk, read forwards: numbers and names one by one, payloads skipped without reading
//! them. Never reads over the end of the section that it is in.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::error::ModuleError;

const BUFFER: usize = 64 * 1024;

pub(super) struct Input<R> {
    inner: BufReader<R>,
    position: u64,
    /// Where the current section ends; between sections, where the module does.
    end: u64,
    in_section: bool,
    /// The module's size.
    size: u64,
}

impl<R: Read + Seek> Input<R> {
    pub fn new(mut module: R) -> Result<Self, ModuleError> {
        let size = module.seek(SeekFrom::End(0))?;
        module.rewind()?;
        Ok(Self {
            inner: BufReader::with_capacity(BUFFER, module),
            position: 0,
            end: size,
            in_section: false,
            size,
        })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes up to the end of the section, or of the module.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }

    /// Enters a section of this size.
    pub fn enter(&mut self, size: u32) -> Result<(), ModuleError> {
        self.need(size.into())?;
        self.end = self.position.saturating_add(size.into());
        self.in_section = true;
        Ok(())
    }

    /// Leaves the section, whose end must have been reached.
    pub fn leave(&mut self) -> Result<(), ModuleError> {
        if self.left() > 0 {
            return Err(self.invalid("the section goes on after its last item"));
        }
        self.end = self.size;
        self.in_section = false;
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
        let read = (&mut self.inner).take(bytes.into()).read_to_end(to)?;
        self.position = self.position.saturating_add(read as u64);
        // The file became shorter while it was read.
        if read as u64 == u64::from(bytes) { Ok(()) } else { Err(self.truncated()) }
    }

    pub fn byte(&mut self) -> Result<u8, ModuleError> {
        self.need(1)?;
        let mut byte = [0];
        self.inner.read_exact(&mut byte)?;
        self.position = self.position.saturating_add(1);
        Ok(byte[0])
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

    fn truncated(&self) -> ModuleError {
        ModuleError::Truncated { size: self.size }
    }

    fn need(&self, bytes: u64) -> Result<(), ModuleError> {
        match () {
            () if bytes <= self.left() => Ok(()),
            () if self.in_section => Err(self.invalid("the section ends too early")),
            () => Err(self.truncated()),
        }
    }
}
