//! Docker's credential helpers: what they are asked, and what they answer. Pure.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::fetch::credential::{Login, secret};
use crate::secret::Secret;

/// How a helper says that it has nothing, on its standard output and with an exit code of 1.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user's name that makes a secret an identity token.
const TOKEN: &str = "<token>";

/// What a helper's program is called.
pub(super) fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// A hash that stands for what this helper may give for a server, whatever that is.
pub(super) fn right(name: &str, server: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in ["helper", name, server] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// Reads what a helper answered; none where it has nothing. The error repeats nothing of it.
pub(super) fn answer(code: Option<i32>, output: &[u8]) -> Result<Option<Login>, &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default, deserialize_with = "secret")]
        username: Option<Secret>,
        #[serde(default, deserialize_with = "secret")]
        secret: Option<Secret>,
    }
    if code != Some(0) {
        return match output.trim_ascii() == NOT_FOUND.as_bytes() {
            true => Ok(None),
            false => Err("it failed"),
        };
    }
    let answer: Answer = serde_json::from_slice(output).map_err(|_| "its answer is not understood")?;
    Ok(match (answer.username, answer.secret) {
        (Some(user), Some(token)) if user.expose() == TOKEN => Some(Login::Identity(token)),
        (Some(user), Some(password)) => Some(Login::Password { user, password }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_gives_a_password_a_token_or_nothing() {
        let read = |code, text: &str| answer(Some(code), text.as_bytes());
        let password = read(0, r#"{"ServerURL":"r.io","Username":"u","Secret":"p"}"#).unwrap();
        assert!(matches!(password, Some(Login::Password { user, .. }) if user.expose() == "u"));
        let token = read(0, r#"{"ServerURL":"r.io","Username":"<token>","Secret":"t"}"#).unwrap();
        assert!(matches!(token, Some(Login::Identity(token)) if token.expose() == "t"));
        assert!(read(0, "{}").unwrap().is_none());
        assert!(read(1, "credentials not found in native keychain\n").unwrap().is_none());
        for (code, text) in [(0, "hunter2"), (1, "hunter2"), (2, ""), (1, "{}")] {
            assert!(read(code, text).err().is_some_and(|error| !error.contains("hunter2")), "{code} {text}");
        }
        assert!(answer(None, b"{}").is_err());
    }
}
