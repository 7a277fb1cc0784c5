//! Image references: `busybox` means `docker.io/library/busybox:latest`.

use std::fmt;

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Registry host, with port if given.
    pub registry: String,
    /// Repository path in the registry.
    pub repository: String,
    /// Tag; with neither tag nor digest given it is `latest`.
    pub tag: Option<String>,
    /// `sha256:<hex>`.
    pub digest: Option<String>,
}

/// Not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {why}")]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

impl Reference {
    /// Parses and normalises, by the rules of the distribution project's reference grammar.
    pub fn parse(text: &str) -> Result<Reference, InvalidReference> {
        let fail = |why| InvalidReference { text: text.chars().take(300).collect(), why };
        if text.is_empty() || text.len() > 1024 {
            return Err(fail("its length"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(fail("the digest must be sha256: and 64 hexadecimal digits")),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_ref().is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("the tag"));
        }
        let (registry, path) = match rest.split_once('/') {
            Some((host, path))
                if host.contains(['.', ':'])
                    || host == "localhost"
                    || host.chars().any(char::is_uppercase) =>
            {
                (host, path.to_owned())
            }
            _ => ("docker.io", rest.to_owned()),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let path =
            if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        let host_ok = registry.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
            && registry.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
            && !registry.contains("..");
        if !host_ok || registry.is_empty() {
            return Err(fail("the registry"));
        }
        if path.len() > 255 || !path.split('/').all(is_path_component) {
            return Err(fail("the repository must be lower case letters, digits and single separators"));
        }
        let tag = tag.or_else(|| if digest.is_none() { Some("latest".to_owned()) } else { None });
        Ok(Reference { registry: registry.to_owned(), repository: path, tag, digest })
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, when there is a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

/// `sha256:` and 64 lower case hexadecimal digits; the only algorithm in use.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// 64 lower case hexadecimal digits.
pub fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_path_component(component: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    edge(component.bytes().next())
        && edge(component.bytes().last())
        && component
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_and_bad_ones_refused() {
        let hex = "a".repeat(64);
        let check =
            |text: &str, expected: &str| assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
        check("busybox", "docker.io/library/busybox:latest");
        check("me/app:1", "docker.io/me/app:1");
        check("localhost/app", "localhost/app:latest");
        check("host:5000/a/b", "host:5000/a/b:latest");
        check("index.docker.io/x", "docker.io/library/x:latest");
        check(&format!("q.io/x@sha256:{hex}"), &format!("q.io/x@sha256:{hex}"));
        check(&format!("q.io/x:t@sha256:{hex}"), &format!("q.io/x:t@sha256:{hex}"));
        for bad in ["", "UPPER", "a//b", "x:", "x:-t", "../x", "x@sha256:12", "a b", "x/../y"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
