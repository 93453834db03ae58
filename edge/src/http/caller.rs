//! The caller: the credential in the request's headers, and whether it is an API key of the business.

use axum::http::{HeaderMap, header};

use super::answer::{Code, Refusal};
use crate::{
    business::Business,
    clock,
    identity::{api_key, grant},
};

/// Contains an API key; takes precedence over `Authorization`, which proxies often use for themselves.
const X_API_KEY: &str = "x-api-key";

/// What a caller presents.
#[derive(Clone, Copy)]
pub(super) enum Credential<'a> {
    /// `X-Api-Key`.
    ApiKey(&'a str),
    /// `Authorization: Bearer`: an API key or a client's token.
    Bearer(&'a str),
}

impl<'a> Credential<'a> {
    /// Reads it from the headers.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let readable = |_| Refusal::new(Code::NoCredential, "the credential holds characters that no token or key has");
        if let Some(key) = headers.get(X_API_KEY) {
            return Ok(Self::ApiKey(key.to_str().map_err(readable)?.trim()));
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(Refusal::new(
                Code::NoCredential,
                "send a client's token as Authorization: Bearer, or a service's API key as X-Api-Key or Authorization: Bearer",
            ));
        };
        // The scheme's name is case-insensitive (RFC 9110, section 11.1).
        match value.to_str().map_err(readable)?.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Self::Bearer(token.trim())),
            _ => Err(Refusal::new(Code::NoCredential, "Authorization must be of the form Bearer <token>")),
        }
    }

    /// As [grants](grant::Grant::credential) name it, if it is an API key.
    pub(super) fn digest(self) -> u64 {
        let (Self::ApiKey(key) | Self::Bearer(key)) = self;
        grant::credential(api_key::digest(key))
    }

    /// Whether it is an API key of the business.
    pub(super) fn is_service(self, business: &Business) -> bool {
        let (Self::ApiKey(key) | Self::Bearer(key)) = self;
        api_key::is_known(&business.config.auth.api_keys, key, clock::now_ms())
    }
}

/// The refusal of an unknown API key.
pub(super) fn unknown_api_key() -> Refusal {
    Refusal::new(
        Code::UnknownApiKey,
        "the API key is unknown to this business or has expired; its services find the current one in the Secret of spec.access",
    )
}
