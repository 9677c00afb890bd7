//! Why bytes are no message. Errors name the message or the field and never repeat its bytes.

/// Bytes that are not the message that they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not in the wire format.
    #[error("{message} is malformed: {fault}")]
    Malformed { message: &'static str, fault: Fault },
    /// A string field holds something else.
    #[error("{field} is not valid UTF-8")]
    Utf8 { field: &'static str },
    /// An opaque singular sub-message came in several pieces. Protobuf would merge them; nobody
    /// sends that, and a view cannot borrow from two places.
    #[error("{field} occurs more than once")]
    Repeated { field: &'static str },
}

impl WireError {
    /// Short name for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            WireError::Malformed { .. } => "malformed",
            WireError::Utf8 { .. } => "not_utf8",
            WireError::Repeated { .. } => "repeated",
        }
    }
}

/// What is wrong with the wire format of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("a number has more digits than its type")]
    Overlong,
    #[error("a field has a number out of range")]
    FieldNumber,
    #[error("a field has an unknown wire type")]
    WireType,
    #[error("a group ends that did not begin")]
    Group,
    #[error("groups are nested too deeply")]
    TooDeep,
}
