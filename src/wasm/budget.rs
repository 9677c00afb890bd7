//! How much of everything a module may have. The check's memory is bounded by these, and they are
//! enforced before the validator sees a section: a valid module of a few megabytes could otherwise
//! make it take gigabytes.

use wasmparser::BinaryReader;

use super::error::ModuleError;

/// What a module may have at most. The defaults leave room for any real plugin (64 MB of Go, Rust,
/// C++ or AssemblyScript) and keep the check below 20 MiB for any module whatever: types, functions, exports
/// and the largest body cost 3 to 5 MiB each at their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Types. Large programs have a few thousand signatures.
    pub types: u32,
    /// Parameters, results and fields of all types together.
    pub params: u32,
    /// Parameters and results of one function type; fields of one struct type.
    pub params_per_type: u32,
    pub imports: u32,
    /// Functions with a body.
    pub functions: u32,
    pub exports: u32,
    /// Bytes of a section that is not code or custom; of the data section, without the data.
    pub section_bytes: u32,
    /// Bytes of one function's body. V8 itself ends at 7,654,321.
    pub function_body_bytes: u32,
    /// Values on the operand stack at any place of a function.
    pub operands: u32,
    /// Blocks within each other at any place of a function.
    pub nesting: u32,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            types: 10_000,
            params: 100_000,
            params_per_type: 128,
            imports: 1_000,
            functions: 250_000,
            exports: 10_000,
            section_bytes: 1 << 20,
            function_body_bytes: 4 << 20,
            operands: 100_000,
            nesting: 50_000,
        }
    }
}

/// `found` of something is within `limit`, or the error that says it is not.
pub(super) fn within(what: &'static str, found: u64, limit: u32) -> Result<(), ModuleError> {
    if found <= u64::from(limit) {
        Ok(())
    } else {
        Err(ModuleError::OverBudget { what, found, limit: limit.into() })
    }
}

impl Budgets {
    /// Walks over a section's bytes, which begin at `offset` in the module. Only the sections whose
    /// cost is not bounded by their size are looked into.
    pub(super) fn check_section(&self, id: u8, bytes: &[u8], offset: u64) -> Result<(), ModuleError> {
        let mut reader = BinaryReader::new(bytes, offset);
        let mut count = || Ok::<_, wasmparser::Error>(u64::from(reader.read_var_u32()?));
        match id {
            1 => TypeWalk { budgets: self, reader, types: 0, params: 0 }.section(),
            2 => within("imports", count()?, self.imports),
            3 => within("functions", count()?, self.functions),
            7 => within("exports", count()?, self.exports),
            _ => Ok(()),
        }
    }
}

/// Counts what is in a type section. Whether it is valid is left to the validator, but for what this
/// must understand to go on.
struct TypeWalk<'a> {
    budgets: &'a Budgets,
    reader: BinaryReader<'a>,
    types: u64,
    params: u64,
}

impl TypeWalk<'_> {
    fn section(mut self) -> Result<(), ModuleError> {
        let groups = self.reader.read_var_u32()?;
        // Told by the count alone where that suffices.
        within("types", groups.into(), self.budgets.types)?;
        for _ in 0..groups {
            match self.reader.read_u8()? {
                // A recursion group.
                0x4e => {
                    let types = self.reader.read_var_u32()?;
                    within("types", self.types.saturating_add(types.into()), self.budgets.types)?;
                    for _ in 0..types {
                        let form = self.reader.read_u8()?;
                        self.sub_type(form)?;
                    }
                }
                form => self.sub_type(form)?,
            }
        }
        Ok(())
    }

    fn sub_type(&mut self, form: u8) -> Result<(), ModuleError> {
        self.types = self.types.saturating_add(1);
        within("types", self.types, self.budgets.types)?;
        match form {
            0x4f | 0x50 => {
                for _ in 0..self.reader.read_var_u32()? {
                    self.reader.read_var_u32()?;
                }
                let form = self.reader.read_u8()?;
                self.composite(form)
            }
            form => self.composite(form),
        }
    }

    fn composite(&mut self, form: u8) -> Result<(), ModuleError> {
        match form {
            0x60 => {
                let params = self.values(0)?;
                self.values(params)?;
            }
            0x5f => {
                for field in 0..self.reader.read_var_u32()? {
                    self.count(u64::from(field).saturating_add(1))?;
                    self.value_type()?;
                    self.reader.read_u8()?;
                }
            }
            0x5e => {
                self.count(1)?;
                self.value_type()?;
                self.reader.read_u8()?;
            }
            _ => {
                let offset = self.reader.original_position().saturating_sub(1);
                return Err(ModuleError::invalid(offset, format!("unknown form of type {form:#04x}")));
            }
        }
        Ok(())
    }

    /// One vector of value types, after `before` others of the same type; returns how many there are
    /// now.
    fn values(&mut self, before: u64) -> Result<u64, ModuleError> {
        let mut here = before;
        for _ in 0..self.reader.read_var_u32()? {
            here = here.saturating_add(1);
            self.count(here)?;
            self.value_type()?;
        }
        Ok(here)
    }

    fn count(&mut self, here: u64) -> Result<(), ModuleError> {
        self.params = self.params.saturating_add(1);
        within("parameters, results and fields in one type", here, self.budgets.params_per_type)?;
        within("parameters, results and fields of types", self.params, self.budgets.params)
    }

    fn value_type(&mut self) -> Result<(), ModuleError> {
        // A reference to a heap type, which is a number; all other types are one byte.
        if matches!(self.reader.read_u8()?, 0x63 | 0x64) {
            self.reader.read_var_s33()?;
        }
        Ok(())
    }
}
