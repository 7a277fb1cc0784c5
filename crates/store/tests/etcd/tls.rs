//! etcd over TLS: both sides show certificates, strangers are refused by a reason, renewed files count.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use store::etcd::{Etcd, Options};
use store::{Put, Store, StoreError};
use testkit::etcd::Etcd as Members;

use crate::conformance::{self, options};

/// A certificate authority with a folder for its files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { issuer, folder: tempfile::tempdir().unwrap() };
        std::fs::write(authority.file("ca.crt"), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `to.crt` and `to.key`, good for 127.0.0.1.
    fn issue(&self, to: &Path) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let key = KeyPair::generate().unwrap();
        std::fs::write(to.with_extension("crt"), params.signed_by(&key, &self.issuer).unwrap().pem())
            .unwrap();
        std::fs::write(to.with_extension("key"), key.serialize_pem()).unwrap();
    }

    /// A member that asks every client for a certificate of this authority.
    fn member(&self) -> Members {
        self.issue(&self.file("server"));
        let argument = |flag: &str, file: &str| format!("--{flag}={}", self.file(file).display());
        let arguments = [
            argument("cert-file", "server.crt"),
            argument("key-file", "server.key"),
            argument("trusted-ca-file", "ca.crt"),
            "--client-cert-auth".to_owned(),
        ];
        Members::with(1, &arguments.each_ref().map(String::as_str)).unwrap()
    }

    /// Settings of a client that trusts this authority and shows `who`'s certificate.
    fn client(&self, members: &Members, who: &Path) -> Options {
        Options {
            ca_file: Some(self.file("ca.crt")),
            cert_file: Some(who.with_extension("crt")),
            key_file: Some(who.with_extension("key")),
            timeout: std::time::Duration::from_secs(3),
            ..options(members.endpoints())
        }
    }
}

async fn refused(options: Options) -> String {
    match Etcd::open(options).await {
        Err(StoreError::Unavailable(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a stranger came in"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_engine_conforms_over_tls() {
    let authority = Authority::new("etcd");
    let who = authority.file("client");
    authority.issue(&who);
    let members = authority.member();
    let with = authority.client(&members, &who);
    conformance::run(&members, |options| {
        options.ca_file.clone_from(&with.ca_file);
        options.cert_file.clone_from(&with.cert_file);
        options.key_file.clone_from(&with.key_file);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_are_refused_by_a_reason() {
    let (ours, strange) = (Authority::new("etcd"), Authority::new("strange"));
    let members = ours.member();
    let (who, stranger) = (ours.file("client"), strange.file("client"));
    ours.issue(&who);
    strange.issue(&stranger);

    // the member is not the one we trust
    let other_authority = Options { ca_file: Some(strange.file("ca.crt")), ..ours.client(&members, &who) };
    let why = refused(other_authority).await;
    assert!(why.contains("invalid peer certificate"), "{why}");
    // the member does not know us: it says so by an alert, or is gone before that arrives
    let why = refused(ours.client(&members, &stranger)).await;
    assert!(why.contains("transport error"), "{why}");
    let bare = Options { cert_file: None, key_file: None, ..ours.client(&members, &who) };
    let why = refused(bare).await;
    assert!(why.contains("transport error"), "{why}");
    // half of a pair, and a file that is not there
    let half = Options { key_file: None, ..ours.client(&members, &who) };
    let why = refused(half).await;
    assert!(why.contains("have to be given together"), "{why}");
    let why = refused(ours.client(&members, &ours.file("nobody"))).await;
    assert!(why.contains("nobody.crt: No such file"), "{why}");
}

/// Certificates are renewed under a running server: the next connection shows the new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn renewed_certificates_count_at_the_next_connection() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let who = first.file("client");
    first.issue(&who);
    let mut members = first.member();
    let etcd = Etcd::open(first.client(&members, &who)).await.unwrap();
    etcd.put(Put::create("/registry/core/configmaps/default/a", "1")).await.unwrap();

    members.kill(0).unwrap();
    std::fs::write(first.file("ca.crt"), second.issuer.pem()).unwrap();
    second.issue(&first.file("server"));
    second.issue(&who);
    members.restart(0).unwrap();
    let (found, _) = etcd.get("/registry/core/configmaps/default/a", None).await.unwrap();
    assert!(found.is_some());
}
