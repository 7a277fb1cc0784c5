//! Names of images as the kubelet reads them before it asks the runtime: whether they are names at all, which tag
//! they mean, and in which repository credentials are looked for.
//!
//! Rule: the distribution project's reference grammar, with Docker's short names.

/// A name that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// Registry and path, for example `docker.io/library/nginx`.
    pub repository: String,
    /// Neither tag nor digest is given: `latest` is meant.
    pub untagged: bool,
}

/// Reads an image's name.
///
/// # Errors
/// The reference's words for what is wrong.
pub fn parse(text: &str) -> Result<ImageName, &'static str> {
    const BAD: &str = "invalid reference format";
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let (kind, hex) = digest.split_once(':').ok_or(BAD)?;
        let length = match kind {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err("unsupported digest algorithm"),
        };
        if hex.len() != length {
            return Err("invalid checksum digest length");
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BAD);
        }
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(BAD);
    }
    let is_host =
        |host: &str| host.contains(['.', ':']) || host == "localhost" || host.chars().any(char::is_uppercase);
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path.to_owned()),
        _ => ("docker.io", name.to_owned()),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let path = if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    let host_ok = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    if !host_ok || host.starts_with(['.', '-', ':']) || !path.split('/').all(is_component) {
        return Err(BAD);
    }
    if path.len() > 255 {
        return Err("repository name must not be more than 255 characters");
    }
    Ok(ImageName { repository: format!("{host}/{path}"), untagged: tag.is_none() && digest.is_none() })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

/// Lower case words with single separators (`.`, one or two `_`, any number of `-`) between them.
fn is_component(component: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = component.split(word).filter(|between| !between.is_empty());
    component.starts_with(word)
        && component.ends_with(word)
        && separators.clone().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_bad_ones_refused_in_the_references_words() {
        let check = |text: &str, repository: &str, untagged: bool| {
            assert_eq!(parse(text), Ok(ImageName { repository: repository.to_owned(), untagged }), "{text}");
        };
        check("nginx", "docker.io/library/nginx", true);
        check("me/app:1", "docker.io/me/app", false);
        check("localhost:5000/a/b__c", "localhost:5000/a/b__c", true);
        check(&format!("q.io/x@sha256:{}", "a".repeat(64)), "q.io/x", false);
        let bad = |text: &str, why: &str| assert_eq!(parse(text), Err(why), "{text}");
        bad("", "invalid reference format");
        bad("a b", "invalid reference format");
        bad("a//b", "invalid reference format");
        bad("a..b", "invalid reference format");
        bad("x:", "invalid reference format");
        bad("x:-1", "invalid reference format");
        bad("FOO", "invalid reference format: repository name must be lowercase");
        bad("x@sha256:12", "invalid checksum digest length");
        bad("x@md5:12", "unsupported digest algorithm");
    }
}
