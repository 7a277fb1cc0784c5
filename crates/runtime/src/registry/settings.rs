//! `registries.yaml`: mirrors, credentials and authorities, in the form that k3s documents ("Private Registry
//! Configuration"), which its users know:
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint: ["https://mirror.example:5000", "http://10.0.0.1:5000"]
//!     rewrite: {"^library/(.*)": "cache/$1"}
//!   "*": {endpoint: ["https://pull-through.example"]}
//! configs:
//!   mirror.example:5000:
//!     auth: {username: me, password: secret}        # or auth, or identity_token
//!     tls: {ca_file: /etc/ca.pem, cert_file: …, key_file: …, insecure_skip_verify: false}
//! ```
//!
//! Endpoints are tried in order; the registry itself, over HTTPS, comes last unless it is one of them. An endpoint
//! `http://…` is the only way to plain HTTP. Credentials of a pod's Secret go to the image's own registry alone,
//! never to a mirror of another name: those have their own in `configs`.
//!
//! Beyond k3s: an unknown key is an error, since a misspelt one would silently send pulls elsewhere.
//!
//! Rejected: containerd's folder of `hosts.toml` files; one file is easier to hand out, and our users come from k3s.

use std::{collections::BTreeMap, io, path::Path};

use http::{Uri, uri::Authority, uri::Scheme};
use serde::Deserialize;

use super::{Credentials, RegistryError, session::Endpoint};
use crate::image::name::Reference;

/// The registry behind `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// The file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// By registry, as it stands in image names; `*` for all others.
    mirrors: BTreeMap<String, Mirror>,
    /// By host and port.
    configs: BTreeMap<String, HostConfig>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostConfig {
    auth: Option<Auth>,
    tls: Option<Tls>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identity_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Auth(..)")
    }
}

/// TLS to one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    /// Authorities beside the system's, PEM.
    pub ca_file: String,
    /// Our own certificate, PEM.
    pub cert_file: String,
    /// Its key, PEM.
    pub key_file: String,
    /// Take any certificate.
    pub insecure_skip_verify: bool,
}

impl Settings {
    /// Reads `path`; without a file there is nothing set.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong.
    pub fn load(path: &Path) -> Result<Settings, RegistryError> {
        let wrong = |why: String| RegistryError::Settings(format!("{}: {why}", path.display()));
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(error) => return Err(wrong(error.to_string())),
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Settings::default());
        }
        let settings: Settings =
            serde_saphyr::from_slice(&bytes).map_err(|error| wrong(first_line(&error.to_string())))?;
        settings.check().map_err(wrong)?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        for (name, mirror) in &self.mirrors {
            for endpoint in &mirror.endpoint {
                base(endpoint).map_err(|why| format!("mirrors.{name}.endpoint {endpoint:?}: {why}"))?;
            }
            for pattern in mirror.rewrite.keys() {
                regex::Regex::new(pattern)
                    .map_err(|error| format!("mirrors.{name}.rewrite {pattern:?}: {error}"))?;
            }
        }
        for (host, config) in &self.configs {
            self.credentials(host).map_err(|why| format!("configs.{host:?}.auth: {why}"))?;
            let tls = config.tls.clone().unwrap_or_default();
            if tls.cert_file.is_empty() != tls.key_file.is_empty() {
                return Err(format!("configs.{host:?}.tls: cert_file and key_file need each other"));
            }
        }
        Ok(())
    }

    /// Where the content of `image` may be, best first. `given` are the caller's credentials.
    ///
    /// # Errors
    /// The registry's name or an endpoint is no host.
    pub(crate) fn endpoints(
        &self,
        image: &Reference,
        given: Option<&Credentials>,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let mirror = self.mirrors.get(&image.registry).or_else(|| self.mirrors.get("*"));
        let mut found = Vec::new();
        for endpoint in mirror.iter().flat_map(|mirror| &mirror.endpoint) {
            let (scheme, authority, path) =
                base(endpoint).map_err(|why| RegistryError::Settings(format!("{endpoint:?}: {why}")))?;
            let repository =
                mirror.map_or_else(|| image.repository.clone(), |m| m.rewrite(&image.repository));
            found.push(self.endpoint(image, given, scheme, authority, &path, repository)?);
        }
        let own = host_of(&image.registry);
        if !found.iter().any(|endpoint| endpoint.host() == own) {
            found.push(self.own(image, given)?);
        }
        Ok(found)
    }

    /// Where `image` itself lives: its registry, as configured, never a mirror of another name.
    ///
    /// # Errors
    /// The registry's name is no host.
    pub(crate) fn own(
        &self,
        image: &Reference,
        given: Option<&Credentials>,
    ) -> Result<Endpoint, RegistryError> {
        let own = host_of(&image.registry);
        let configured = self.mirrors.get(&image.registry).into_iter().flat_map(|mirror| &mirror.endpoint);
        for endpoint in configured {
            if let Ok((scheme, authority, path)) = base(endpoint)
                && authority.as_str() == own
            {
                return self.endpoint(image, given, scheme, authority, &path, image.repository.clone());
            }
        }
        let authority: Authority = own
            .parse()
            .map_err(|_| RegistryError::Settings(format!("{:?} is not a registry", image.registry)))?;
        self.endpoint(image, given, Scheme::HTTPS, authority, "/v2", image.repository.clone())
    }

    fn endpoint(
        &self,
        image: &Reference,
        given: Option<&Credentials>,
        scheme: Scheme,
        authority: Authority,
        path: &str,
        repository: String,
    ) -> Result<Endpoint, RegistryError> {
        let own = authority.as_str() == host_of(&image.registry);
        let configured = self
            .credentials(authority.as_str())
            .map_err(|why| RegistryError::Settings(format!("credentials of {authority}: {why}")))?;
        Ok(Endpoint {
            scheme,
            base: path.to_owned(),
            repository,
            // who the pod says it is goes before who the node is
            credentials: given.filter(|_| own).cloned().or(configured),
            // a mirror of several registries is told which one is meant, as containerd does
            namespace: (!own).then(|| image.registry.clone()),
            authority,
        })
    }

    fn config(&self, host: &str) -> Option<&HostConfig> {
        let known_as = if host == DOCKER_HUB { "docker.io" } else { host };
        self.configs.get(host).or_else(|| self.configs.get(known_as)).or_else(|| self.configs.get("*"))
    }

    fn credentials(&self, host: &str) -> Result<Option<Credentials>, &'static str> {
        match self.config(host).and_then(|config| config.auth.as_ref()) {
            Some(a) => Credentials::from_parts(&a.username, &a.password, &a.auth, &a.identity_token, ""),
            None => Ok(None),
        }
    }

    /// TLS to `host` (with its port where one is given).
    pub(super) fn tls(&self, host: &str) -> Tls {
        self.config(host).and_then(|config| config.tls.clone()).unwrap_or_default()
    }
}

impl Mirror {
    fn rewrite(&self, repository: &str) -> String {
        for (pattern, replacement) in &self.rewrite {
            // checked when the file was read
            if let Ok(pattern) = regex::Regex::new(pattern)
                && pattern.is_match(repository)
            {
                return pattern.replace_all(repository, replacement.as_str()).into_owned();
            }
        }
        repository.to_owned()
    }
}

fn host_of(registry: &str) -> &str {
    if registry == "docker.io" { DOCKER_HUB } else { registry }
}

/// Whether who gave credentials for `address` (a URL, or a host alone) meant `registry`. Without one, any is meant.
pub(crate) fn is_meant(address: &str, registry: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.split('/').next().unwrap_or_default();
    // docker's own has many names
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    address.is_empty() || host_of(host) == host_of(registry)
}

fn base(endpoint: &str) -> Result<(Scheme, Authority, String), String> {
    let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
    let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::HTTPS,
        Some("http") => Scheme::HTTP,
        _ => return Err("must begin with https:// or http://".to_owned()),
    };
    let authority = uri.authority().cloned().ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("credentials belong into configs".to_owned());
    }
    if uri.query().is_some() {
        return Err("may not have a query".to_owned());
    }
    let path = uri.path().trim_end_matches('/');
    Ok((scheme, authority, if path.is_empty() { "/v2".to_owned() } else { path.to_owned() }))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::load(file.path()).map_err(|e| e.to_string())
    }

    fn endpoints(text: &str, image: &str) -> Vec<String> {
        let found = settings(text).unwrap().endpoints(&Reference::parse(image).unwrap(), None).unwrap();
        found
            .iter()
            .map(|e| format!("{}://{}{} {} {:?}", e.scheme, e.authority, e.base, e.repository, e.namespace))
            .collect()
    }

    #[test]
    fn mirrors_come_first_and_the_registry_itself_last() {
        let mirrors = "mirrors:\n  docker.io:\n    endpoint: [\"https://m.example:5000/v2/\", 'http://10.0.0.1']\n    \
                       rewrite: {'^library/(.*)': 'cache/$1'}\n  \"*\": {endpoint: ['https://all.example/p/v2']}\n";
        assert_eq!(
            endpoints(mirrors, "nginx"),
            [
                "https://m.example:5000/v2 cache/nginx Some(\"docker.io\")",
                "http://10.0.0.1/v2 cache/nginx Some(\"docker.io\")",
                "https://registry-1.docker.io/v2 library/nginx None"
            ]
        );
        assert_eq!(
            endpoints(mirrors, "q.io/a/b"),
            ["https://all.example/p/v2 a/b Some(\"q.io\")", "https://q.io/v2 a/b None"]
        );
        // plain HTTP only where it is asked for, and then not HTTPS too
        let plain = "mirrors: {'10.0.0.1:5000': {endpoint: ['http://10.0.0.1:5000']}}";
        assert_eq!(endpoints(plain, "10.0.0.1:5000/x"), ["http://10.0.0.1:5000/v2 x None"]);
        assert_eq!(endpoints("", "localhost:5000/x"), ["https://localhost:5000/v2 x None"]);
    }

    #[test]
    fn a_pods_credentials_go_to_the_images_own_registry_only() {
        let text = "mirrors: {q.io: {endpoint: ['https://m.example']}}\n\
                    configs: {m.example: {auth: {username: node, password: x}}}";
        let pod = Credentials::Basic { username: "pod".into(), password: "y".into() };
        let image = Reference::parse("q.io/x").unwrap();
        let found = settings(text).unwrap().endpoints(&image, Some(&pod)).unwrap();
        let node = Credentials::Basic { username: "node".into(), password: "x".into() };
        assert_eq!(found[0].credentials, Some(node));
        assert_eq!(found[1].credentials, Some(pod));
    }

    #[test]
    fn credentials_are_meant_for_the_host_that_comes_with_them() {
        for (address, registry, meant) in [
            ("", "q.io", true),
            ("https://q.io", "q.io", true),
            ("q.io:5000/v2/", "q.io:5000", true),
            ("https://q.io:5000", "q.io", false),
            ("https://other.io/q.io", "q.io", false),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("https://registry-1.docker.io", "docker.io", true),
            ("docker.io", "q.io", false),
        ] {
            assert_eq!(is_meant(address, registry), meant, "{address} {registry}");
        }
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let check = |text: &str, expected: &str| {
            let error = settings(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("mirrors: {a: {endpoints: [x]}}", "endpoints");
        check("mirrors: {a: {endpoint: ['ftp://x']}}", "must begin with https://");
        check("mirrors: {a: {endpoint: ['https://me:pw@x']}}", "belong into configs");
        check("mirrors: {a: {rewrite: {'(': x}}}", "rewrite");
        check("configs: {a: {tls: {cert_file: x}}}", "need each other");
        check("configs: {a: {auth: {auth: '!'}}}", "not base64");
        assert!(settings("").is_ok() && settings("mirrors:\n").is_ok());
    }
}
