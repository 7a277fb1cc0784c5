//! Service-account tokens: signed JSON Web Tokens (ES256) bound to a service account and, where asked, to a pod.
//!
//! Rule: Kubernetes documentation, "Managing Service Accounts" (bound tokens); RFC 7519, RFC 7518 §3.4.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The issuer in tokens, and the default audience.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// The issuer in legacy tokens: those of Secrets, which are bound to their Secret and have no end.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Why no token can be signed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key is broken.
    #[error("the service-account signing key (DIR/pki/sa.key) is no P-256 PKCS #8 key")]
    Key,
    /// The signature failed.
    #[error("signing failed")]
    Sign,
}

/// Why a token is not accepted. The client only ever learns "Unauthorized".
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not three base64url parts of JSON, or not ES256, or not our key.
    #[error("malformed or foreign token")]
    Malformed,
    /// The signature does not fit.
    #[error("bad signature")]
    Signature,
    /// Outside its time.
    #[error("expired or not valid yet")]
    Time,
    /// For somebody else.
    #[error("wrong issuer or audience")]
    Audience,
}

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

/// What a token says, once its signature and time are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// Its uid when the token was made.
    pub service_account_uid: String,
    /// The pod that the token is bound to: name and uid.
    pub pod: Option<(String, String)>,
    /// The Secret that the token is bound to: name and uid.
    pub secret: Option<(String, String)>,
    /// The node: that of the pod, or the one that the token is bound to.
    pub node: Option<(String, String)>,
    /// For whom the token is.
    pub audiences: Vec<String>,
    /// Token id; legacy tokens have none.
    pub id: String,
    /// A legacy token: it holds while its Secret has it.
    pub legacy: bool,
}

impl Tokens {
    /// From the PKCS #8 private key.
    pub fn new(pkcs8: &[u8]) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|_| TokenError::Key)?;
        let key_id = B64.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Self { key, random, key_id })
    }

    /// Signs `claims`.
    pub fn sign(&self, claims: &Value) -> Result<String, TokenError> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let text = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = self.key.sign(&self.random, text.as_bytes()).map_err(|_| TokenError::Sign)?;
        Ok(format!("{text}.{}", B64.encode(signature.as_ref())))
    }

    /// Checks signature, time, issuer and audience (any of `audiences`).
    pub fn check(&self, token: &str, audiences: &[&str], now: Timestamp) -> Result<Claims, Refused> {
        let (text, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, claims) = text.split_once('.').ok_or(Refused::Malformed)?;
        let read = |part: &str| -> Result<Value, Refused> {
            let bytes = B64.decode(part).map_err(|_| Refused::Malformed)?;
            serde_json::from_slice(&bytes).map_err(|_| Refused::Malformed)
        };
        let header = read(header)?;
        if header["alg"] != "ES256" || header["kid"].as_str().is_some_and(|k| k != self.key_id) {
            return Err(Refused::Malformed);
        }
        let signature = B64.decode(signature).map_err(|_| Refused::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(text.as_bytes(), &signature)
            .map_err(|_| Refused::Signature)?;
        let claims = read(claims)?;
        if claims["iss"] == LEGACY_ISSUER {
            return legacy(&claims, audiences);
        }
        let second = now.as_second();
        let in_time = claims["exp"].as_i64().is_some_and(|e| second < e)
            && claims["nbf"].as_i64().is_none_or(|n| second + 60 >= n);
        if !in_time {
            return Err(Refused::Time);
        }
        let list = match &claims["aud"] {
            Value::Array(list) => list.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect(),
            Value::String(one) => vec![one.clone()],
            _ => Vec::new(),
        };
        if claims["iss"] != ISSUER || !list.iter().any(|a| audiences.contains(&a.as_str())) {
            return Err(Refused::Audience);
        }
        let bound = &claims["kubernetes.io"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let named = |slot: &str| {
            bound[slot]["name"].as_str().map(|name| (name.to_owned(), text(&bound[slot]["uid"])))
        };
        Ok(Claims {
            namespace: text(&bound["namespace"]),
            service_account: text(&bound["serviceaccount"]["name"]),
            service_account_uid: text(&bound["serviceaccount"]["uid"]),
            pod: named("pod"),
            secret: named("secret"),
            node: named("node"),
            audiences: list,
            id: text(&claims["jti"]),
            legacy: false,
        })
    }

    /// Signs the token that a Secret holds for an account.
    pub fn sign_legacy(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, TokenError> {
        let mut claims =
            json!({"iss": LEGACY_ISSUER, "sub": format!("system:serviceaccount:{namespace}:{account}")});
        for (key, value) in LEGACY_CLAIMS.iter().zip([namespace, secret, account, account_uid]) {
            claims[format!("kubernetes.io/serviceaccount/{key}")] = json!(value);
        }
        self.sign(&claims)
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        // uncompressed point: 0x04, then x and y of 32 bytes each
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..65])}]})
    }
}

/// What a legacy token says, below `kubernetes.io/serviceaccount/`.
const LEGACY_CLAIMS: [&str; 4] = ["namespace", "secret.name", "service-account.name", "service-account.uid"];

/// A legacy token names no audience: it is for this server.
fn legacy(claims: &Value, audiences: &[&str]) -> Result<Claims, Refused> {
    let [namespace, secret, service_account, service_account_uid] = LEGACY_CLAIMS.map(|key| {
        claims[format!("kubernetes.io/serviceaccount/{key}")].as_str().unwrap_or_default().to_owned()
    });
    let complete =
        [&namespace, &secret, &service_account, &service_account_uid].iter().all(|text| !text.is_empty());
    let subject = format!("system:serviceaccount:{namespace}:{service_account}");
    if !complete || claims["sub"] != subject.as_str() {
        return Err(Refused::Malformed);
    }
    if !audiences.contains(&ISSUER) {
        return Err(Refused::Audience);
    }
    Ok(Claims {
        namespace,
        service_account,
        service_account_uid,
        pod: None,
        secret: Some((secret, String::new())),
        node: None,
        audiences: vec![ISSUER.to_owned()],
        id: String::new(),
        legacy: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let key =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Tokens::new(key.as_ref()).unwrap()
    }

    fn claims() -> Value {
        json!({"iss": ISSUER, "aud": ["a"], "exp": 2000, "nbf": 1000, "jti": "i",
            "kubernetes.io": {"namespace": "n", "serviceaccount": {"name": "s", "uid": "u"}}})
    }

    #[test]
    fn a_token_is_accepted_in_its_time_by_its_audience_only() {
        let tokens = tokens();
        let token = tokens.sign(&claims()).unwrap();
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(tokens.check(&token, &["a"], at(1500)).unwrap().service_account, "s");
        assert_eq!(tokens.check(&token, &["a"], at(2500)), Err(Refused::Time));
        assert_eq!(tokens.check(&token, &["b"], at(1500)), Err(Refused::Audience));
    }

    #[test]
    fn forged_tokens_are_refused() {
        let (ours, theirs) = (tokens(), tokens());
        let at = Timestamp::from_second(1500).unwrap();
        let foreign = theirs.sign(&claims()).unwrap();
        assert_eq!(ours.check(&foreign, &["a"], at), Err(Refused::Malformed));
        let body = B64.encode(claims().to_string());
        let none = format!("{}.{body}.", B64.encode(r#"{"alg":"none"}"#));
        assert_eq!(ours.check(&none, &["a"], at), Err(Refused::Malformed));
        let token = ours.sign(&claims()).unwrap();
        let (text, _) = token.rsplit_once('.').unwrap();
        let forged = format!("{text}.{}", B64.encode([0_u8; 64]));
        assert_eq!(ours.check(&forged, &["a"], at), Err(Refused::Signature));
    }

    #[test]
    fn legacy_tokens_name_their_secret_and_are_for_this_server() {
        let tokens = tokens();
        let at = Timestamp::from_second(1500).unwrap();
        let token = tokens.sign_legacy("n", "s", "u", "secret").unwrap();
        let claims = tokens.check(&token, &[ISSUER], at).unwrap();
        assert_eq!(
            (claims.service_account.as_str(), claims.secret),
            ("s", Some(("secret".into(), String::new())))
        );
        assert_eq!(tokens.check(&token, &["b"], at), Err(Refused::Audience));
        let mut other = json!({"iss": LEGACY_ISSUER, "sub": "system:serviceaccount:n:other"});
        for key in LEGACY_CLAIMS {
            other[format!("kubernetes.io/serviceaccount/{key}")] = json!("n");
        }
        assert_eq!(tokens.check(&tokens.sign(&other).unwrap(), &[ISSUER], at), Err(Refused::Malformed));
    }
}
