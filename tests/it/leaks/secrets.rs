//! What must not be written anywhere.

use std::cell::RefCell;
use std::path::Path;

use url::form_urlencoded;

/// A secret as it may stand anywhere in a URL.
pub fn in_url(secret: &str) -> String {
    form_urlencoded::byte_serialize(secret.as_bytes()).collect()
}

/// All secrets of a run, each told from any other text by its ending.
#[derive(Default)]
pub struct Secrets(RefCell<Vec<String>>);

impl Secrets {
    /// The secret of this name, which counts from now on. It differs in JSON, in a URL and in base64.
    pub fn make(&self, name: &str) -> String {
        let secret = self.get(name);
        self.add(&secret);
        secret
    }

    /// The same where it counts already.
    pub fn get(&self, name: &str) -> String {
        format!("{name}/of+a~run")
    }

    pub fn add(&self, secret: &str) {
        let mut all = self.0.borrow_mut();
        if !all.iter().any(|known| known == secret) {
            all.push(secret.to_owned());
        }
    }

    /// A key's lines.
    pub fn add_pem(&self, file: &Path) {
        let text = std::fs::read_to_string(file).expect("a file in PEM");
        text.lines().filter(|line| !line.starts_with("-----")).for_each(|line| self.add(line));
    }

    pub fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}
