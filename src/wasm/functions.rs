//! Validates function bodies, which is most of what a check costs, on the processors that are there.
//!
//! Whoever reads the module collects bodies in batches. Threads beside it take them; when all are
//! busy, the reader does the next batch itself, and when it has read all, those that still wait. Memory is
//! bounded: a few batches, and of larger bodies only the one at hand. The outcome does not depend on the
//! threads: the first error in the module counts.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};

use wasmparser::{
    BinaryReader, FrameStack, FuncToValidate, FuncValidatorAllocations, ValidatorResources, VisitOperator,
};

use super::budget::{Budgets, within};
use super::check::FEATURES;
use super::error::ModuleError;

/// Bytes of bodies in a batch, about; a larger body is validated by the reader.
pub(super) const BATCH: usize = 64 * 1024;

/// Bodies in a batch, at most: what goes with each is larger than the smallest ones.
const BODIES: usize = 512;

/// By how many values an operator can make the stack higher, at most: wasmparser lets a type have no more
/// results than that, and no more parameters, which a block may have.
const MOST_VALUES: u32 = 1000;

/// Threads beside the reader, at most.
const MAX_HELPERS: usize = 3;

/// Takes in the functions of one module.
pub(super) struct Functions<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared<'env>,
    batch: Batch,
    /// Once there is a batch for them.
    helpers: Option<Helpers>,
    allocations: FuncValidatorAllocations,
}

/// The threads beside the reader.
struct Helpers {
    batches: SyncSender<Batch>,
    waiting: Waiting,
}

/// The batches that nobody has taken yet.
type Waiting = Arc<Mutex<Receiver<Batch>>>;

struct Shared<'a> {
    budgets: &'a Budgets,
    failed: AtomicBool,
    /// What was wrong, and where the function begins.
    first: Mutex<Option<(u64, ModuleError)>>,
    /// Empty batches. Their memory is used again: some allocators give that much back to the kernel
    /// each time.
    spare: Mutex<Vec<Batch>>,
}

struct Batch {
    bytes: Vec<u8>,
    bodies: Vec<Body>,
}

struct Body {
    function: FuncToValidate<ValidatorResources>,
    range: Range<usize>,
    /// Where it begins in the module.
    offset: u64,
}

/// Validates all functions that `read` puts in. An error in one of them comes before that of `read`.
pub(super) fn validate(
    budgets: &Budgets,
    read: impl FnOnce(&mut Functions<'_, '_>) -> Result<(), ModuleError>,
) -> Result<(), ModuleError> {
    let (failed, first, spare) = (AtomicBool::new(false), Mutex::new(None), Mutex::default());
    let shared = Shared { budgets, failed, first, spare };
    let outcome = thread::scope(|scope| {
        let mut functions = Functions {
            scope,
            shared: &shared,
            batch: shared.empty_batch(),
            helpers: None,
            allocations: FuncValidatorAllocations::default(),
        };
        let outcome = read(&mut functions);
        let Functions { batch, helpers, mut allocations, .. } = functions;
        shared.validate(batch, &mut allocations);
        if let Some(Helpers { batches, waiting }) = helpers {
            drop(batches);
            shared.help(&waiting, &mut allocations);
        }
        outcome
    });
    match shared.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => outcome,
    }
}

impl<'scope, 'env> Functions<'scope, 'env> {
    /// Whether the module is known to be invalid, and reading on is no use.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Validates a function whose body, longer than a batch, begins at `offset` in the module.
    pub(super) fn add_large(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &[u8],
        offset: u64,
    ) {
        self.shared.validate_one(function, body, offset, &mut self.allocations);
    }

    /// Where the next function's size and body go, behind what is there; the body only of at most a batch.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.batch.bytes
    }

    /// Takes in the function that is the last of these bytes: its body begins at `begin` in them, and at
    /// `offset` in the module.
    pub(super) fn add(&mut self, function: FuncToValidate<ValidatorResources>, begin: usize, offset: u64) {
        let range = begin..self.batch.bytes.len();
        self.batch.bodies.push(Body { function, range, offset });
        if self.batch.bytes.len() >= BATCH || self.batch.bodies.len() >= BODIES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let batch = std::mem::replace(&mut self.batch, self.shared.empty_batch());
        let helpers = self.helpers.get_or_insert_with(|| start_helpers(self.scope, self.shared));
        let sent = helpers.batches.try_send(batch);
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = sent {
            self.shared.validate(batch, &mut self.allocations);
        }
    }
}

/// Starts as many threads as there are processors to spare. They end when nothing more can come.
fn start_helpers<'scope, 'env>(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared<'env>) -> Helpers {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let helpers = processors.saturating_sub(1).min(MAX_HELPERS);
    let (batches, waiting) = sync_channel(helpers);
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..helpers {
        let waiting = waiting.clone();
        // Where no thread is to be had, the reader does it all.
        let _ = thread::Builder::new()
            .name("module-check".to_owned())
            .spawn_scoped(scope, move || shared.help(&waiting, &mut FuncValidatorAllocations::default()));
    }
    Helpers { batches, waiting }
}

impl Shared<'_> {
    /// Until no more batches can come.
    fn help(&self, waiting: &Waiting, allocations: &mut FuncValidatorAllocations) {
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(batch) = next() {
            self.validate(batch, allocations);
        }
    }

    fn empty_batch(&self) -> Batch {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Batch { bytes: Vec::new(), bodies: Vec::new() })
    }

    fn validate(&self, mut batch: Batch, allocations: &mut FuncValidatorAllocations) {
        for Body { function, range, offset } in batch.bodies.drain(..) {
            self.validate_one(function, batch.bytes.get(range).unwrap_or_default(), offset, allocations);
        }
        batch.bytes.clear();
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
    }

    fn validate_one(
        &self,
        function: FuncToValidate<ValidatorResources>,
        body: &[u8],
        offset: u64,
        allocations: &mut FuncValidatorAllocations,
    ) {
        let Err(error) = validate_body(self.budgets, function, body, offset, allocations) else { return };
        self.failed.store(true, Ordering::Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(earlier, _)| offset < *earlier) {
            *first = Some((offset, error));
        }
    }
}

fn validate_body(
    budgets: &Budgets,
    function: FuncToValidate<ValidatorResources>,
    body: &[u8],
    offset: u64,
    allocations: &mut FuncValidatorAllocations,
) -> Result<(), ModuleError> {
    let mut reader = BinaryReader::new_features(body, offset, FEATURES);
    let mut validator = function.into_validator(std::mem::take(allocations));
    validator.read_locals(&mut reader)?;
    loop {
        let (values, blocks) = (validator.operand_stack_height(), validator.control_stack_height());
        within("values on the stack", values.into(), budgets.operands)?;
        within("blocks within each other", blocks.into(), budgets.nesting)?;
        if reader.eof() {
            break;
        }
        // So many operators end within the budgets, whatever they are: to look after each of them would
        // cost a tenth more.
        let (values, blocks) = (budgets.operands - values, budgets.nesting - blocks);
        for _ in 0..(values / MOST_VALUES).min(blocks).max(1) {
            if reader.eof() {
                break;
            }
            let mut visitor = validator.visitor(reader.original_position());
            visit(&mut reader, body, &mut visitor)?;
        }
    }
    reader.finish_expression(&validator.visitor(reader.original_position()))?;
    *allocations = validator.into_allocations();
    Ok(())
}

/// Reads the next operator of a body and has it validated, as [`BinaryReader::visit_operator`] does, which
/// knows them all and is too large to become part of a loop. These few are seven of ten that compilers
/// write: to tell them apart here makes the whole an eighth faster.
#[inline]
fn visit<'a>(
    reader: &mut BinaryReader<'a>,
    body: &[u8],
    validator: &mut (impl VisitOperator<'a, Output = wasmparser::Result<()>> + FrameStack),
) -> wasmparser::Result<()> {
    let index = |reader: &mut BinaryReader<'a>| reader.read_u8().and_then(|_| reader.read_var_u32());
    match body.get(reader.current_position()).filter(|_| validator.current_frame().is_some()) {
        Some(0x0b) => reader.read_u8().and_then(|_| validator.visit_end()),
        Some(0x0c) => validator.visit_br(index(reader)?),
        Some(0x0d) => validator.visit_br_if(index(reader)?),
        Some(0x10) => validator.visit_call(index(reader)?),
        Some(0x20) => validator.visit_local_get(index(reader)?),
        Some(0x21) => validator.visit_local_set(index(reader)?),
        Some(0x22) => validator.visit_local_tee(index(reader)?),
        Some(0x41) => reader.read_u8().and_then(|_| validator.visit_i32_const(reader.read_var_i32()?)),
        Some(0x45) => reader.read_u8().and_then(|_| validator.visit_i32_eqz()),
        Some(0x6a) => reader.read_u8().and_then(|_| validator.visit_i32_add()),
        _ => reader.visit_operator(validator)?,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use wasm_encoder::{CodeSection, Function, FunctionSection, Module, TypeSection, ValType};
    use wasmparser::{FunctionBody, Parser, ValidPayload, Validator};

    use super::*;

    /// A module of many functions, of which those that are named are invalid.
    fn module(functions: u32, invalid: &[u32]) -> Vec<u8> {
        let mut types = TypeSection::new();
        types.ty().function([], []);
        let (mut declared, mut code) = (FunctionSection::new(), CodeSection::new());
        for number in 0..functions {
            declared.function(0);
            let mut function = Function::new([]);
            for _ in 0..40 {
                function.instructions().i32_const(7).drop();
            }
            if invalid.contains(&number) {
                function.instructions().drop();
            }
            function.instructions().end();
            code.function(&function);
        }
        let mut module = Module::new();
        module.section(&types).section(&declared).section(&code);
        module.finish()
    }

    fn offset_of_error(module: &[u8]) -> Option<u64> {
        match super::super::check(Cursor::new(module), &Budgets::default()) {
            Err(ModuleError::Invalid { offset, .. }) => Some(offset),
            // Valid, as far as its code goes.
            Err(ModuleError::NoAbiVersion) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whatever_the_threads_do_the_first_invalid_function_is_reported() {
        const FUNCTIONS: u32 = 20_000;
        let first = offset_of_error(&module(FUNCTIONS, &[4_000])).expect("an error");
        for others in [[4_001, 4_600], [9_000, 19_999], [4_010, 12_000]] {
            let module = module(FUNCTIONS, &[&[4_000], others.as_slice()].concat());
            for _ in 0..5 {
                assert_eq!(offset_of_error(&module), Some(first));
            }
        }
        assert_eq!(offset_of_error(&module(FUNCTIONS, &[])), None);
    }

    /// The one function of a module, to be validated.
    fn only(module: &[u8]) -> (FuncToValidate<ValidatorResources>, FunctionBody<'_>) {
        let mut parser = Parser::new(0);
        parser.set_features(FEATURES);
        let mut validator = Validator::new_with_features(FEATURES);
        let functions = parser.parse_all(module).filter_map(|payload| {
            match validator.payload(&payload.expect("a whole section")).expect("a valid section") {
                ValidPayload::Func(function, body) => Some((function, body)),
                _ => None,
            }
        });
        functions.last().expect("a function")
    }

    /// What is said of a body here, and by wasmparser's own way through it.
    fn both(body: &[u8]) -> [Result<(), String>; 2] {
        let mut types = TypeSection::new();
        types.ty().function([ValType::I32], [ValType::I32]);
        let (mut functions, mut code) = (FunctionSection::new(), CodeSection::new());
        functions.function(0);
        code.raw(body);
        let mut module = Module::new();
        let module = module.section(&types).section(&functions).section(&code).as_slice();
        let mut allocations = FuncValidatorAllocations::default();
        let (function, body) = only(module);
        let (bytes, offset) = (body.as_bytes(), body.range().start);
        let ours = validate_body(&Budgets::default(), function, bytes, offset, &mut allocations);
        let (function, body) = only(module);
        let theirs = function.into_validator(allocations).validate(&body).map_err(ModuleError::from);
        [ours, theirs].map(|verdict| verdict.map_err(|error| format!("{error:?}")))
    }

    #[test]
    fn every_operator_is_judged_as_wasmparser_judges_it() {
        let befores: [&[u8]; 5] =
            [&[], &[0x20, 0], &[0x41, 7, 0x41, 7, 0x41, 7], &[0x02, 0x40, 0x20, 0], &[0x20, 0, 0x0b]];
        let numbers: [&[u8]; 7] =
            [&[], &[0], &[1], &[0x80, 0], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80; 4], &[0x80; 9]];
        let afters: [&[u8]; 4] = [&[], &[0x0b], &[0x0b, 0x0b], &[0x1a, 0x0b]];
        let (mut valid, mut invalid) = (0, 0);
        for operator in 0..=u8::MAX {
            for before in befores {
                for rest in numbers.iter().flat_map(|number| afters.map(|after| [*number, after].concat())) {
                    let body = [&[0][..], before, &[operator], &rest].concat();
                    let [ours, theirs] = both(&body);
                    assert_eq!(ours, theirs, "{body:x?}");
                    *if ours.is_ok() { &mut valid } else { &mut invalid } += 1;
                }
            }
        }
        assert!(valid > 100 && invalid > 10_000, "{valid} and {invalid}");
    }

    #[test]
    fn what_the_last_operator_puts_over_a_budget_is_refused_for_that() {
        let module = module(1, &[]);
        let budgets = Budgets { operands: 2, ..Budgets::default() };
        let verdict = |values: usize| {
            let body = [&[0][..], &[0x41, 7].repeat(values)].concat();
            validate_body(&budgets, only(&module).0, &body, 0, &mut FuncValidatorAllocations::default())
        };
        assert!(matches!(verdict(2), Err(ModuleError::Invalid { .. })), "it has no end");
        assert!(matches!(verdict(3), Err(ModuleError::OverBudget { .. })), "nor has this, after too much");
    }

    #[test]
    fn an_invalid_function_comes_before_the_end_that_is_missing() {
        let module = module(20_000, &[19_000]);
        let whole = offset_of_error(&module).expect("an error");
        assert_eq!(offset_of_error(&module[..module.len() - 100]), Some(whole));
    }
}
