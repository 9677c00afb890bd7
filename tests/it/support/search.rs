//! A search for secrets in what was written, in whatever form they were written.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use sha2::{Digest as _, Sha256};
use url::form_urlencoded;

/// Secrets, in the forms in which they are looked for.
pub struct Search(Vec<Form>);

struct Form {
    secret: String,
    kind: &'static str,
    text: String,
}

impl Search {
    pub fn of(secrets: impl IntoIterator<Item = impl Into<String>>) -> Search {
        Search(secrets.into_iter().flat_map(|secret| forms(&secret.into())).collect())
    }

    /// The first that stands in these bytes, with what stands around it.
    pub fn find(&self, bytes: &[u8]) -> Option<String> {
        // What is no text becomes other characters, and no form has any of them.
        let text = String::from_utf8_lossy(bytes);
        self.0.iter().find_map(|form| {
            let at = text.find(&form.text)?;
            let (before, after) = (text[..at].chars().rev().take(200), text[at..].chars().take(200));
            let before: String = before.collect::<Vec<_>>().into_iter().rev().collect();
            let around = format!("{before}{}", after.collect::<String>());
            Some(format!("{:?} as {}: ...{around}...", form.secret, form.kind))
        })
    }
}

fn forms(secret: &str) -> Vec<Form> {
    // Shorter ones are found where nobody wrote them.
    assert!(secret.len() >= 7, "too short to be looked for: {secret:?}");
    let bytes = secret.as_bytes();
    let encoded: String = form_urlencoded::byte_serialize(bytes).collect();
    let quoted = serde_json::to_string(secret).expect("JSON");
    let decimal: Vec<_> = bytes.iter().map(u8::to_string).collect();
    let mut forms = vec![
        ("itself", secret.to_owned()),
        ("in a URL", encoded.replace('+', "%20")),
        ("in a form", encoded),
        ("in JSON", quoted.trim_matches('"').to_owned()),
        ("in hex", hex::encode(bytes)),
        ("a list of bytes", decimal.join(", ")),
        ("its SHA-256", hex::encode(Sha256::digest(bytes))),
    ];
    for before in 0..3 {
        forms.push(("in base64", inner_base64(&BASE64_STANDARD, bytes, before)));
        forms.push(("in base64 for URLs", inner_base64(&BASE64_URL_SAFE, bytes, before)));
    }
    forms.into_iter().map(|(kind, text)| Form { secret: secret.to_owned(), kind, text }).collect()
}

/// What base64 makes of these bytes wherever so many stand before them (modulo 3), without the characters on
/// which others have a say.
fn inner_base64(engine: &impl Engine, bytes: &[u8], before: usize) -> String {
    let whole = engine.encode([&vec![0; before][..], bytes].concat());
    let (first, end) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
    whole[first..end].to_owned()
}
