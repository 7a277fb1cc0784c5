//! The ciphers that values are sealed with, byte for byte in upstream's layout.
//!
//! Rule: Kubernetes documentation, "Encrypting Confidential Data at Rest", providers. AES-GCM: nonce of 12 bytes,
//! ciphertext, tag. AES-CBC: vector of 16 bytes, ciphertext padded by PKCS #7. Secretbox: nonce of 24 bytes, Poly1305
//! tag, XSalsa20 ciphertext. Seeded AES-GCM (KMS v2): 32 random bytes, then AES-GCM under the key that HKDF-SHA256
//! expands from seed and those bytes.

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, StreamCipher};
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use salsa20::XSalsa20;
use subtle::ConstantTimeEq as _;

/// Bytes of an AES-GCM nonce.
const GCM_NONCE: usize = 12;
/// Bytes of an AES-CBC vector.
const CBC_VECTOR: usize = 16;
/// Bytes of a secretbox nonce.
const BOX_NONCE: usize = 24;
/// Bytes of a Poly1305 tag.
const TAG: usize = 16;
/// Bytes that a seeded key is expanded with.
const INFO: usize = 32;

/// Why a value cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// No random numbers.
    #[error("the system gives no random bytes")]
    Random,
    /// The key has a length that the cipher does not take.
    #[error("a key of {0} bytes does not fit the cipher")]
    Key(usize),
    /// Too short to hold what every sealed value begins with.
    #[error("the stored data was shorter than the required size")]
    Short,
    /// Damaged, sealed under another key, or moved from another object.
    #[error("the stored data does not fit its key or its place: damaged, or sealed for another object")]
    Forged,
}

/// A cipher with its key.
pub enum Cipher {
    /// AES-GCM.
    Gcm(Box<LessSafeKey>),
    /// AES-CBC with 256 bits. Not authenticated: its padding alone betrays damage.
    Cbc(Box<[u8; 32]>),
    /// XSalsa20 and Poly1305.
    Secretbox(Box<[u8; 32]>),
    /// AES-GCM under a key of its own for every value.
    Seeded(Box<hkdf::Prk>),
}

impl Cipher {
    /// AES-GCM with 128 or 256 bits.
    pub fn gcm(key: &[u8]) -> Result<Self, CipherError> {
        Ok(Self::Gcm(Box::new(gcm_key(key)?)))
    }

    /// AES-CBC.
    pub fn cbc(key: &[u8]) -> Result<Self, CipherError> {
        Ok(Self::Cbc(Box::new(key.try_into().map_err(|_| CipherError::Key(key.len()))?)))
    }

    /// Secretbox.
    pub fn secretbox(key: &[u8]) -> Result<Self, CipherError> {
        Ok(Self::Secretbox(Box::new(key.try_into().map_err(|_| CipherError::Key(key.len()))?)))
    }

    /// AES-GCM with keys expanded from a seed of at least 32 bytes.
    pub fn seeded(seed: &[u8]) -> Result<Self, CipherError> {
        if seed.len() < INFO {
            return Err(CipherError::Key(seed.len()));
        }
        Ok(Self::Seeded(Box::new(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed))))
    }

    /// Appends the sealed `plain` to `out`. `place` is authenticated where the cipher can.
    pub fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
        match self {
            Self::Gcm(key) => gcm_seal(key, plain, place, out),
            Self::Seeded(seed) => {
                let info: [u8; INFO] = random()?;
                out.extend_from_slice(&info);
                gcm_seal(&expand(seed, &info)?, plain, place, out)
            }
            Self::Cbc(key) => {
                let vector: [u8; CBC_VECTOR] = random()?;
                out.extend_from_slice(&vector);
                let cipher = cbc::Encryptor::<Aes256>::new((&**key).into(), (&vector).into());
                out.extend_from_slice(&cipher.encrypt_padded_vec::<Pkcs7>(plain));
                Ok(())
            }
            Self::Secretbox(key) => {
                let nonce: [u8; BOX_NONCE] = random()?;
                let (mut stream, mac) = secretbox(key, &nonce);
                let mut sealed = plain.to_vec();
                stream.apply_keystream(&mut sealed);
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&mac.compute_unpadded(&sealed));
                out.extend_from_slice(&sealed);
                Ok(())
            }
        }
    }

    /// Opens what [`Cipher::seal`] made.
    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, CipherError> {
        match self {
            Self::Gcm(key) => gcm_open(key, sealed, place),
            Self::Seeded(seed) => {
                let (info, sealed) = sealed.split_at_checked(INFO).ok_or(CipherError::Short)?;
                gcm_open(&expand(seed, info)?, sealed, place)
            }
            Self::Cbc(key) => {
                let (vector, sealed) = sealed.split_first_chunk::<CBC_VECTOR>().ok_or(CipherError::Short)?;
                let cipher = cbc::Decryptor::<Aes256>::new((&**key).into(), vector.into());
                cipher.decrypt_padded_vec::<Pkcs7>(sealed).map_err(|_| CipherError::Forged)
            }
            Self::Secretbox(key) => {
                let (nonce, rest) = sealed.split_first_chunk::<BOX_NONCE>().ok_or(CipherError::Short)?;
                let (tag, sealed) = rest.split_first_chunk::<TAG>().ok_or(CipherError::Short)?;
                let (mut stream, mac) = secretbox(key, nonce);
                let own = mac.compute_unpadded(sealed);
                if !bool::from(own.as_slice().ct_eq(tag)) {
                    return Err(CipherError::Forged);
                }
                let mut plain = sealed.to_vec();
                stream.apply_keystream(&mut plain);
                Ok(plain)
            }
        }
    }
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N], CipherError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CipherError::Random)?;
    Ok(bytes)
}

fn gcm_key(key: &[u8]) -> Result<LessSafeKey, CipherError> {
    let algorithm = match key.len() {
        16 => &AES_128_GCM,
        32 => &AES_256_GCM,
        other => return Err(CipherError::Key(other)),
    };
    UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(|_| CipherError::Key(key.len()))
}

fn gcm_seal(key: &LessSafeKey, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
    let nonce: [u8; GCM_NONCE] = random()?;
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            out.get_mut(start..).unwrap_or_default(),
        )
        .map_err(|_| CipherError::Random)?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

fn gcm_open(key: &LessSafeKey, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, CipherError> {
    let (nonce, sealed) = sealed.split_first_chunk::<GCM_NONCE>().ok_or(CipherError::Short)?;
    let mut plain = sealed.to_vec();
    let length = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place), &mut plain)
        .map_err(|_| CipherError::Forged)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

fn expand(seed: &hkdf::Prk, info: &[u8]) -> Result<LessSafeKey, CipherError> {
    let mut key = [0; 32];
    let info = [info];
    let filled = seed.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    filled.map_err(|_| CipherError::Key(key.len()))?;
    gcm_key(&key)
}

/// The stream of a secretbox after its first 32 bytes, which key the authenticator.
fn secretbox(key: &[u8; 32], nonce: &[u8; BOX_NONCE]) -> (XSalsa20, Poly1305) {
    let mut stream = XSalsa20::new(key.into(), nonce.into());
    let mut first = [0; 32];
    stream.apply_keystream(&mut first);
    (stream, Poly1305::new((&first).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Cipher> {
        let key = [7; 32];
        vec![
            Cipher::gcm(&key).unwrap(),
            Cipher::gcm(&key[..16]).unwrap(),
            Cipher::cbc(&key).unwrap(),
            Cipher::secretbox(&key).unwrap(),
            Cipher::seeded(&key).unwrap(),
        ]
    }

    #[test]
    fn what_is_sealed_is_opened_and_differs_every_time() {
        for cipher in all() {
            for plain in [&b""[..], b"x", &[9; 1000]] {
                let (mut one, mut two) = (Vec::new(), Vec::new());
                cipher.seal(plain, b"/place", &mut one).unwrap();
                cipher.seal(plain, b"/place", &mut two).unwrap();
                assert_ne!(one, two);
                assert_eq!(cipher.open(&one, b"/place").unwrap(), plain);
            }
        }
    }

    #[test]
    fn a_changed_bit_or_place_is_noticed() {
        for cipher in all().into_iter().filter(|c| !matches!(c, Cipher::Cbc(_))) {
            let mut sealed = Vec::new();
            cipher.seal(b"secret", b"/place", &mut sealed).unwrap();
            for at in 0..sealed.len() {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert_eq!(cipher.open(&damaged, b"/place"), Err(CipherError::Forged), "byte {at}");
            }
            assert_eq!(cipher.open(&sealed[..10], b"/place"), Err(CipherError::Short));
            let moved = cipher.open(&sealed, b"/other").is_err();
            assert_eq!(moved, !matches!(cipher, Cipher::Secretbox(_)));
        }
    }

    #[test]
    fn a_secretbox_is_that_of_the_published_vector() {
        // NaCl, tests/secretbox.c
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
        };
        let key = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let sealed = hex(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
        );
        let plain = Cipher::secretbox(&key).unwrap().open(&[nonce, sealed].concat(), b"").unwrap();
        assert!(plain.starts_with(&hex("be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc")));
        assert_eq!(plain.len(), 131);
    }
}
