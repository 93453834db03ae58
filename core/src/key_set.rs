//! Public keys of an issuer (RFC 7517), as issuers write them: with padded or plain base64, leading zero bytes, a number as `kid`, and keys
//! for other purposes in between. `wirepost check`, the operator and the edges read a set with this one function, so a set that the check
//! accepts is a set that edges can use.

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

/// Most keys of a set.
pub const MAX_KEYS: usize = 64;
/// Most keys that one token may be checked with: those of one `kid`, or without any, that are for its algorithm. A rotation
/// has two or three; each costs a signature check of up to 0.5 ms, whoever signed the token.
pub const MAX_ALIKE: usize = 8;
/// RSA moduli that can check a signature, in bytes: 2048 bits (NIST SP 800-131A) to 8192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Longest RSA exponent in bytes; larger ones only make every check slow.
const MAX_EXPONENT: usize = 4;
/// An Ed25519 key, in bytes.
const ED25519_BYTES: usize = 32;

/// The unused bits of base64 and its `=` padding mean nothing for a key.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How a token is signed (RFC 7518, section 3.1; RFC 8037). `none` and the algorithms with a shared secret are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "these are the names of the RFC")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The `alg` of tokens and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of this name; `None` for one that is never accepted.
    pub fn named(name: &str) -> Option<Self> {
        // RFC 9864 names the algorithm after the curve; RFC 8037 called it EdDSA.
        let name = if name == "Ed25519" { "EdDSA" } else { name };
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A curve of ECDSA. It decides the hash (RFC 7518, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "these are the names of the RFC")]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn named(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// Of a coordinate, in bytes.
    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// The key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// RS… and PS…. Big-endian, without leading zero bytes.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
    /// ES….
    Ec {
        /// Where the point is.
        curve: Curve,
        /// An uncompressed point: the byte 4 and both coordinates.
        point: Vec<u8>,
    },
    /// EdDSA: 32 bytes.
    Ed25519(Vec<u8>),
}

impl KeyMaterial {
    /// The algorithms that such a key can be for.
    fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::Rsa { .. } => &Algorithm::ALL[..6],
            Self::Ec { curve: Curve::P256, .. } => &[Algorithm::Es256],
            Self::Ec { curve: Curve::P384, .. } => &[Algorithm::Es384],
            Self::Ec { curve: Curve::P521, .. } => &[Algorithm::Es512],
            Self::Ed25519(_) => &[Algorithm::EdDsa],
        }
    }
}

/// A key that can check signatures of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `kid`; a number counts as its decimal digits. Several keys of a set may have the same one.
    pub id: Option<String>,
    /// Its `alg`, the only algorithm that it may be used with.
    pub algorithm: Option<Algorithm>,
    /// What it is.
    pub material: KeyMaterial,
}

impl PublicKey {
    /// May a token of this algorithm be checked with this key? Without an `alg`, as Microsoft's keys are, an RSA key is for all of RSA: each
    /// of these signatures needs the private key, so a token that chooses among them gains nothing.
    pub fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithms().contains(&algorithm)
    }

    /// Whether one token may have to be checked with both.
    fn is_like(&self, other: &Self) -> bool {
        self.id == other.id && self.algorithms().iter().any(|algorithm| other.is_for(*algorithm))
    }

    /// The algorithms that it may be used with, never none.
    pub fn algorithms(&self) -> &[Algorithm] {
        self.algorithm.as_ref().map_or(self.material.algorithms(), std::slice::from_ref)
    }
}

/// A key of a set that can't check signatures of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableKey {
    /// `kid`, as far as it can be read.
    pub id: Option<String>,
    /// Why.
    pub reason: KeyDefect,
}

/// Why a key can't check signatures of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyDefect {
    /// Not a JSON object.
    #[error("it is not an object")]
    NotAnObject,
    /// Its `kid` can't be matched with a token's.
    #[error("its `kid` is neither text nor a whole number")]
    Id,
    /// Its `use` is another one than `sig`.
    #[error("the key is not for signatures (its `use`)")]
    Use,
    /// Its `key_ops` lack `verify`.
    #[error("the key is not for signatures (its `key_ops`)")]
    Operations,
    /// A kind of key that edges don't know.
    #[error("its type or curve is none of RSA, P-256, P-384, P-521, Ed25519")]
    Kind,
    /// An algorithm that edges don't know.
    #[error(
        "its algorithm (`alg`) is not one that edges accept for such a key: RS, PS or ES with 256, 384 or 512 bits, or EdDSA"
    )]
    Algorithm,
    /// A part of it can't be decoded.
    #[error("a part of the key is not base64url")]
    Encoding,
    /// It has a certificate alone.
    #[error("it has a certificate (`x5c`) without the key's own parts")]
    CertificateOnly,
    /// A part is missing.
    #[error("a part of the key is missing")]
    Incomplete,
    /// RSA, too short.
    #[error("it is an RSA key of less than 2048 bits")]
    TooShort,
    /// RSA, too long.
    #[error("it is an RSA key of more than 8192 bits, or with an exponent that nobody uses")]
    TooLong,
    /// Not a point of the curve's size.
    #[error("its point is not one of its curve")]
    Point,
    /// Ed25519, of another length.
    #[error("it does not have 32 bytes")]
    Length,
    /// Too many keys come into question for the same tokens.
    #[error("{MAX_ALIKE} keys before it have the same `kid`, or none like it; give each key one of its own")]
    Surplus,
}

/// Not a set at all. A single unusable key in it is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not of the form that the message shows.
    #[error("key set is not of the form {{\"keys\": [{{\"kty\": …}}]}} (RFC 7517)")]
    Form,
    /// Too many keys.
    #[error("key set has {0} keys, at most {MAX_KEYS} are allowed")]
    TooMany(usize),
}

/// Why keys can't check tokens, each reason once, as the end of a sentence: `: reason; reason`. Empty without keys.
pub fn reasons<'a>(unusable: impl IntoIterator<Item = &'a UnusableKey>) -> String {
    let mut reasons: Vec<KeyDefect> = Vec::new();
    for key in unusable {
        if !reasons.contains(&key.reason) {
            reasons.push(key.reason);
        }
    }
    let reasons: Vec<String> = reasons.iter().map(KeyDefect::to_string).collect();
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

/// Every key of a set, in its order.
///
/// # Errors
/// See [`KeySetError`].
pub fn read(set: &Value) -> Result<Vec<Result<PublicKey, UnusableKey>>, KeySetError> {
    let keys = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Form)?;
    if keys.len() > MAX_KEYS {
        return Err(KeySetError::TooMany(keys.len()));
    }
    let mut read: Vec<Result<PublicKey, UnusableKey>> = Vec::with_capacity(keys.len());
    for key in keys {
        let key = one(key).and_then(|key| {
            let alike = read.iter().flatten().filter(|other| other.is_like(&key)).count();
            if alike < MAX_ALIKE { Ok(key) } else { Err(UnusableKey { id: key.id, reason: KeyDefect::Surplus }) }
        });
        read.push(key);
    }
    Ok(read)
}

/// Text of a `kid`, of a key or in a token's header. `None` = it has none.
///
/// # Errors
/// [`KeyDefect::Id`].
pub fn id(kid: Option<&Value>) -> Result<Option<String>, KeyDefect> {
    match kid {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok(Some(id.clone())),
        // RFC 7517 requires a string, but `kid: 20260101` in YAML is a number. A fraction or an exponent has no single form.
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(Some(id.to_string())),
        Some(_) => Err(KeyDefect::Id),
    }
}

fn one(key: &Value) -> Result<PublicKey, UnusableKey> {
    let unusable = |id, reason| UnusableKey { id, reason };
    let key = key.as_object().ok_or_else(|| unusable(None, KeyDefect::NotAnObject))?;
    let id = id(key.get("kid")).map_err(|reason| unusable(None, reason))?;
    match usable(key) {
        Ok((algorithm, material)) => Ok(PublicKey { id, algorithm, material }),
        Err(reason) => Err(unusable(id, reason)),
    }
}

fn usable(key: &Map<String, Value>) -> Result<(Option<Algorithm>, KeyMaterial), KeyDefect> {
    if text(key, "use").is_some_and(|purpose| purpose != "sig") {
        return Err(KeyDefect::Use);
    }
    if let Some(operations) = key.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return Err(KeyDefect::Operations);
    }
    let material = match (text(key, "kty"), text(key, "crv")) {
        (Some("RSA"), _) => rsa(key)?,
        (Some("EC"), Some(name)) => ec(key, Curve::named(name).ok_or(KeyDefect::Kind)?)?,
        (Some("OKP"), Some("Ed25519")) => ed25519(key)?,
        _ => return Err(KeyDefect::Kind),
    };
    let known = |name| Algorithm::named(name).filter(|algorithm| material.algorithms().contains(algorithm));
    let algorithm = text(key, "alg").map(|name| known(name).ok_or(KeyDefect::Algorithm)).transpose()?;
    Ok((algorithm, material))
}

fn text<'a>(key: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    key.get(name).and_then(Value::as_str)
}

fn number(key: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeyDefect> {
    match text(key, name) {
        Some(text) => unsigned(text).ok_or(KeyDefect::Encoding),
        None if key.contains_key("x5c") => Err(KeyDefect::CertificateOnly),
        None => Err(KeyDefect::Incomplete),
    }
}

fn rsa(key: &Map<String, Value>) -> Result<KeyMaterial, KeyDefect> {
    let (n, e) = (number(key, "n")?, number(key, "e")?);
    if n.len() < *RSA_BYTES.start() {
        return Err(KeyDefect::TooShort);
    }
    if n.len() > *RSA_BYTES.end() || e.is_empty() || e.len() > MAX_EXPONENT {
        return Err(KeyDefect::TooLong);
    }
    Ok(KeyMaterial::Rsa { n, e })
}

fn ec(key: &Map<String, Value>, curve: Curve) -> Result<KeyMaterial, KeyDefect> {
    let mut point = vec![4];
    for coordinate in [number(key, "x")?, number(key, "y")?] {
        // Some issuers omit the leading zero bytes that RFC 7518, section 6.2.1.2, requires.
        let zeros = curve.bytes().checked_sub(coordinate.len()).ok_or(KeyDefect::Point)?;
        point.extend(std::iter::repeat_n(0, zeros));
        point.extend(coordinate);
    }
    Ok(KeyMaterial::Ec { curve, point })
}

fn ed25519(key: &Map<String, Value>) -> Result<KeyMaterial, KeyDefect> {
    // Not a number: each of its bytes counts.
    let x = text(key, "x").map(bytes).ok_or(KeyDefect::Incomplete)?;
    let x = x.ok_or(KeyDefect::Encoding)?;
    if x.len() == ED25519_BYTES { Ok(KeyMaterial::Ed25519(x)) } else { Err(KeyDefect::Length) }
}

/// Base64 in its own alphabet or that of URLs, with or without padding and line ends.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let plain: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        })
        .collect();
    BASE64.decode(plain).ok()
}

/// A big-endian number. Java's `BigInteger` puts a zero byte in front where the first bit is set (RFC 7518, section 2, forbids it), and the
/// signature check would then refuse the key.
fn unsigned(text: &str) -> Option<Vec<u8>> {
    let mut bytes = bytes(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    Some(bytes)
}

#[cfg(test)]
mod tests;
