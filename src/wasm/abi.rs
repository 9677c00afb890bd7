//! What Envoy and a module must agree on: the Proxy-Wasm version, the functions that Envoy provides
//! and those that it calls, and what it cannot hold.
//!
//! Envoy links by exact signature, and one mismatch fails the module. The tables are those of Envoy
//! 1.40.0, the newest at the time of writing: each entry was asked of it, by offering a module that
//! gets the signature wrong and reading which one the error wants. Functions that only some versions
//! of Envoy provide are in them, so an older Envoy may refuse what passes here.

use std::fmt;

use wasmparser::types::{EntityType, TypesRef};
use wasmparser::{AbstractHeapType, CompositeInnerType, FuncType, HeapType, RefType, ValType};

use super::error::ModuleError;
use super::printable;

/// A version of the Proxy-Wasm ABI that Envoy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbiVersion {
    V0_1_0,
    V0_2_0,
    V0_2_1,
}

impl AbiVersion {
    fn of_marker(export: &str) -> Option<Self> {
        match export {
            "proxy_abi_version_0_1_0" => Some(Self::V0_1_0),
            "proxy_abi_version_0_2_0" => Some(Self::V0_2_0),
            "proxy_abi_version_0_2_1" => Some(Self::V0_2_1),
            _ => None,
        }
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_2_1 => "0.2.1",
        })
    }
}

use AbiVersion::{V0_1_0, V0_2_0, V0_2_1};

const EVERY: &[AbiVersion] = &[V0_1_0, V0_2_0, V0_2_1];
const SINCE_0_2: &[AbiVersion] = &[V0_2_0, V0_2_1];

/// Parameters, `>`, results; `i` is i32 and `l` is i64.
type Signature = &'static str;

/// Functions in the module `env` whatever the version.
const ENV: &[(&str, Signature)] = &[
    ("emscripten_notify_memory_growth", "i>"),
    ("envoy_resolve_dns", "iii>i"),
    ("proxy_add_header_map_value", "iiiii>i"),
    ("proxy_call_foreign_function", "iiiiii>i"),
    ("proxy_define_metric", "iiii>i"),
    ("proxy_dequeue_shared_queue", "iii>i"),
    ("proxy_done", ">i"),
    ("proxy_enqueue_shared_queue", "iii>i"),
    ("proxy_get_buffer_bytes", "iiiii>i"),
    ("proxy_get_buffer_status", "iii>i"),
    ("proxy_get_current_time_nanoseconds", "i>i"),
    ("proxy_get_header_map_pairs", "iii>i"),
    ("proxy_get_header_map_size", "ii>i"),
    ("proxy_get_header_map_value", "iiiii>i"),
    ("proxy_get_metric", "ii>i"),
    ("proxy_get_property", "iiii>i"),
    ("proxy_get_shared_data", "iiiii>i"),
    ("proxy_get_status", "iii>i"),
    ("proxy_grpc_call", "iiiiiiiiiiii>i"),
    ("proxy_grpc_cancel", "i>i"),
    ("proxy_grpc_close", "i>i"),
    ("proxy_grpc_send", "iiii>i"),
    ("proxy_grpc_stream", "iiiiiiiii>i"),
    ("proxy_http_call", "iiiiiiiiii>i"),
    ("proxy_increment_metric", "il>i"),
    ("proxy_log", "iii>i"),
    ("proxy_record_metric", "il>i"),
    ("proxy_register_shared_queue", "iii>i"),
    ("proxy_remove_header_map_value", "iii>i"),
    ("proxy_replace_header_map_value", "iiiii>i"),
    ("proxy_resolve_shared_queue", "iiiii>i"),
    ("proxy_send_local_response", "iiiiiiii>i"),
    ("proxy_set_buffer_bytes", "iiiii>i"),
    ("proxy_set_effective_context", "i>i"),
    ("proxy_set_header_map_pairs", "iii>i"),
    ("proxy_set_property", "iiii>i"),
    ("proxy_set_shared_data", "iiiii>i"),
    ("proxy_set_tick_period_milliseconds", "i>i"),
    ("pthread_equal", "ii>i"),
];

/// Functions in the module `env` for some versions only.
const ENV_BY_VERSION: &[(&str, Signature, &[AbiVersion])] = &[
    ("proxy_clear_route_cache", ">i", &[V0_1_0]),
    ("proxy_close_stream", "i>i", SINCE_0_2),
    ("proxy_continue_request", ">i", &[V0_1_0]),
    ("proxy_continue_response", ">i", &[V0_1_0]),
    ("proxy_continue_stream", "i>i", SINCE_0_2),
    ("proxy_get_configuration", "ii>i", &[V0_1_0]),
    ("proxy_get_log_level", "i>i", &[V0_2_1]),
];

/// Functions in `wasi_snapshot_preview1` and `wasi_unstable`. Not all signatures are those of WASI:
/// Envoy has `path_link` and `path_symlink` one parameter short.
const WASI: &[(&str, Signature)] = &[
    ("args_get", "ii>i"),
    ("args_sizes_get", "ii>i"),
    ("clock_res_get", "ii>i"),
    ("clock_time_get", "ili>i"),
    ("environ_get", "ii>i"),
    ("environ_sizes_get", "ii>i"),
    ("fd_advise", "illi>i"),
    ("fd_allocate", "ill>i"),
    ("fd_close", "i>i"),
    ("fd_datasync", "i>i"),
    ("fd_fdstat_get", "ii>i"),
    ("fd_fdstat_set_flags", "ii>i"),
    ("fd_fdstat_set_rights", "ill>i"),
    ("fd_filestat_get", "ii>i"),
    ("fd_filestat_set_size", "il>i"),
    ("fd_filestat_set_times", "illi>i"),
    ("fd_pread", "iiili>i"),
    ("fd_prestat_dir_name", "iii>i"),
    ("fd_prestat_get", "ii>i"),
    ("fd_pwrite", "iiili>i"),
    ("fd_read", "iiii>i"),
    ("fd_readdir", "iiili>i"),
    ("fd_renumber", "ii>i"),
    ("fd_seek", "ilii>i"),
    ("fd_sync", "i>i"),
    ("fd_tell", "ii>i"),
    ("fd_write", "iiii>i"),
    ("path_create_directory", "iii>i"),
    ("path_filestat_get", "iiiii>i"),
    ("path_filestat_set_times", "iiiilli>i"),
    ("path_link", "iiiiii>i"),
    ("path_open", "iiiiillii>i"),
    ("path_readlink", "iiiiii>i"),
    ("path_remove_directory", "iii>i"),
    ("path_rename", "iiiiii>i"),
    ("path_symlink", "iiii>i"),
    ("path_unlink_file", "iii>i"),
    ("poll_oneoff", "iiii>i"),
    ("proc_exit", "i>"),
    ("random_get", "ii>i"),
    ("sched_yield", ">i"),
    ("sock_accept", "iii>i"),
    ("sock_recv", "iiiiii>i"),
    ("sock_send", "iiiii>i"),
    ("sock_shutdown", "ii>i"),
];

/// Functions that Envoy looks for among the exports whatever the version. It calls those that are
/// there, and refuses the module where one has another signature.
const CALLBACKS: &[(&str, Signature)] = &[
    ("_initialize", ">"),
    ("envoy_on_resolve_dns", "iii>"),
    ("envoy_on_stats_update", "ii>"),
    ("malloc", "i>i"),
    ("proxy_on_configure", "ii>i"),
    ("proxy_on_context_create", "ii>"),
    ("proxy_on_delete", "i>"),
    ("proxy_on_done", "i>i"),
    ("proxy_on_downstream_connection_close", "ii>"),
    ("proxy_on_downstream_data", "iii>i"),
    ("proxy_on_grpc_close", "iii>"),
    ("proxy_on_grpc_receive", "iii>"),
    ("proxy_on_grpc_receive_initial_metadata", "iii>"),
    ("proxy_on_grpc_receive_trailing_metadata", "iii>"),
    ("proxy_on_http_call_response", "iiiii>"),
    ("proxy_on_log", "i>"),
    ("proxy_on_new_connection", "i>i"),
    ("proxy_on_queue_ready", "ii>"),
    ("proxy_on_request_body", "iii>i"),
    ("proxy_on_request_metadata", "ii>i"),
    ("proxy_on_request_trailers", "ii>i"),
    ("proxy_on_response_body", "iii>i"),
    ("proxy_on_response_metadata", "ii>i"),
    ("proxy_on_response_trailers", "ii>i"),
    ("proxy_on_tick", "i>"),
    ("proxy_on_upstream_connection_close", "ii>"),
    ("proxy_on_upstream_data", "iii>i"),
    ("proxy_on_vm_start", "ii>i"),
    ("proxy_validate_configuration", "ii>i"),
];

/// The most entries a table may begin with in V8.
const MAX_TABLE_ENTRIES: u64 = 10_000_000;

fn find(table: &[(&str, Signature)], name: &str) -> Option<Signature> {
    table.iter().find(|(known, _)| *known == name).map(|&(_, signature)| signature)
}

/// The signature that Envoy provides a function with, and the versions that it does so for.
fn provided(module: &str, name: &str) -> Option<(Signature, &'static [AbiVersion])> {
    match module {
        "env" => find(ENV, name).map(|signature| (signature, EVERY)).or_else(|| {
            let found = ENV_BY_VERSION.iter().find(|(known, ..)| *known == name);
            found.map(|&(_, signature, versions)| (signature, versions))
        }),
        "wasi_snapshot_preview1" | "wasi_unstable" => find(WASI, name).map(|signature| (signature, EVERY)),
        _ => None,
    }
}

/// Holds a valid module's imports and exports against what Envoy provides and looks for.
pub(super) fn check_interface(types: TypesRef<'_>) -> Result<AbiVersion, ModuleError> {
    let exports = || types.core_exports().into_iter().flatten();
    let function = |wanted: &str| {
        exports().find_map(|(name, entity)| function_type(types, entity).filter(|_| name == wanted))
    };
    // The first marker decides, as in Envoy.
    let abi = exports()
        .filter(|&(_, entity)| function_type(types, entity).is_some())
        .find_map(|(name, _)| AbiVersion::of_marker(name))
        .ok_or(ModuleError::NoAbiVersion)?;

    check_imports(types, abi)?;
    for (name, entity) in exports() {
        check_export(types, name, entity)?;
    }

    let callback = |name: &str, signature: Signature| match function(name) {
        Some(found) if !matches(signature, found) => Err(ModuleError::WrongCallback {
            name: name.to_owned(),
            expected: show(signature),
            found: show_type(found),
        }),
        found => Ok(found.is_some()),
    };
    for (name, signature) in CALLBACKS {
        callback(name, signature)?;
    }
    let on_headers = if abi == V0_1_0 { "ii>i" } else { "iii>i" };
    callback("proxy_on_request_headers", on_headers)?;
    callback("proxy_on_response_headers", on_headers)?;
    if abi != V0_1_0 {
        callback("proxy_on_foreign_function", "iii>")?;
    }
    if function("_initialize").is_none() {
        callback("_start", ">")?;
    } else if !callback("main", "ii>i")? {
        callback("__main_void", ">i")?;
    }
    if function("malloc").is_none() && !callback("proxy_on_memory_allocate", "i>i")? {
        return Err(ModuleError::NoAllocator);
    }

    let has_memory = |entity| matches!(entity, EntityType::Memory(_));
    let mut imports = types.core_imports().into_iter().flatten();
    if !exports().any(|(_, entity)| has_memory(entity)) && !imports.any(|(.., entity)| has_memory(entity)) {
        return Err(ModuleError::NoMemory);
    }
    for index in 0..types.table_count() {
        let entries = types.table_at(index).initial;
        if entries > MAX_TABLE_ENTRIES {
            return Err(ModuleError::TableTooLarge { entries, limit: MAX_TABLE_ENTRIES });
        }
    }
    Ok(abi)
}

/// Envoy provides functions, and makes one memory and one table for a module that imports them.
fn check_imports(types: TypesRef<'_>, abi: AbiVersion) -> Result<(), ModuleError> {
    let (mut memories, mut tables) = (0, 0);
    for (module, name, entity) in types.core_imports().into_iter().flatten() {
        let shown = || format!("{}.{}", printable(module.as_bytes()), printable(name.as_bytes()));
        let cannot = |what| Err(ModuleError::ImportKind { name: shown(), what });
        match entity {
            EntityType::Func(_) | EntityType::FuncExact(_) => {
                let (signature, versions) =
                    provided(module, name).ok_or_else(|| ModuleError::UnknownImport { name: shown() })?;
                if !versions.contains(&abi) {
                    return Err(ModuleError::ImportOfOtherAbi { name: shown(), abi });
                }
                let found = function_type(types, entity);
                if !found.is_some_and(|found| matches(signature, found)) {
                    let found = found.map(show_type).unwrap_or_default();
                    return Err(ModuleError::WrongImport { name: shown(), expected: show(signature), found });
                }
            }
            EntityType::Memory(memory) => {
                memories += 1;
                if memories > 1 || memory.memory64 || memory.shared {
                    return cannot("a second, shared or 64-bit memory");
                }
            }
            EntityType::Table(table) => {
                tables += 1;
                if tables > 1 || table.table64 || !is_plain(table.element_type) {
                    return cannot("a second or 64-bit table, or one of other than functions");
                }
            }
            EntityType::Global(_) => return cannot("a global"),
            EntityType::Tag(_) => return cannot("an exception tag"),
        }
    }
    Ok(())
}

/// Envoy reads the type of every export, whether it uses it or not, through an interface that ends
/// the process where it does not know the type.
fn check_export(types: TypesRef<'_>, name: &str, entity: EntityType) -> Result<(), ModuleError> {
    let is_known = |ty: &ValType| match ty {
        ValType::I32 | ValType::I64 | ValType::F32 | ValType::F64 => true,
        ValType::V128 => false,
        ValType::Ref(reference) => is_plain(*reference),
    };
    let (ok, what) = match entity {
        EntityType::Func(_) | EntityType::FuncExact(_) => {
            let ty = function_type(types, entity);
            (
                ty.is_some_and(|ty| ty.params().iter().chain(ty.results()).all(is_known)),
                "a function with a vector or typed reference in its signature",
            )
        }
        EntityType::Table(table) => (is_plain(table.element_type), "a table of typed references"),
        EntityType::Global(global) => {
            (is_known(&global.content_type), "a global of vector or reference type")
        }
        EntityType::Tag(_) => (false, "an exception tag"),
        EntityType::Memory(_) => (true, ""),
    };
    if ok { Ok(()) } else { Err(ModuleError::ExportCrashes { name: printable(name.as_bytes()), what }) }
}

/// `funcref` and `externref`.
fn is_plain(reference: RefType) -> bool {
    matches!(
        reference.heap_type(),
        HeapType::Abstract { shared: false, ty: AbstractHeapType::Func | AbstractHeapType::Extern }
    )
}

fn function_type(types: TypesRef<'_>, entity: EntityType) -> Option<&FuncType> {
    let (EntityType::Func(id) | EntityType::FuncExact(id)) = entity else { return None };
    match &types.get(id)?.composite_type.inner {
        CompositeInnerType::Func(ty) => Some(ty),
        _ => None,
    }
}

fn letter(ty: &ValType) -> char {
    match ty {
        ValType::I32 => 'i',
        ValType::I64 => 'l',
        _ => '?',
    }
}

fn matches(signature: Signature, ty: &FuncType) -> bool {
    let found = ty.params().iter().map(letter).chain(['>']).chain(ty.results().iter().map(letter));
    signature.chars().eq(found)
}

fn show(signature: Signature) -> String {
    let (params, results) = signature.split_once('>').unwrap_or_default();
    let names =
        |letters: &str| letters.chars().map(|c| if c == 'l' { "i64" } else { "i32" }.to_owned()).collect();
    arrow(names(params), names(results))
}

fn show_type(ty: &FuncType) -> String {
    let names = |types: &[ValType]| types.iter().take(20).map(ToString::to_string).collect();
    arrow(names(ty.params()), names(ty.results()))
}

fn arrow(params: Vec<String>, results: Vec<String>) -> String {
    format!("({}) -> ({})", params.join(", "), results.join(", "))
}
