//! A certificate authority of a test's own, whose files everybody may read.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::world::{User, World};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its certificate in PEM.
    pub file: PathBuf,
}

/// A certificate and its key, in PEM.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(world: &World, name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let file = world.write(&format!("{name}.pem"), issuer.pem(), User::Agent, 0o644);
        Authority { issuer, file }
    }

    /// A certificate for these names and addresses.
    pub fn pair(&self, world: &World, name: &str, names: &[String]) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names.to_vec()).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: world.write(&format!("{name}.pem"), certificate.pem(), User::Agent, 0o644),
            key: world.write(&format!("{name}.key"), key.serialize_pem(), User::Agent, 0o600),
        }
    }
}
