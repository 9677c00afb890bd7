//! Without a control plane: a folder of `WasmPlugin` files becomes the extension configs that an
//! Envoy asks for, with the same content that istiod would make of them.
//!
//! ```text
//! files --plugin--> WasmPlugin --folder--> Snapshot --serve, encode--> ECDS responses
//! ```
//!
//! Fetches nothing and knows no socket: what it serves still names remote modules, and takes the
//! same way through rewrite as resources of any control plane.

mod encode;
mod error;
mod fields;
pub mod folder;
pub mod plugin;
pub mod serve;
mod snapshot;

pub use error::{PluginError, Problem};
pub use folder::Folder;
pub use plugin::WasmPlugin;
pub use serve::{Session, Variant};
pub use snapshot::Snapshot;
