//! An error in one line, with what caused it.

use std::error::Error;

/// The error and its causes, each after a colon; a cause that an outer text quotes already is not
/// repeated.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot connect")]
        Terse(#[source] io::Error),
        #[error("cannot connect: {0}")]
        Quoting(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_said_once_whether_or_not_the_error_quotes_it() {
        let refused = || io::Error::other("connection refused");
        for error in [Outer::Terse(refused()), Outer::Quoting(refused())] {
            assert_eq!(with_causes(&error), "cannot connect: connection refused");
        }
    }
}
