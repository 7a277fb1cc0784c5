//! Pull, push and archives with Debian's docker-registry and skopeo.

use std::{fs, path::PathBuf};

use cri::v1;
use runtime::{
    ArchiveFormat,
    image::progress::{Progress, State},
    registry::Credentials,
};
use testkit::registry::{Options, Registry, USER};

use crate::support::{Node, shell};

fn ask(name: &str, auth: Option<v1::AuthConfig>) -> v1::PullImageRequest {
    let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
    v1::PullImageRequest { image, auth, sandbox_config: None }
}

fn busybox() -> String {
    format!("docker-archive:{}", testkit::image::busybox().unwrap().display())
}

fn user() -> v1::AuthConfig {
    v1::AuthConfig { username: USER.0.into(), password: USER.1.into(), ..Default::default() }
}

/// An authority and a certificate of 127.0.0.1: the authority's file, the certificate's and its key's.
fn certificates(node: &Node) -> (PathBuf, PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&own, &issuer).unwrap().pem();
    let files = [("ca.pem", ca), ("leaf.pem", leaf), ("key.pem", own.serialize_pem())];
    let [ca, leaf, key] = files.map(|(name, text)| {
        fs::write(node.path(name), text).unwrap();
        node.path(name)
    });
    (ca, leaf, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_over_tls_with_a_password_and_runs() {
    let mut node = Node::empty().await;
    let (ca, certificate, key) = certificates(&node);
    let tls = Some((certificate.as_path(), key.as_path()));
    let registry = Registry::start(Options { tls, password: true, net: None }).unwrap();
    let name = registry.put(&busybox(), "team/box:1", None).unwrap();
    let settings = node.config.registries.settings.clone();
    let mut images = node.images.clone();

    let status = images.pull_image(ask(&name, Some(user()))).await.unwrap_err();
    assert!(status.message().contains("certificate signed by unknown authority"), "{status}");
    fs::write(&settings, registry.settings(Some(&ca))).unwrap();
    let status = images.pull_image(ask(&name, None)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(status.message().contains("no credentials were given"), "{status}");
    let wrong = v1::AuthConfig { password: "wrong".into(), ..user() };
    let status = images.pull_image(ask(&name, Some(wrong))).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
    assert!(!status.message().contains("wrong"), "{status}");
    let missing = format!("{}/team/box:2", registry.host());
    let status = images.pull_image(ask(&missing, Some(user()))).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert!(status.message().contains(&missing) && status.message().contains("manifest unknown"), "{status}");

    let id = images.pull_image(ask(&name, Some(user()))).await.unwrap().into_inner().image_ref;
    let image = v1::ImageSpec { image: name.clone(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(image.clone()), verbose: false };
    let found = images.image_status(request).await.unwrap().into_inner().image.unwrap();
    assert_eq!((found.id, found.repo_tags), (id.clone(), vec![name.clone()]));
    let mut config = shell("pulled", "echo it runs");
    config.image = Some(image);
    let (status, log) = node.script(config).await;
    assert_eq!((status.exit_code, log.as_str()), (0, "stdout F it runs\n"));
    // By digest it is the same, and who only knows the digest needs no tag.
    let digest = found.repo_digests[0].clone();
    assert_eq!(images.pull_image(ask(&digest, Some(user()))).await.unwrap().into_inner().image_ref, id);
    let other = Node::empty().await;
    fs::copy(&settings, &other.config.registries.settings).unwrap();
    let mut images = other.images.clone();
    assert_eq!(images.pull_image(ask(&digest, Some(user()))).await.unwrap().into_inner().image_ref, id);
    let listed = images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!((listed[0].repo_tags.len(), &listed[0].repo_digests), (0, &vec![digest]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_and_exported_is_read_by_others() {
    let node = Node::start().await;
    let registry = Registry::start(Options { password: true, ..Options::default() }).unwrap();
    fs::write(&node.config.registries.settings, registry.settings(None)).unwrap();
    let to = format!("{}/pushed/box:1", registry.host());
    let (username, password) = (USER.0.to_owned(), USER.1.to_owned());
    let me = || Some(Credentials::Basic { username: username.clone(), password: password.clone() });
    let error = node.runtime.push_image("box", &to, None, &Progress::default()).await.unwrap_err();
    assert!(
        error.to_string().contains("failed to push image") && error.to_string().contains("not authorized"),
        "{error}"
    );
    let progress = Progress::default();
    let digest = node.runtime.push_image("box", &to, me(), &progress).await.unwrap();
    assert!(
        progress.watch().borrow().iter().all(|step| step.state == State::Done && step.moved == step.size)
    );
    let again = Progress::default();
    assert_eq!(node.runtime.push_image("box", &to, me(), &again).await.unwrap(), digest);
    assert!(again.watch().borrow().iter().all(|step| step.state == State::Present));

    // skopeo reads it, and other forms of it come back: zstd, and archives of ours.
    let layout = format!("oci-archive:{}:x", node.path("skopeo.tar").display());
    registry.skopeo(false, &[&format!("docker://{to}"), &layout], None).unwrap();
    registry
        .skopeo(
            true,
            &[
                "--format",
                "oci",
                "--dest-compress-format",
                "zstd",
                "--dest-compress",
                &layout,
                &format!("docker://{}/zstd/box:1", registry.host()),
            ],
            None,
        )
        .unwrap();
    let zstd = format!("{}/zstd/box:1", registry.host());
    let other = Node::empty().await;
    fs::write(&other.config.registries.settings, registry.settings(None)).unwrap();
    let pulled = other.runtime.pull_image(&zstd, me(), &Progress::default()).await.unwrap();
    assert_eq!(pulled.tags, [zstd]);
    let first = other.runtime.pull_image(&to, me(), &Progress::default()).await.unwrap();
    assert_eq!(first.id, node.runtime.list_images()[0].id);
    for (format, kind) in [(ArchiveFormat::Oci, "oci-archive"), (ArchiveFormat::Docker, "docker-archive")] {
        let path = node.path(kind);
        node.runtime.export_images(vec!["box".to_owned()], format, &path).await.unwrap();
        let name = format!("{kind}/box:1");
        registry.put(&format!("{kind}:{}", path.display()), &name, None).unwrap();
        let back = Node::empty().await;
        assert_eq!(back.runtime.import_image(&path).await.unwrap(), node.runtime.list_images(), "{kind}");
        let error = node.runtime.export_images(vec!["box".to_owned()], format, &path).await.unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
    }
}
