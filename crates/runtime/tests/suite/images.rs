//! Images: layers on layers, and archives that mean harm.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use cri::v1;
use runtime::image::unpack::Caps;
use serde_json::json;
use tar::EntryType;

use crate::support::{Layer, Node, gzip, oci_archive, sha256};

/// Imports an image made of `layers` (lowest first); the unpacked top layer or the error.
async fn import(node: &Node, layers: Vec<Vec<u8>>) -> Result<Vec<PathBuf>, String> {
    let layers: Vec<_> = layers.into_iter().map(|plain| (plain.clone(), plain)).collect();
    let path = node.path("image.tar");
    fs::write(&path, oci_archive("test/image:1", &layers, json!({}))).unwrap();
    let mut chain = String::new();
    let mut dirs = Vec::new();
    for (_, plain) in &layers {
        let diff = sha256(plain);
        chain = if chain.is_empty() { diff } else { sha256(format!("{chain} {diff}").as_bytes()) };
        dirs.push(node.config.root.join("layers").join(&chain[7..]));
    }
    node.runtime.import_image(&path).await.map_err(|error| error.to_string())?;
    Ok(dirs)
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_links_and_whiteouts_survive_unpacking() {
    let node = Node::empty().await;
    let mut setuid = Layer::header(EntryType::Regular, 0o4755, 3);
    setuid.set_uid(12);
    setuid.set_gid(34);
    let mut lower = Layer::new().dir("tmp", 0o1777).dir("dir", 0o700).file("dir/old", b"old", 0o600);
    lower.0.append_data(&mut setuid, "dir/setuid", &b"abc"[..]).unwrap();
    let lower = lower
        .link(EntryType::Symlink, "lib", "usr/lib")
        .link(EntryType::Link, "dir/hard", "dir/setuid")
        .dir("usr/lib", 0o755)
        .done();
    let mut upper = Layer::new().file("dir/.wh.old", b"", 0o644).file("tmp/new", b"n", 0o644);
    upper = upper.file("lib/through-link", b"x", 0o644).dir("hidden", 0o755).file(
        "hidden/.wh..wh..opq",
        b"",
        0o644,
    );
    let mut header = Layer::header(EntryType::Regular, 0o755, 1);
    upper
        .0
        .append_pax_extensions([
            ("SCHILY.xattr.user.note", b"kept".as_slice()),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice()),
        ])
        .unwrap();
    upper.0.append_data(&mut header, "with-xattr", &b"y"[..]).unwrap();
    let upper = upper.link(EntryType::Link, "linked-from-below", "dir/setuid").done();
    let dirs = import(&node, vec![lower, upper]).await.unwrap();
    let (lower, upper) = (&dirs[0], &dirs[1]);
    let setuid = fs::metadata(lower.join("dir/setuid")).unwrap();
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid(), setuid.nlink()), (0o4755, 12, 34, 2));
    assert_eq!(setuid.mtime(), 1_700_000_000);
    assert_eq!(fs::metadata(lower.join("tmp")).unwrap().mtime(), 1_700_000_000);
    let whiteout = fs::symlink_metadata(upper.join("dir/old")).unwrap();
    assert_eq!((whiteout.mode() & 0o170000, whiteout.rdev()), (0o020000, 0));
    // Folders that the upper layer only implies look like the lower ones.
    assert_eq!(fs::metadata(upper.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(upper.join("dir")).unwrap().mode() & 0o7777, 0o700);
    // A link of a lower layer is followed, not replaced.
    assert!(upper.join("usr/lib/through-link").exists());
    assert!(fs::symlink_metadata(upper.join("lib")).is_err());
    let xattr = |path: &str, name: &str| {
        let mut buffer = Vec::with_capacity(64);
        rustix::fs::lgetxattr(upper.join(path), name, rustix::buffer::spare_capacity(&mut buffer))
            .map(|_| buffer)
    };
    assert_eq!(xattr("hidden", "trusted.overlay.opaque").unwrap(), b"y");
    // a file system that keeps no such attributes does without
    let flags = rustix::fs::XattrFlags::empty();
    let is_kept = rustix::fs::lsetxattr(upper.join("with-xattr"), "user.other", b"", flags).is_ok();
    assert_eq!(xattr("with-xattr", "user.note").ok(), is_kept.then(|| b"kept".to_vec()));
    assert!(xattr("with-xattr", "trusted.overlay.redirect").is_err());
    assert_eq!(fs::read(upper.join("linked-from-below")).unwrap(), b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_write_nothing_outside() {
    let node = Node::empty().await;
    let victim = node.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "untouched").unwrap();
    let outside = victim.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(12), &outside[1..]);
    let cases: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().raw(EntryType::Regular, &format!("{up}/a"), "", b"evil")),
        ("absolute", Layer::new().raw(EntryType::Regular, &format!("{outside}/b"), "", b"evil")),
        (
            "through an absolute link",
            Layer::new().link(EntryType::Symlink, "l", outside).raw(EntryType::Regular, "l/c", "", b"evil"),
        ),
        (
            "through a relative link",
            Layer::new().link(EntryType::Symlink, "m", &up).raw(EntryType::Regular, "m/d", "", b"evil"),
        ),
        (
            "over a link",
            Layer::new().link(EntryType::Symlink, "n", &format!("{outside}/file")).raw(
                EntryType::Regular,
                "n",
                "",
                b"evil",
            ),
        ),
        ("hard link out", Layer::new().raw(EntryType::Link, "o", &format!("{outside}/file"), b"")),
        ("hard link out by dots", Layer::new().raw(EntryType::Link, "p", &format!("{up}/file"), b"")),
        (
            "hard link through a link",
            Layer::new().link(EntryType::Symlink, "q", outside).raw(EntryType::Link, "r", "q/file", b""),
        ),
        (
            "link loop",
            Layer::new().link(EntryType::Symlink, "s", "s").raw(EntryType::Regular, "s/t", "", b"evil"),
        ),
        ("whiteout of the parent", Layer::new().raw(EntryType::Regular, "u/.wh...", "", b"")),
        (
            "whiteout through a link",
            Layer::new().link(EntryType::Symlink, "v", outside).raw(
                EntryType::Regular,
                "v/.wh.file",
                "",
                b"",
            ),
        ),
        (
            "opaque through a link",
            Layer::new().link(EntryType::Symlink, "w", outside).raw(
                EntryType::Regular,
                "w/.wh..wh..opq",
                "",
                b"",
            ),
        ),
        (
            "magic link",
            Layer::new().link(EntryType::Symlink, "x", "/proc/self/cwd").raw(
                EntryType::Regular,
                "x/y",
                "",
                b"evil",
            ),
        ),
    ];
    for (name, layer) in cases {
        let result = import(&node, vec![layer.done()]).await;
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "untouched", "{name}");
        assert_eq!(fs::metadata(victim.join("file")).unwrap().nlink(), 1, "{name}");
        let left: Vec<_> = fs::read_dir(&victim).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["file"], "{name}: {result:?}");
    }
}

/// OCI image spec, "Whiteouts": they hide what lower layers have, never what their own layer has.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_took_the_place_of_another_shows_nothing_of_it() {
    let mut node = Node::empty().await;
    let mut lower = Layer::new();
    for dir in ["before", "after", "below"] {
        lower = lower.dir(dir, 0o755).file(&format!("{dir}/old"), b"secret", 0o644);
    }
    let upper = Layer::new()
        .file(".wh.before", b"", 0o644)
        .dir("before", 0o750)
        .file("before/new", b"new", 0o644)
        .dir("after", 0o750)
        .file("after/new", b"new", 0o644)
        .file(".wh.after", b"", 0o644)
        .file(".wh.below", b"", 0o644)
        .file("below/new", b"new", 0o644)
        .file(".wh.file", b"", 0o644)
        .file("file", b"kept", 0o644);
    let layers = vec![crate::support::busybox_layer(), lower.done(), upper.done()];
    import(&node, layers).await.unwrap();
    let sandbox = node.sandbox("replaced").await;
    let mut config = crate::support::shell("main", "ls /before /after /below; cat /file; stat -c %a /before");
    config.image = Some(v1::ImageSpec { image: "test/image:1".to_owned(), ..Default::default() });
    let id = node.run(&sandbox, config).await;
    let said = crate::support::output(&crate::support::log(&node.ended(&id).await));
    assert_eq!(said, "/after:\nnew\n\n/before:\nnew\n\n/below:\nnew\nkept750\n");
    node.remove_sandbox(&sandbox).await;
}

#[test]
fn a_layer_of_endless_folders_is_refused_before_they_fill_the_memory() {
    let caps = Caps { bytes: 1 << 20, entries: 1000, paths: 4096 };
    let folders = |count: usize| {
        let mut layer = Layer::new();
        for _ in 0..count {
            layer = layer.dir(&"f/".repeat(50), 0o755);
        }
        let target = tempfile::tempdir().unwrap();
        runtime::image::unpack::unpack(layer.done().as_slice(), target.path(), &[], caps)
    };
    folders(30).unwrap();
    assert!(folders(90).unwrap_err().to_string().contains("too many folders"));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_lies_about_itself_is_refused() {
    let node = Node::empty().await;
    let plain = Layer::new().file("a", b"a", 0o644).done();
    let other = Layer::new().file("b", b"b", 0o644).done();
    // The configuration promises another layer.
    let archive = oci_archive("test/lie:1", &[(gzip(&plain), other.clone())], json!({}));
    let path = node.path("lie.tar");
    fs::write(&path, archive).unwrap();
    let error = node.runtime.import_image(&path).await.unwrap_err().to_string();
    assert!(error.contains("unpacks to"), "{error}");
    // A blob was changed; nothing with its digest is there any more.
    let mut archive = oci_archive("test/bad:1", &[(plain.clone(), plain.clone())], json!({}));
    let at = archive.windows(plain.len()).position(|window| window == plain).unwrap();
    archive[at + 512] = b'z';
    fs::write(&path, archive).unwrap();
    let error = node.runtime.import_image(&path).await.unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
    fs::write(&path, b"not an archive at all, but long enough to be looked at".repeat(20)).unwrap();
    assert!(node.runtime.import_image(&path).await.is_err());
    assert!(node.runtime.list_images().is_empty());
    assert_eq!(fs::read_dir(node.config.root.join("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.config.root.join("staging")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_save_archives_are_understood() {
    let node = Node::empty().await;
    let plain = Layer::new().file("hello", b"hello", 0o644).done();
    let config = serde_json::to_vec(&json!({
        "os": "linux",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "config": {"Env": null, "Labels": {"a": "b"}, "Entrypoint": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&plain), sha256(&plain)]},
    }))
    .unwrap();
    let manifest =
        json!([{"Config": "cfg.json", "RepoTags": ["demo:2"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    let archive = Layer::new()
        .file("1/layer.tar", &plain, 0o644)
        .link(EntryType::Symlink, "2/layer.tar", "../1/layer.tar")
        .file("cfg.json", &config, 0o644)
        .file("manifest.json", manifest.to_string().as_bytes(), 0o644)
        .done();
    let path = node.path("save.tar.gz");
    fs::write(&path, gzip(&archive)).unwrap();
    let summary = node.runtime.import_image(&path).await.unwrap();
    assert_eq!(summary[0].tags, ["docker.io/library/demo:2"]);
    assert_eq!(summary[0].id, sha256(&config));
    // Again is the same.
    assert_eq!(node.runtime.import_image(&path).await.unwrap(), summary);
    assert_eq!(node.runtime.list_images().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_many_machines_gives_what_this_one_can_run() {
    let node = Node::empty().await;
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let plain = Layer::new().file("hello", b"hello", 0o644).done();
    let mut archive = Layer::new().file("blob", &plain, 0o644);
    let blob = |bytes: &[u8]| json!({"mediaType": "", "digest": sha256(bytes), "size": bytes.len()});
    let mut manifests = Vec::new();
    let all =
        [("unknown", "unknown", ""), ("linux", "s390x", ""), ("linux", here, "v9"), ("linux", here, "")];
    for (os, architecture, variant) in all {
        let platform = json!({"os": os, "architecture": architecture, "variant": variant});
        let config = json!({
            "os": os,
            "architecture": architecture,
            "config": {"Labels": {"variant": variant}},
            "rootfs": {"type": "layers", "diff_ids": [sha256(&plain)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "config": blob(&config), "layers": [blob(&plain)]})
            .to_string()
            .into_bytes();
        archive = archive.file(&sha256(&config), &config, 0o644).file(&sha256(&manifest), &manifest, 0o644);
        let mut entry = blob(&manifest);
        entry["platform"] = platform;
        manifests.push(entry);
    }
    // one whose content is elsewhere
    let mut absent = blob(b"absent");
    absent["platform"] = json!({"os": "linux", "architecture": here});
    manifests.insert(0, absent);
    let inner = json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes();
    let mut entry = blob(&inner);
    entry["annotations"] = json!({"io.containerd.image.name": "docker.io/test/many:1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    let archive = archive.file("inner", &inner, 0o644).file("index.json", &index, 0o644).done();
    let path = node.path("many.tar");
    fs::write(&path, archive).unwrap();
    node.runtime.import_image(&path).await.unwrap();
    let image = node.runtime.inspect_image("docker.io/test/many:1").unwrap();
    assert_eq!(image.config.labels["variant"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_one_image_are_told_together_and_go_together() {
    let mut node = Node::empty().await;
    let layer = |text: &[u8]| {
        let plain = Layer::new().file("file", text, 0o644).done();
        vec![(plain.clone(), plain)]
    };
    let path = node.path("image.tar");
    let take = async |node: &Node, name: &str, text: &[u8], user: &str| {
        fs::write(&path, oci_archive(name, &layer(text), json!({"User": user}))).unwrap();
        node.runtime.import_image(&path).await.unwrap()[0].id.clone()
    };
    let names = ["docker.io/test/a:1", "docker.io/test/a:2", "docker.io/other/b:1"];
    let mut ids = BTreeSet::new();
    for name in names {
        ids.insert(take(&node, name, b"same", "").await);
    }
    assert_eq!(ids.len(), 1);
    let spec = |name: &str| Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
    let status = async |node: &mut Node, name: &str| {
        let request = v1::ImageStatusRequest { image: spec(name), verbose: false };
        node.images.image_status(request).await.unwrap().into_inner().image
    };
    let image = status(&mut node, names[0]).await.unwrap();
    let mut tags = image.repo_tags.clone();
    tags.sort();
    assert_eq!(tags, ["docker.io/other/b:1", "docker.io/test/a:1", "docker.io/test/a:2"]);
    for name in image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]) {
        assert_eq!(status(&mut node, name).await.as_ref(), Some(&image), "{name}");
    }
    // a tag that goes to another image
    let other = take(&node, names[1], b"other", "").await;
    assert_eq!(status(&mut node, names[1]).await.unwrap().id, other);
    assert_eq!(status(&mut node, names[0]).await.unwrap().repo_tags.len(), 2);
    // CRI: removing an image by one of its tags removes all of them; many may ask at once
    let remove = v1::RemoveImageRequest { image: spec(names[2]) };
    let calls = (0..5).map(|_| {
        let (mut images, remove) = (node.images.clone(), remove.clone());
        async move { images.remove_image(remove).await }
    });
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    for name in [names[0], names[2], &image.id] {
        assert!(status(&mut node, name).await.is_none(), "{name}");
    }
    assert!(status(&mut node, &other).await.is_some());

    for (name, user, uid, username) in [
        ("docker.io/test/u:1", "1002", Some(1002), ""),
        ("docker.io/test/u:2", "www-data", None, "www-data"),
        ("docker.io/test/u:3", "1003:users", Some(1003), ""),
        ("docker.io/test/u:4", "web:100", None, "web"),
        ("docker.io/test/u:5", "", Some(0), ""),
    ] {
        take(&node, name, b"user", user).await;
        let image = status(&mut node, name).await.unwrap();
        assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, username), "{user}");
        assert!(image.size > 0);
    }
    let request = v1::ImageStatusRequest { image: spec("docker.io/test/u:1"), verbose: true };
    let info = node.images.image_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["config"]["User"], "1002");
    assert_eq!(info["layers"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_images_take_of_the_disk_grows_and_shrinks() {
    let mut node = Node::empty().await;
    let used = async |node: &mut Node| {
        let info = node.images.image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
        let one = &info.image_filesystems[0];
        assert!(one.timestamp > 0 && Path::new(&one.fs_id.as_ref().unwrap().mountpoint).exists());
        assert_eq!(info.container_filesystems.len(), 1);
        (one.used_bytes.unwrap().value, one.inodes_used.unwrap().value)
    };
    let (bytes, inodes) = used(&mut node).await;
    let layer =
        import(&node, vec![Layer::new().file("file", &[7; 1 << 20], 0o644).done()]).await.unwrap().remove(0);
    let (more, more_inodes) = used(&mut node).await;
    assert!(more >= bytes + (2 << 20) && more_inodes > inodes, "{bytes} {more}");
    // a layer is measured once, however often is asked
    fs::write(layer.join("nobodys"), [7; 1 << 20]).unwrap();
    assert_eq!(used(&mut node).await, (more, more_inodes));
    let image = Some(v1::ImageSpec { image: "test/image:1".to_owned(), ..Default::default() });
    node.images.remove_image(v1::RemoveImageRequest { image }).await.unwrap();
    let (less, _) = used(&mut node).await;
    assert!(less < more - (2 << 20), "{more} {less}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_pipes_and_long_names_of_a_layer_are_made() {
    let node = Node::empty().await;
    let mut layer = Layer::new().dir("dev", 0o755);
    for (name, kind, numbers) in [
        ("dev/null", EntryType::Char, (1, 3)),
        ("dev/loop7", EntryType::Block, (7, 7)),
        ("pipe", EntryType::Fifo, (0, 0)),
    ] {
        let mut header = Layer::header(kind, 0o640, 0);
        header.set_device_major(numbers.0).unwrap();
        header.set_device_minor(numbers.1).unwrap();
        header.set_uid(5);
        layer.0.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    let long = format!("{}/{}", ["folder-of-a-long-name"; 20].join("/"), "n".repeat(255));
    let layer = layer.file(&long, b"deep", 0o644).link(EntryType::Symlink, "link", &long).done();
    let dir = import(&node, vec![layer]).await.unwrap().remove(0);
    for (name, kind, device) in [
        ("dev/null", 0o020000, rustix::fs::makedev(1, 3)),
        ("dev/loop7", 0o060000, rustix::fs::makedev(7, 7)),
        ("pipe", 0o010000, 0),
    ] {
        let metadata = fs::symlink_metadata(dir.join(name)).unwrap();
        assert_eq!((metadata.mode(), metadata.rdev(), metadata.uid()), (kind | 0o640, device, 5), "{name}");
    }
    assert_eq!(fs::read(dir.join(&long)).unwrap(), b"deep");
    assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new(&long));
}
