//! Whether a fetched index is believed, and the signatures that make it so.
//!
//! An index says which bytes a layer's files have. Nobody can check that before the layer is complete, so a
//! fetched index is a claim. The rule, `auto`: an unsigned claim is accepted only where it cannot weaken what
//! the reference promises, which is a bare tag under no signature policy: whoever could write the index could
//! have moved the tag as well. A reference with a digest, or one under a policy, needs a signature by a
//! configured key. What is not accepted is not an error: the layer is streamed and its index rebuilt.
//!
//! A signature is ed25519 over the text of [`Claim::text`]. Decoder tables are not covered: a lie there makes
//! a chunk fail its BLAKE3, so it can deny service but not change a byte.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use format::{DiffId, Digest, IndexId};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::config::{Config, HostTrust};

/// What a signature covers: this layer, decompressed to this, is described by this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Digest of the layer's blob.
    pub layer: Digest,
    /// Digest of the layer's plain tar.
    pub diff_id: DiffId,
    /// Identity of the index.
    pub index: IndexId,
}

impl Claim {
    /// Returns the bytes that are signed.
    pub fn text(&self) -> String {
        format!("floe layer index v1\nlayer {}\ndiffid {}\nindex {}\n", self.layer, self.diff_id, self.index)
    }
}

/// One signature as it travels in the index artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Signature {
    /// What is signed.
    #[serde(flatten)]
    pub claim: Claim,
    /// The ed25519 signature, base64.
    pub signature: String,
}

/// A private key that signs indexes.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Reads a PKCS#8 PEM file, as `openssl genpkey -algorithm ed25519` writes it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let der = pem(path, "PRIVATE KEY")?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|e| anyhow::anyhow!("{e}"));
        Ok(Self(pair.with_context(|| format!("{} holds no ed25519 private key", path.display()))?))
    }

    /// Signs a claim.
    pub fn sign(&self, claim: Claim) -> Signature {
        let signature = BASE64.encode(self.0.sign(claim.text().as_bytes()));
        Signature { claim, signature }
    }

    /// Returns the key that checks these signatures.
    pub fn public(&self) -> PublicKey {
        let mut raw = [0; 32];
        raw.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(raw)
    }
}

/// A public key whose signatures are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// What precedes the 32 bytes of an ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

    /// Reads a PEM file, as `openssl pkey -pubout` writes it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let der = pem(path, "PUBLIC KEY")?;
        let raw = der.strip_prefix(&Self::PREFIX).and_then(|raw| raw.try_into().ok());
        raw.map(Self).with_context(|| format!("{} holds no ed25519 public key", path.display()))
    }

    /// Says whether this key made this signature.
    pub fn verifies(&self, signature: &Signature) -> bool {
        let Ok(raw) = BASE64.decode(&signature.signature) else { return false };
        UnparsedPublicKey::new(&ED25519, &self.0).verify(signature.claim.text().as_bytes(), &raw).is_ok()
    }
}

fn pem(path: &Path, label: &str) -> anyhow::Result<Vec<u8>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the key {}", path.display()))?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let body = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(body, _)| body);
    let Some(body) = body else { bail!("{} is not a PEM file with a {label}", path.display()) };
    let body: String = body.split_whitespace().collect();
    BASE64.decode(body).with_context(|| format!("decoding the key {}", path.display()))
}

/// What of a reference matters to trust.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Registry host as written, with port.
    pub host: &'a str,
    /// `host/repository`.
    pub repository: &'a str,
    /// The tag, where one was named.
    pub tag: Option<&'a str>,
    /// Whether the reference names a digest.
    pub by_digest: bool,
}

/// Why an index is accepted, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A configured key signed it.
    Signed,
    /// The configuration trusts this host.
    TrustedHost,
    /// Nobody promised more than the tag does.
    BareTag,
    /// The reference names a digest and no configured key signed the index.
    UnsignedForDigest,
    /// A policy asks for a signature and no configured key made one.
    UnsignedUnderPolicy,
}

impl Verdict {
    /// Says whether the index may be used.
    pub fn accepted(self) -> bool {
        matches!(self, Self::Signed | Self::TrustedHost | Self::BareTag)
    }
}

/// The rule with its configuration.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    keys: Vec<PublicKey>,
    require: Vec<String>,
    hosts: Vec<String>,
    /// Where containers/image keeps its signature policy; looked at for every decision.
    policy: Option<PathBuf>,
}

impl Rule {
    /// Returns the rule of a configuration; a key that cannot be read is an error, not one key less.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let trusted = |(name, host): (&String, &crate::config::Host)| {
            (host.trust == HostTrust::Registry).then(|| name.clone())
        };
        Ok(Self {
            keys: config.trust.keys.iter().map(|path| PublicKey::load(path)).collect::<Result<_, _>>()?,
            require: config.trust.require.clone(),
            hosts: config.registry.iter().filter_map(trusted).collect(),
            policy: Some(PathBuf::from("/etc/containers/policy.json")),
        })
    }

    /// Judges an index that was fetched for a reference.
    pub fn judge(&self, asked: Asked<'_>, claim: &Claim, signatures: &[Signature]) -> Verdict {
        let signed = signatures.iter().any(|s| s.claim == *claim && self.keys.iter().any(|k| k.verifies(s)));
        if signed { Verdict::Signed } else { self.judge_unsigned(asked) }
    }

    /// Judges what nobody signs.
    pub fn judge_unsigned(&self, asked: Asked<'_>) -> Verdict {
        if self.hosts.iter().any(|host| host == asked.host) {
            Verdict::TrustedHost
        } else if self.under_policy(asked) {
            Verdict::UnsignedUnderPolicy
        } else if asked.by_digest {
            Verdict::UnsignedForDigest
        } else {
            Verdict::BareTag
        }
    }

    /// Says whether whoever asks was promised no more than a tag promises: no digest is named, and no policy asks for more.
    pub fn is_bare(&self, asked: Asked<'_>) -> bool {
        !asked.by_digest && !self.under_policy(asked)
    }

    fn under_policy(&self, asked: Asked<'_>) -> bool {
        self.require.iter().any(|scope| covers(scope, asked).is_some())
            || self.policy.as_deref().is_some_and(|path| demands_signature(path, asked))
    }
}

/// How closely a scope of containers-policy.json(5) fits, closer ones being greater; nothing if it does not.
///
/// `*.DOMAIN` covers the hosts below a domain. Any other is a prefix that covers itself and what follows at a '/';
/// one that ends in '/' everything below. `REPOSITORY:TAG` covers that alone.
fn covers(scope: &str, asked: Asked<'_>) -> Option<(u8, usize)> {
    if let Some(domain) = scope.strip_prefix('*') {
        let host = asked.host.rsplit_once(':').map_or(asked.host, |(host, _)| host);
        let below = domain.starts_with('.') && host.len() > domain.len() && host.ends_with(domain);
        return below.then_some((0, scope.len()));
    }
    let rest = asked.repository.strip_prefix(scope);
    if rest.is_some_and(|r| scope.is_empty() || scope.ends_with('/') || r.is_empty() || r.starts_with('/')) {
        return Some((u8::from(!scope.is_empty()), scope.len()));
    }
    let (repository, tag) = scope.rsplit_once(':')?;
    (repository == asked.repository && Some(tag) == asked.tag).then_some((2, scope.len()))
}

/// Reads a containers-policy.json(5): the most specific `docker` scope, else the default, decides.
///
/// A policy that cannot be read or parsed, has no default or a scope without requirements demands a signature: it
/// was written to be stricter, not laxer.
fn demands_signature(path: &Path, asked: Asked<'_>) -> bool {
    #[derive(Deserialize)]
    struct Requirement {
        r#type: String,
    }
    #[derive(Deserialize)]
    struct Policy {
        default: Vec<Requirement>,
        #[serde(default)]
        transports: std::collections::BTreeMap<String, std::collections::BTreeMap<String, Vec<Requirement>>>,
    }
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) => return e.kind() != std::io::ErrorKind::NotFound,
    };
    let Ok(policy) = serde_json::from_slice::<Policy>(&text) else { return true };
    let fits = |(scope, requirements)| Some((covers(scope, asked)?, requirements));
    let closest = policy.transports.get("docker").into_iter().flat_map(|scopes| {
        scopes.iter().filter_map(|(scope, requirements)| fits((scope.as_str(), requirements)))
    });
    let requirements = closest.max_by_key(|(fit, _)| *fit).map_or(&policy.default, |(_, found)| found);
    requirements.is_empty() || requirements.iter().any(|r| r.r#type != "insecureAcceptAnything")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        SigningKey(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    fn claim(n: u8) -> Claim {
        let digest = |tag: u8| Digest::of(&[tag, n]);
        Claim { layer: digest(0), diff_id: DiffId::new(digest(1)), index: IndexId::from_bytes([n; 32]) }
    }

    fn asked(by_digest: bool) -> Asked<'static> {
        Asked { host: "r.example", repository: "r.example/team/app", tag: Some("v1"), by_digest }
    }

    #[test]
    fn every_branch_of_auto() {
        let (ours, theirs) = (key(), key());
        let rule = Rule { keys: vec![ours.public()], ..Rule::default() };
        let judge = |rule: &Rule, by_digest, signatures: &[Signature]| {
            rule.judge(asked(by_digest), &claim(1), signatures)
        };

        assert_eq!(judge(&rule, false, &[]), Verdict::BareTag);
        assert_eq!(judge(&rule, true, &[]), Verdict::UnsignedForDigest);
        assert_eq!(judge(&rule, true, &[ours.sign(claim(1))]), Verdict::Signed);
        assert_eq!(
            judge(&rule, true, &[theirs.sign(claim(1))]),
            Verdict::UnsignedForDigest,
            "a stranger's key"
        );
        assert_eq!(judge(&rule, true, &[ours.sign(claim(2))]), Verdict::UnsignedForDigest, "another layer's");

        // A hostile writer keeps our signature and changes what it is said to cover.
        let mut moved = ours.sign(claim(2));
        moved.claim = claim(1);
        assert_eq!(judge(&rule, true, &[moved]), Verdict::UnsignedForDigest);

        let policy = Rule { require: vec!["r.example/team/".into()], ..rule.clone() };
        assert_eq!(judge(&policy, false, &[]), Verdict::UnsignedUnderPolicy);
        assert_eq!(judge(&policy, false, &[ours.sign(claim(1))]), Verdict::Signed);
        let host = Rule { hosts: vec!["r.example".into()], ..policy };
        assert_eq!(judge(&host, true, &[]), Verdict::TrustedHost);
        // A trusted host vouches for indexes, and makes no tag of a digest.
        let trusted = Rule { require: Vec::new(), ..host.clone() };
        let bare = |rule: &Rule| [false, true].map(|by_digest| rule.is_bare(asked(by_digest)));
        assert_eq!([&rule, &trusted, &host].map(bare), [[true, false], [true, false], [false, false]]);
        assert!(!Verdict::UnsignedForDigest.accepted() && !Verdict::UnsignedUnderPolicy.accepted());
    }

    #[test]
    fn a_signature_policy_of_the_machine_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.json");
        let demands = |repository: &str, tag: Option<&str>| {
            let host = repository.split('/').next().unwrap();
            demands_signature(&file, Asked { host, repository, tag, by_digest: false })
        };
        assert!(!demands("r.example/a", None), "no policy");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write(
            r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"r.example/team":[{"type":"signedBy"}]}}}"#,
        );
        assert!(!demands("r.example/a", None));
        assert!(!demands("r.example/teams", None));
        assert!(demands("r.example/team/app", None));
        write(
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}}"#,
        );
        assert!(!demands("r.example/a", None));
        write(
            r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{
                "r.example/app:prod":[{"type":"signedBy"}],
                "*.corp.example":[{"type":"sigstoreSigned"}],
                "open.corp.example":[{"type":"insecureAcceptAnything"}],
                "r.example/none":[]}}}"#,
        );
        assert!(demands("r.example/app", Some("prod")) && !demands("r.example/app", Some("test")));
        assert!(!demands("r.example/app", None) && !demands("r.example/app/prod", Some("prod")));
        assert!(demands("a.b.corp.example:5000/x", Some("v1")) && !demands("corp.example/x", None));
        assert!(!demands("open.corp.example/x", None), "the closer scope decides");
        assert!(demands("r.example/none", None), "no requirement is not valid, and accepts nothing");
        for broken in ["{", "{}", r#"{"default":[]}"#] {
            write(broken);
            assert!(demands("r.example/a", None), "a broken policy is not a missing one");
        }
    }

    #[test]
    fn keys_as_openssl_writes_them() {
        // RFC 8410, section 10.
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("key.pem");
        let public = dir.path().join("key.pub");
        std::fs::write(&private, "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n").unwrap();
        std::fs::write(&public, "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n").unwrap();
        let signer = SigningKey::load(&private).unwrap();
        let checker = PublicKey::load(&public).unwrap();
        assert_eq!(signer.public(), checker);
        assert!(checker.verifies(&signer.sign(claim(7))));
        assert!(SigningKey::load(&public).is_err());
        assert!(PublicKey::load(&private).is_err());
    }
}
