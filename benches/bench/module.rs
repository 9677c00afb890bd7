//! Modules to pull, of any size: valid Proxy-Wasm filters that Envoy would load, in about the mix that
//! compilers emit: functions with the operators of compiled code, data, and names of functions.

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, CustomSection, DataSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, ImportSection, InstructionSink, MemArg, MemArgTarget, MemorySection,
    MemoryType, Module, NameMap, NameSection, TypeSection, ValType,
};

/// What is in a module, for people.
pub const MIX: &str = "70 % code, 18 % data, 10 % names";

const I32: ValType = ValType::I32;
/// Imported functions come first.
const IMPORTS: u32 = 1;
/// The functions that Envoy calls, before those that only fill the module.
const CALLBACKS: u32 = 3;

/// Makes another module of one that [`module`] made.
pub fn tag(module: &mut [u8], tag: u64) {
    let end = module.len() - TAG;
    module[end..].copy_from_slice(&tag.to_le_bytes());
}

/// The bytes at the end, in a custom section, that tell a module from others of its size.
const TAG: usize = 8;

/// A valid module of exactly this many bytes, at least some tens of thousands.
pub fn module(size: usize) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut code = CodeSection::new();
    let mut functions = FunctionSection::new();
    functions.function(1).function(2).function(3);
    // The mark of the ABI, an allocator that has nothing left, and a context that does nothing.
    code.function(&body(|_| {}));
    code.function(&body(|code| {
        code.i32_const(0);
    }));
    code.function(&body(|_| {}));
    let mut count = IMPORTS + CALLBACKS;
    while code.byte_len() < size * 70 / 100 {
        code.function(&compiled(&mut random, count));
        functions.function(4);
        count += 1;
    }
    let mut data = DataSection::new();
    let text: Vec<u8> = std::iter::repeat_with(|| random.word()).flatten().take(size * 18 / 100).collect();
    let pages = 2 + text.len() as u64 / 65_536;
    data.active(0, &ConstExpr::i32_const(1024), text);

    let names = |bytes: usize| {
        let (mut map, mut random) = (NameMap::new(), Random(1));
        let mut written = 0;
        for function in 0..count {
            let name = format!("_ZN{}17h{:016x}E", String::from_utf8_lossy(&random.word()), random.next());
            written += name.len() + 4;
            if written > bytes {
                break;
            }
            map.append(function, &name);
        }
        let mut names = NameSection::new();
        names.functions(&map);
        names
    };
    let whole = |names: &NameSection, rest: &[u8]| {
        let mut module = Module::new();
        module.section(&types()).section(&imports()).section(&functions).section(&memory(pages));
        module.section(&exports()).section(&code).section(&data).section(names);
        module.section(&CustomSection { name: "bench".into(), data: rest.into() });
        module.finish()
    };
    let names = names(size * 10 / 100);
    // What is left fills a custom section, whose own size may take more bytes than it did when empty.
    let mut rest = TAG + size.checked_sub(whole(&names, &[0; TAG]).len()).expect("room for the frame");
    loop {
        let module = whole(&names, &vec![0; rest]);
        match module.len().checked_sub(size) {
            None | Some(0) => return module,
            Some(over) => rest -= over,
        }
    }
}

fn types() -> TypeSection {
    let mut types = TypeSection::new();
    types.ty().function([I32, I32, I32], [I32]);
    types.ty().function([], []);
    types.ty().function([I32], [I32]);
    types.ty().function([I32, I32], []);
    types.ty().function([I32, I32], [I32]);
    types
}

fn imports() -> ImportSection {
    let mut imports = ImportSection::new();
    imports.import("env", "proxy_log", EntityType::Function(0));
    imports
}

fn memory(pages: u64) -> MemorySection {
    let mut memory = MemorySection::new();
    memory.memory(MemoryType {
        minimum: pages,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    memory
}

fn exports() -> ExportSection {
    let mut exports = ExportSection::new();
    exports.export("memory", ExportKind::Memory, 0);
    exports.export("proxy_abi_version_0_2_1", ExportKind::Func, IMPORTS);
    exports.export("malloc", ExportKind::Func, IMPORTS + 1);
    exports.export("proxy_on_context_create", ExportKind::Func, IMPORTS + 2);
    exports
}

fn body(write: impl FnOnce(&mut InstructionSink<'_>)) -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    write(&mut code);
    code.end();
    function
}

/// A function as a compiler writes them: some 300 bytes of arithmetic, memory, branches and calls of
/// those before it.
fn compiled(random: &mut Random, functions: u32) -> Function {
    let mut function = Function::new([(4, I32), (2, ValType::I64), (1, ValType::F64)]);
    let mut code = function.instructions();
    let callees = u64::from(functions - IMPORTS - CALLBACKS);
    for _ in 0..random.below(30) + 5 {
        let (a, b, c) = (random.below(6) as u32, random.below(6) as u32, random.below(6) as u32);
        let constant = random.next() as i32 >> random.below(31);
        let at =
            MemArg { offset: random.below(4096), align: 2, target: MemArgTarget::default(), ordering: None };
        match random.below(8) {
            0 => code.local_get(a).i32_const(constant).i32_add().local_set(b),
            1 => code.local_get(a).local_get(b).i32_store(at),
            2 => code.local_get(a).i32_load(at).local_tee(b).local_get(c).i32_xor().local_set(a),
            3 => {
                code.block(BlockType::Empty).local_get(a).i32_eqz().br_if(0);
                code.local_get(b).i32_const(constant).i32_lt_s().br_if(0);
                code.local_get(c).i32_const(1).i32_shl().local_set(c).end()
            }
            4 if callees > 0 => {
                let callee = IMPORTS + CALLBACKS + random.below(callees) as u32;
                code.local_get(a).local_get(b).call(callee).local_set(c)
            }
            5 => code
                .local_get(6)
                .local_get(a)
                .i64_extend_i32_u()
                .i64_mul()
                .local_tee(7)
                .i32_wrap_i64()
                .local_set(b),
            6 => code.local_get(a).f64_convert_i32_s().local_get(8).f64_add().local_set(8),
            _ => {
                code.local_get(a).if_(BlockType::Result(I32)).local_get(b).else_();
                code.i32_const(constant).end().local_set(c)
            }
        };
    }
    code.local_get(2).end();
    function
}

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Letters, with something that ends them.
    fn word(&mut self) -> Vec<u8> {
        let length = self.below(9) + 3;
        let mut word: Vec<u8> = (0..length).map(|_| b'a' + self.below(26) as u8).collect();
        word.push(b'_');
        word
    }
}
