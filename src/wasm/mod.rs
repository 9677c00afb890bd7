//! Placeholder of the branch `fetch`: the whole module is the branch `wasm`'s.

/// How a module is packed into what was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packaging {
    /// The bytes are the module.
    Raw,
    /// A tar, perhaps compressed, that holds `plugin.wasm`.
    Layer,
    /// Raw, gzip, tar or tar in gzip, told by its content.
    Sniff,
}
