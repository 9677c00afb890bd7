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
        // Nearly all are at hand and short, too short to be more than 32 bits.
        let there = self.inner.buffer();
        let last = there.iter().take(4).position(|byte| byte & 0x80 == 0);
        if let Some(bytes) = last.and_then(|last| there.get(..=last))
            && self.need(bytes.len() as u64).is_ok()
        {
            let number = bytes.iter().rev().fold(0, |number, byte| number << 7 | u32::from(byte & 0x7f));
            let count = bytes.len();
            to.extend(bytes);
            self.inner.consume(count);
            self.position = self.position.saturating_add(count as u64);
            return Ok(number);
        }
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

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use super::*;

    /// Gives one byte at a time.
    struct Trickle(Cursor<Vec<u8>>);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }

    impl Seek for Trickle {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    /// A number in a section of so many bytes, as what it was read, and where that ends.
    fn read(module: impl Read + Seek, section: u32) -> Result<(u32, Vec<u8>, u64), String> {
        let (mut input, mut bytes) = (Input::new(module).unwrap(), Vec::new());
        input.byte().unwrap();
        input.enter(section);
        let number = input.number(&mut bytes).map_err(|error| error.to_string())?;
        Ok((number, bytes, input.position()))
    }

    #[test]
    fn a_number_is_the_same_whether_it_comes_in_one_piece_or_in_bytes() {
        let long = |length: usize, last: u8| [vec![0x80 | 0x5a; length - 1], vec![last]].concat();
        let mut numbers: Vec<_> =
            (1..=6).flat_map(|length| [0, 1, 0x0f, 0x10, 0x7f].map(|last| long(length, last))).collect();
        numbers.extend((1..=6).map(|length| vec![0x80; length]));
        let mut read_well = 0;
        for number in numbers {
            let module = [&[0], number.as_slice()].concat();
            for section in number.len() as u32 - 1..=number.len() as u32 + 1 {
                let whole = read(Cursor::new(module.clone()), section);
                let pieces = read(Trickle(Cursor::new(module.clone())), section);
                assert_eq!(whole, pieces, "{number:x?} in {section} bytes");
                if let Ok((value, bytes, end)) = whole {
                    let expected = number.iter().rev().fold(0, |all, byte| all << 7 | u64::from(byte & 0x7f));
                    assert_eq!(
                        (u64::from(value), bytes, end),
                        (expected, number.clone(), module.len() as u64)
                    );
                    read_well += 1;
                }
            }
        }
        assert!(read_well > 40, "{read_well}");
    }
}
