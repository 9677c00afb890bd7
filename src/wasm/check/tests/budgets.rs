//! Limits, and what the check costs.

use std::os::fd::AsFd as _;
use std::process::Command;

use super::*;

/// A module that is not held in memory: a beginning, and one piece again and again.
struct Repeated {
    head: Vec<u8>,
    piece: Vec<u8>,
    times: u64,
    position: u64,
    read: u64,
}

impl Repeated {
    fn new(head: Vec<u8>, piece: Vec<u8>, times: u64) -> Self {
        Self { head, piece, times, position: 0, read: 0 }
    }

    fn size(&self) -> u64 {
        self.head.len() as u64 + self.piece.len() as u64 * self.times
    }
}

impl Read for &mut Repeated {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let size = self.size();
        let mut written = 0;
        while written < buf.len() && self.position < size {
            let at = self.position as usize;
            buf[written] = match self.head.get(at) {
                Some(&byte) => byte,
                None => self.piece[(at - self.head.len()) % self.piece.len()],
            };
            written += 1;
            self.position += 1;
        }
        self.read += written as u64;
        Ok(written)
    }
}

impl Seek for &mut Repeated {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(n) => n,
            SeekFrom::End(n) => self.size().strict_add_signed(n),
            SeekFrom::Current(n) => self.position.strict_add_signed(n),
        };
        Ok(self.position)
    }
}

fn func_type(params: usize) -> Vec<u8> {
    [&[0x60][..], &leb(params), &vec![0x7f; params], &[0]].concat()
}

fn over_budget(result: Result<ModuleInfo, ModuleError>) -> &'static str {
    match result {
        Err(ModuleError::OverBudget { what, found, limit }) => {
            assert!(found > limit);
            what
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_million_types_of_200_parameters_are_refused_unread() {
    let (count, ty) = (leb(1_000_000), func_type(200));
    let size = count.len() + ty.len() * 1_000_000;
    let head = [HEADER, &[1], &leb(size), &count].concat();
    let mut module = Repeated::new(head, ty, 1_000_000);
    assert_eq!(over_budget(check(&mut module, &Budgets::default())), "bytes in one section");
    // One buffer, and the beginning of the module for its header.
    assert!(module.read <= 65 * 1024, "{} bytes were read", module.read);
}

fn types(count: usize, content: &[u8]) -> Vec<u8> {
    [HEADER, &section(1, &[&leb(count)[..], content].concat())].concat()
}

#[test]
fn types_are_counted_before_the_validator_sees_them() {
    let defaults = Budgets::default();
    let result = |module: Vec<u8>| check(Cursor::new(module), &defaults);
    let many = types(10_001, &func_type(0).repeat(10_001));
    assert_eq!(over_budget(result(many)), "types");
    let group = [&[0x4e][..], &leb(10_001), &func_type(0).repeat(10_001)].concat();
    assert_eq!(over_budget(result(types(1, &group))), "types");
    let two = [&[0x4e][..], &leb(5_001), &func_type(0).repeat(5_001)].concat().repeat(2);
    assert_eq!(over_budget(result(types(2, &two))), "types");
    let wide = types(1, &func_type(129));
    assert_eq!(over_budget(result(wide)), "parameters, results and fields in one type");
    let long = types(1_000, &func_type(101).repeat(1_000));
    assert_eq!(over_budget(result(long)), "parameters, results and fields of types");
    let fields = [&[0x5f][..], &leb(129), &[0x7f, 0].repeat(129)].concat();
    assert_eq!(over_budget(result(types(1, &fields))), "parameters, results and fields in one type");
    let references = [&[0x60][..], &leb(129), &[0x64, 0x70].repeat(129), &[0]].concat();
    assert_eq!(over_budget(result(types(1, &references))), "parameters, results and fields in one type");
}

#[test]
fn parameters_and_results_count_together() {
    let both = |params: usize, results: usize| {
        types(
            1,
            &[&[0x60][..], &leb(params), &vec![0x7f; params], &leb(results), &vec![0x7f; results]].concat(),
        )
    };
    assert_eq!(verdict(&both(64, 64)), "no_abi_version");
    assert_eq!(verdict(&both(64, 65)), "over_budget");
}

#[test]
fn each_budget_is_a_limit_and_the_error_names_it() {
    let module = plugin_with(
        "(func (result i32) i32.const 0 i32.const 0 block (result i32) i32.const 1 end i32.add i32.add)",
    );
    let with = |change: fn(&mut Budgets)| {
        let mut budgets = Budgets::default();
        change(&mut budgets);
        over_budget(check(Cursor::new(&module), &budgets))
    };
    assert_eq!(with(|b| b.types = 2), "types");
    assert_eq!(with(|b| b.params = 2), "parameters, results and fields of types");
    assert_eq!(with(|b| b.functions = 2), "functions");
    assert_eq!(with(|b| b.exports = 2), "exports");
    assert_eq!(with(|b| b.section_bytes = 8), "bytes in one section");
    assert_eq!(with(|b| b.function_body_bytes = 8), "bytes in one function");
    assert_eq!(with(|b| b.operands = 2), "values on the stack");
    assert_eq!(with(|b| b.nesting = 1), "blocks within each other");
    let import = plugin(r#"(import "env" "proxy_done" (func (result i32)))"#);
    let budgets = Budgets { imports: 0, ..Budgets::default() };
    assert_eq!(over_budget(check(Cursor::new(&import), &budgets)), "imports");
    let data = plugin_with(&r#"(data (i32.const 0) "")"#.repeat(100));
    let budgets = Budgets { section_bytes: 200, ..Budgets::default() };
    assert_eq!(over_budget(check(Cursor::new(&data), &budgets)), "bytes in the data section's headers");
}

#[test]
fn what_is_over_a_budget_for_one_operator_s_time_is_refused() {
    const LIMIT: u32 = 5_000;
    let budgets = Budgets { operands: LIMIT, nesting: LIMIT, ..Budgets::default() };
    let stack = |before: usize, values: usize| {
        let (before, values) =
            ("nop ".repeat(before), ["i32.const 0 ", "drop "].map(|one| one.repeat(values)));
        plugin_with(&format!("(func {before} {})", values.concat()))
    };
    let blocks = |before: usize, blocks: usize| {
        let (before, blocks) = ("nop ".repeat(before), ["block ", "end "].map(|one| one.repeat(blocks)));
        plugin_with(&format!("(func {before} {})", blocks.concat()))
    };
    let limit = LIMIT as usize;
    for before in [0, 1, 2, 3, 4, 5, 6, 1_000, 4_999] {
        check(Cursor::new(stack(before, limit)), &budgets).expect("as many values as may be");
        let over = check(Cursor::new(stack(before, limit + 1)), &budgets);
        assert_eq!(over_budget(over), "values on the stack", "{before}");
        // The function is a block, too.
        check(Cursor::new(blocks(before, limit - 1)), &budgets).expect("as many blocks as may be");
        let over = check(Cursor::new(blocks(before, limit)), &budgets);
        assert_eq!(over_budget(over), "blocks within each other", "{before}");
    }
}

/// A plugin with a data section of 64 MiB and a custom section of as much, on disk as holes.
fn sparse_plugin() -> File {
    const BIG: u64 = 64 << 20;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&plugin("")).unwrap();
    let segment = [&[1, 0, 0x41, 0, 0x0b][..], &leb(BIG as usize)].concat();
    file.write_all(&[&[11][..], &leb(segment.len() + BIG as usize), &segment].concat()).unwrap();
    let end = file.seek(SeekFrom::Current(BIG as i64)).unwrap();
    let name = [&[1][..], b"x"].concat();
    file.write_all(&[&[0][..], &leb(name.len() + BIG as usize), &name].concat()).unwrap();
    let end = end + file.stream_position().unwrap() - end + BIG;
    file.set_len(end).unwrap();
    file.rewind().unwrap();
    file
}

/// Runs one of the ignored tests below in a process of its own, where nothing else allocates, with a
/// module on standard input.
fn alone(test: &str, module: File) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("wasm::check::tests::budgets::{test}"), "--ignored"])
        .stdin(module)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Checks the module on standard input; by how many KiB this process grew by that.
fn growth() -> (ModuleInfo, u64) {
    let module = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    // What counts is the check's own memory: the program, which is read in as it runs, has to be there
    // before. A hundredth of everything takes the same ways through it.
    let Budgets { types, imports, functions, exports, function_body_bytes, operands, nesting, .. } =
        Budgets::default();
    let hundredth = Budgets {
        types: types / 100,
        imports: imports / 100,
        functions: functions / 100,
        exports: exports / 100,
        function_body_bytes: function_body_bytes / 100,
        operands: operands / 100,
        nesting: nesting / 100,
        ..Budgets::default()
    };
    let mut small = tempfile::tempfile().unwrap();
    write_greedy(&mut small, &hundredth);
    check(&small, &hundredth).unwrap();
    let before = peak();
    let info = check(&module, &Budgets::default()).unwrap();
    (info, peak() - before)
}

#[test]
fn big_data_and_custom_sections_cost_no_memory() {
    alone("in_a_process_of_its_own_big_sections", sparse_plugin());
}

#[test]
#[ignore = "run by the test above it"]
fn in_a_process_of_its_own_big_sections() {
    let (info, grown) = growth();
    assert_eq!(info.functions, 2);
    assert!(grown <= 1024, "grew by {grown} KiB");
}

#[test]
fn a_module_that_uses_up_every_budget_costs_no_more_than_20_mib() {
    let mut module = tempfile::tempfile().unwrap();
    write_greedy(&mut module, &Budgets::default());
    alone("in_a_process_of_its_own_all_budgets", module);
}

#[test]
#[ignore = "run by the test above it"]
fn in_a_process_of_its_own_all_budgets() {
    let (info, grown) = growth();
    assert_eq!((info.functions, info.imports), (250_000, 1_000));
    assert!(grown <= 20 * 1024, "grew by {grown} KiB");
}

/// A plugin that Envoy could take, with as much of everything as the budgets allow.
fn write_greedy(file: &mut File, budgets: &Budgets) {
    let Budgets { types, imports, functions, exports, function_body_bytes, operands, nesting, .. } = *budgets;
    file.write_all(HEADER).unwrap();
    // All different, else the validator would keep them once. The first three are: nothing, i32
    // to i32, nothing to i32.
    let mut content = leb(types as usize);
    content.extend([0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f, 0x60, 0, 1, 0x7f]);
    for n in 3..types {
        content.extend([0x60, 9]);
        content.extend((0..9).map(|digit| 0x7f - (n >> (2 * digit) & 3) as u8));
        content.push(0);
    }
    file.write_all(&section(1, &content)).unwrap();
    let import = [&leb(3)[..], b"env", &leb(10), b"proxy_done", &[0, 2]].concat();
    file.write_all(&section(2, &[leb(imports as usize), import.repeat(imports as usize)].concat())).unwrap();
    let bodies = functions as usize;
    let mut content = [leb(bodies), vec![0, 1]].concat();
    content.extend((2..bodies).map(|_| 0));
    file.write_all(&section(3, &content)).unwrap();
    file.write_all(&section(4, b"\x01\x70\x00\x01")).unwrap();
    file.write_all(&section(5, b"\x01\x00\x01")).unwrap();
    let mut content = leb(exports as usize);
    let mut export = |name: &str, kind: u8, index: usize| {
        content.extend([&leb(name.len())[..], name.as_bytes(), &[kind], &leb(index)].concat());
    };
    let first = imports as usize;
    export("memory", 2, 0);
    export("proxy_abi_version_0_2_1", 0, first);
    export("malloc", 0, first + 1);
    for n in 3..exports {
        export(&format!("{n:090}"), 0, first);
    }
    file.write_all(&section(7, &content)).unwrap();
    let mut content = [&[1, 0, 0x41, 0, 0x0b][..], &leb(bodies)].concat();
    content.extend((0..bodies).flat_map(|n| leb(first + n)));
    file.write_all(&section(9, &content)).unwrap();
    // One body at the limit that fills the stacks; the others are empty.
    let nesting = nesting as usize - 1;
    let operands = operands as usize;
    let mut body = vec![0];
    body.extend([0x02, 0x40].repeat(nesting));
    body.extend([0x41, 0].repeat(operands));
    body.extend(vec![0x1a; operands]);
    body.extend(vec![0x0b; nesting]);
    body.resize(function_body_bytes as usize - 1, 0x01);
    body.push(0x0b);
    let mut content = leb(bodies);
    content.extend([leb(body.len()), body].concat());
    content.extend([4, 0, 0x41, 0, 0x0b]);
    content.extend([2, 0, 0x0b].repeat(bodies - 2));
    file.write_all(&section(10, &content)).unwrap();
    file.rewind().unwrap();
}
