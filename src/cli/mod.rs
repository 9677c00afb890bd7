//! The commands.

pub mod push;
