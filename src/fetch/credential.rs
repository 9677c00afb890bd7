//! What a pull proves itself with, and what tells one such right from another.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose;
use oci_client::Reference;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::credentials::{CredentialError, DockerConfig};
use super::error::FetchError;
use crate::secret::Secret;

/// What a request may prove itself with: nothing, or one or more logins to try in turn.
#[derive(Clone, Default)]
pub struct Credential {
    logins: Vec<Login>,
    /// See [`Credential::identity`]; empty for anonymous.
    identity: Zeroizing<Vec<u8>>,
    /// What kept one of the node's own credentials from being among them.
    failure: Option<CredentialError>,
}

/// One way to prove who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: Secret,
        password: Secret,
    },
    /// A refresh token, to be exchanged at the token server.
    Identity(Secret),
    /// A bearer token, to be used as it is.
    Registry(Secret),
}

impl Credential {
    /// No credential.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The logins of a resource's pull secret for an image, the best match first.
    ///
    /// # Errors
    /// The text is malformed ([`FetchError::BadSecret`]), or it has nothing for this image
    /// ([`FetchError::SecretUnmatched`]). The helpers that it names are not asked: nobody who sends a
    /// resource makes us run programs.
    pub(super) fn of_pull_secret(text: &Secret, image: &Reference) -> Result<Self, FetchError> {
        let config = DockerConfig::parse(text.expose()).map_err(FetchError::BadSecret)?;
        let mut credential = Self::default();
        for login in config.logins(image).map_err(FetchError::BadSecret)? {
            credential.add(login);
        }
        match credential.logins.is_empty() {
            false => Ok(credential),
            true => Err(FetchError::SecretUnmatched { what: format!("oci://{}", image.whole()) }),
        }
    }

    /// Adds a login, unless it is there.
    pub(super) fn add(&mut self, login: Login) {
        if !self.logins.contains(&login) {
            login.write_identity(&mut self.identity);
            self.logins.push(login);
        }
    }

    /// Adds the logins that a program gives by the right of this hash: they change with time, and it does
    /// not. They may be none where it gave none this time.
    pub(super) fn add_right(&mut self, right: &[u8; 32], logins: impl IntoIterator<Item = Login>) {
        self.identity.push(b'n');
        self.identity.extend_from_slice(right);
        for login in logins {
            if !self.logins.contains(&login) {
                self.logins.push(login);
            }
        }
    }

    /// Something could not be had. It counts where nothing else is there.
    pub(super) fn add_failure(&mut self, failure: CredentialError) {
        self.failure.get_or_insert(failure);
    }

    /// Bytes that tell credentials apart, to be hashed with a key; none for anonymous.
    pub fn identity(&self) -> Option<&[u8]> {
        (!self.identity.is_empty()).then_some(&**self.identity)
    }

    /// User and password of the best match, for a client that takes nothing else.
    ///
    /// # Errors
    /// There would be a credential, and it cannot be had.
    pub fn password(&self) -> Result<Option<(&Secret, &Secret)>, FetchError> {
        Ok(self.logins()?.iter().find_map(|login| match login {
            Login::Password { user, password } => Some((user, password)),
            Login::Identity(_) | Login::Registry(_) => None,
        }))
    }

    /// The logins to try in turn; none is to ask as nobody.
    ///
    /// # Errors
    /// There would be one, and it cannot be had. To ask as nobody would hide that.
    pub(super) fn logins(&self) -> Result<&[Login], FetchError> {
        match &self.failure {
            Some(failure) if self.logins.is_empty() => Err(FetchError::Credential(failure.clone())),
            _ => Ok(&self.logins),
        }
    }
}

impl Login {
    /// Whether a stranger's text repeats what is secret in this.
    pub(super) fn is_in(&self, text: &str) -> bool {
        match self {
            Login::Password { user, password } => {
                is_repeated(text, &[password.expose(), &basic(user, password)])
            }
            Login::Identity(token) | Login::Registry(token) => is_repeated(text, &[token.expose()]),
        }
    }

    /// Appends bytes that no other login has.
    pub(super) fn write_identity(&self, bytes: &mut Vec<u8>) {
        let (tag, parts) = match self {
            Login::Password { user, password } => (b'p', vec![user, password]),
            Login::Identity(token) => (b'i', vec![token]),
            Login::Registry(token) => (b'r', vec![token]),
        };
        bytes.push(tag);
        for part in parts {
            bytes.extend_from_slice(&(part.expose().len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.expose().as_bytes());
        }
    }
}

/// Whether a stranger's text repeats any of these, as it is or as it is sent. Of both only letters and digits
/// count, large or small. What is shorter than four of them is found in too many texts.
pub(super) fn is_repeated(text: &str, secrets: &[&str]) -> bool {
    let letters = |text: &str| {
        let letters = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase());
        Zeroizing::new(letters.collect::<String>())
    };
    let text = letters(text);
    secrets.iter().any(|secret| {
        let forms = [(*secret).to_owned(), general_purpose::STANDARD.encode(secret), hex::encode(secret)];
        forms.map(Zeroizing::new).iter().any(|form| {
            let form = letters(form);
            form.len() >= 4 && text.contains(&**form)
        })
    })
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.logins.is_empty() { "Credential(anonymous)" } else { "Credential(..)" })
    }
}

/// Reads a text that must not be seen; an empty one is none.
pub(super) fn secret<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Secret>, D::Error> {
    let text = Option::<String>::deserialize(input)?.map(Secret::new);
    Ok(text.filter(|secret| !secret.expose().is_empty()))
}

/// The value of an `Authorization: Basic` header, without the scheme.
pub(super) fn basic(user: &Secret, password: &Secret) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{}:{}", user.expose(), password.expose()));
    Zeroizing::new(general_purpose::STANDARD.encode(pair.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_repeats_a_login_is_known_however_it_is_written() {
        let login =
            Login::Password { user: Secret::new("me".into()), password: Secret::new("hunter2".into()) };
        let base64 = |text: &str| general_purpose::STANDARD.encode(text);
        for text in ["application/hunter2", "x/HUN-ter2", &base64("me:hunter2"), &hex::encode("hunter2")] {
            assert!(login.is_in(&format!("its media type is {text}")), "{text}");
        }
        assert!(login.is_in(&base64("me:hunter2").to_ascii_lowercase()));
        assert!(!login.is_in("its media type is application/vnd.cncf.helm.chart.content.v1.tar+gzip"));
        assert!(!Login::Registry(Secret::new("x".into())).is_in("application/x"), "it is in too many words");
    }

    #[test]
    fn credentials_are_told_apart_and_do_not_print() {
        let credential = |user: &str, password: &str| {
            let config = serde_json::json!({"auths": {"r.io": {"username": user, "password": password}}});
            let image = "r.io/a:v1".parse().unwrap();
            Credential::of_pull_secret(&Secret::new(config.to_string()), &image).unwrap()
        };
        assert_eq!(Credential::anonymous().identity(), None);
        assert_eq!(credential("a", "b").identity(), credential("a", "b").identity());
        assert_ne!(credential("a", "bc").identity(), credential("ab", "c").identity());
        assert!(!format!("{:?}", credential("hunter1", "hunter2")).contains("hunter"));
    }

    #[test]
    fn what_a_program_gives_changes_and_its_right_stays() {
        let with = |right: u8, password: Option<&str>| {
            let login = |text: &str| Login::Password {
                user: Secret::new("u".into()),
                password: Secret::new(text.to_owned()),
            };
            let mut credential = Credential::anonymous();
            credential.add_right(&[right; 32], password.map(login));
            credential
        };
        assert_eq!(with(1, Some("a")).identity(), with(1, Some("b")).identity());
        assert_eq!(with(1, Some("a")).identity(), with(1, None).identity());
        assert_ne!(with(1, Some("a")).identity(), with(2, Some("a")).identity());
    }

    #[test]
    fn nobody_is_asked_as_nobody_where_a_credential_cannot_be_had() {
        let mut credential = Credential::anonymous();
        assert!(credential.logins().unwrap().is_empty());
        credential.add_failure(CredentialError::File { path: "/f".into(), why: "gone".into() });
        assert_eq!(credential.logins().err().map(|error| error.label()), Some("credential"));
        credential.add(Login::Registry(Secret::new("t".into())));
        assert_eq!(credential.logins().unwrap().len(), 1);
    }
}
