//! Mounts: propagation, read-only ones with others below, images as volumes, and what hides a container's own files.

use std::{fs, path::Path};

use cri::v1::{self, MountPropagation};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use serde_json::json;
use tonic::Code;

use crate::support::{IMAGE, Layer, Node, busybox_layer, oci_archive, output, security, shell};

/// What is mounted by a test, and taken away whatever happens.
struct Mounted(Vec<std::path::PathBuf>);

impl Mounted {
    fn tmpfs(&mut self, path: &Path) {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        self.0.push(path.to_owned());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

fn bind(host: &Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

/// Makes a sandbox that may have privileged containers.
async fn privileged_sandbox(node: &mut Node, name: &str) -> String {
    let mut config = node.sandbox_config(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    node.run_sandbox(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn later_mounts_are_seen_as_far_as_propagation_goes() {
    let mut node = Node::start().await;
    let sandbox = privileged_sandbox(&mut node, "propagation").await;
    for (mode, inward, outward) in [
        (MountPropagation::PropagationPrivate, false, false),
        (MountPropagation::PropagationHostToContainer, true, false),
        (MountPropagation::PropagationBidirectional, true, true),
    ] {
        let name = format!("{mode:?}").to_lowercase();
        let volume = node.path(&name);
        for dir in ["late", "inner"] {
            fs::create_dir_all(volume.join(dir)).unwrap();
        }
        mount_bind(&volume, &volume).unwrap();
        let mut mounted = Mounted(vec![volume.clone()]);
        let peers = if inward { MountPropagationFlags::SHARED } else { MountPropagationFlags::PRIVATE };
        mount_change(&volume, peers).unwrap();
        let mut config = shell(&name, "sleep 1000");
        security(&mut config).privileged = true;
        config.mounts = vec![v1::Mount { propagation: mode as i32, ..bind(&volume, "/data") }];
        let id = node.run(&sandbox, config).await;
        assert_eq!(node.status(&id).await.mounts[0].propagation(), mode);
        mounted.tmpfs(&volume.join("late"));
        fs::write(volume.join("late/file"), "").unwrap();
        let seen = node.exec_text(&id, "ls /data/late").await;
        assert_eq!(seen == "file\n", inward, "{name}: {seen}");
        node.exec_text(&id, "mount -t tmpfs none /data/inner && touch /data/inner/file").await;
        assert_eq!(volume.join("inner/file").exists(), outward, "{name}");
        if outward {
            mounted.0.push(volume.join("inner"));
        }
    }
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_reaches_the_mounts_below_where_it_is_asked_for() {
    let mut node = Node::start().await;
    let volume = node.path("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    let mut mounted = Mounted(Vec::new());
    mounted.tmpfs(&volume.join("below"));
    let sandbox = node.sandbox("readonly").await;
    let with = |name: &str, change: &dyn Fn(&mut v1::Mount)| {
        let script = "touch /data/top 2>&1; touch /data/below/file 2>&1 && echo written; exit 0";
        let mut config = shell(name, script);
        let mut mount = v1::Mount { readonly: true, ..bind(&volume, "/data") };
        change(&mut mount);
        config.mounts = vec![mount];
        config
    };
    let id = node.run(&sandbox, with("top", &|_| {})).await;
    let said = output(&crate::support::log(&node.ended(&id).await));
    assert_eq!(said, "touch: /data/top: Read-only file system\nwritten\n");
    let id = node.run(&sandbox, with("all", &|mount| mount.recursive_read_only = true)).await;
    let status = node.ended(&id).await;
    let said = output(&crate::support::log(&status));
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    assert!(status.mounts[0].recursive_read_only);
    for change in [
        &|mount: &mut v1::Mount| mount.readonly = false,
        &|mount: &mut v1::Mount| mount.propagation = MountPropagation::PropagationHostToContainer as i32,
        &|mount: &mut v1::Mount| mount.propagation = MountPropagation::PropagationBidirectional as i32,
    ] as [&dyn Fn(&mut v1::Mount); 3]
    {
        let wrong = with("wrong", &|mount| {
            mount.recursive_read_only = true;
            change(mount);
        });
        let error = node.create(&sandbox, wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("\"/data\" is to be read-only recursively"), "{error}");
    }
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_as_a_volume_is_told_by_its_id_and_outlives_its_name() {
    let mut node = Node::start().await;
    let below = Layer::new().file("file", b"old\n", 0o644).file("below", b"below\n", 0o644).done();
    let above = Layer::new().file("file", b"content\n", 0o644).done();
    let both = [(below.clone(), below), (above.clone(), above)];
    let archive = node.path("data.tar");
    fs::write(&archive, oci_archive("docker.io/test/data:1", &both, json!({}))).unwrap();
    let id = node.runtime.import_image(&archive).await.unwrap()[0].id.clone();
    let layers = || fs::read_dir(node.config.root.join("layers")).unwrap().count();
    assert_eq!(layers(), 3);
    let sandbox = node.sandbox("volume").await;
    let data = v1::ImageSpec { image: "docker.io/test/data:1".to_owned(), ..Default::default() };
    let mut config = shell("main", "sleep 1000");
    let volume =
        v1::Mount { container_path: "/data".to_owned(), image: Some(data.clone()), ..Default::default() };
    config.mounts = vec![volume.clone()];
    let container = node.run(&sandbox, config).await;
    let told = node.status(&container).await.mounts[0].image.clone().unwrap();
    assert_eq!((told.image.as_str(), told.image_ref.as_str()), ("docker.io/test/data:1", id.as_str()));
    node.images.remove_image(v1::RemoveImageRequest { image: Some(data) }).await.unwrap();
    let unused = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    node.images.remove_image(v1::RemoveImageRequest { image: Some(unused) }).await.unwrap();
    node.restart().await;
    assert_eq!(node.exec_text(&container, "cat /data/file /data/below").await, "content\nbelow\n");
    let both = v1::Mount { host_path: "/tmp".to_owned(), ..volume };
    let wrong = v1::ContainerConfig { mounts: vec![both], ..shell("both", "") };
    assert!(node.create(&sandbox, wrong).await.is_err());
    node.remove_sandbox(&sandbox).await;
    let layers = fs::read_dir(node.config.root.join("layers")).unwrap().count();
    assert_eq!(layers, 0, "nobody uses them any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_the_images_whatever_is_mounted_over_its_files() {
    let mut node = Node::start().await;
    let etc = node.path("etc");
    fs::create_dir_all(etc.join("group")).unwrap();
    let sandbox = node.sandbox("users").await;
    let mut config = shell("main", "id -u; id -G; echo $HOME; sleep 1000");
    security(&mut config).run_as_username = "web".to_owned();
    config.mounts = vec![bind(&etc, "/etc")];
    let id = node.run(&sandbox, config).await;
    let user = node.status(&id).await.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 90]));
    // the home directory is that of the files which the container sees
    assert_eq!(node.exec_text(&id, "id -u; id -G; echo $HOME").await, "33\n34 90\n/\n");
    fs::write(etc.join("passwd"), "web:x:33:34:web:/srv:/bin/sh\n").unwrap();
    assert_eq!(node.exec_text(&id, "echo $HOME").await, "/srv\n");
    // an image whose files are none
    let busybox = fs::read(testkit::debian::busybox().unwrap()).unwrap();
    let plain = Layer::new()
        .dir("bin/", 0o755)
        .dir("etc/group/", 0o755)
        .file("bin/busybox", &busybox, 0o755)
        .link(tar::EntryType::Symlink, "etc/passwd", "/dev/null")
        .done();
    let archive = node.path("odd.tar");
    fs::write(&archive, oci_archive("docker.io/test/odd:1", &[(plain.clone(), plain)], json!({}))).unwrap();
    node.runtime.import_image(&archive).await.unwrap();
    let mut config = shell("odd", "");
    config.image = Some(v1::ImageSpec { image: "docker.io/test/odd:1".to_owned(), ..Default::default() });
    config.command = ["/bin/busybox", "id", "-G"].map(str::to_owned).into();
    let id = node.run(&sandbox, config).await;
    assert_eq!(output(&crate::support::log(&node.ended(&id).await)), "0\n");
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_confinement_rests_on_is_not_mounted_over() {
    let mut node = Node::start().await;
    let folder = node.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "12.34 56.78\n").unwrap();
    let sandbox = privileged_sandbox(&mut node, "proc").await;
    // by way of a link, too
    let plain = Layer::new().link(tar::EntryType::Symlink, "link", "/proc/1").done();
    let layers = [busybox_layer(), plain].map(|plain| (plain.clone(), plain));
    let archive = node.path("linked.tar");
    fs::write(&archive, oci_archive("docker.io/test/linked:1", &layers, json!({}))).unwrap();
    node.runtime.import_image(&archive).await.unwrap();
    for (name, target) in [("all", "/proc"), ("attributes", "/proc/self/attr"), ("link", "/link/attr")] {
        let mut config = shell(name, "true");
        config.image =
            Some(v1::ImageSpec { image: "docker.io/test/linked:1".to_owned(), ..Default::default() });
        config.mounts = vec![bind(&folder, target)];
        let id = node.create(&sandbox, config).await.unwrap();
        let error = node.start_container(&id).await.unwrap_err();
        assert!(
            error.message().contains("cannot be mounted because it is inside /proc"),
            "{target}: {error}"
        );
    }
    let script = format!("cat /proc/uptime; [ -e /proc/{}/stat ] && echo all", std::process::id());
    let mut config = shell("free", &script);
    security(&mut config).privileged = true;
    config.mounts = vec![bind(Path::new("/proc"), "/proc"), bind(&folder.join("file"), "/proc/uptime")];
    let id = node.run(&sandbox, config).await;
    assert_eq!(output(&crate::support::log(&node.ended(&id).await)), "12.34 56.78\nall\n");
    node.remove_sandbox(&sandbox).await;
}

/// An image that asks for volumes at `/data`, with content, `/given`, and `/new/deep`, where it has nothing.
pub async fn image_with_volumes(node: &Node) -> v1::ImageSpec {
    let mut owned = Layer::header(tar::EntryType::Regular, 0o4750, 8);
    owned.set_uid(33);
    owned.set_gid(34);
    let mut content = Layer::new().dir("data", 0o1770).dir("data/inner", 0o711);
    content.0.append_data(&mut owned, "data/inner/file", &b"content\n"[..]).unwrap();
    let content = content.link(tar::EntryType::Symlink, "data/link", "inner/file").dir("given", 0o755).done();
    let layers = [busybox_layer(), content].map(|plain| (plain.clone(), plain));
    let config = json!({"Volumes": {"/data": {}, "/given": {}, "new/deep": null}});
    let archive = node.path("volumes.tar");
    fs::write(&archive, oci_archive("docker.io/test/volumes:1", &layers, config)).unwrap();
    node.runtime.import_image(&archive).await.unwrap();
    v1::ImageSpec { image: "docker.io/test/volumes:1".to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_image_are_the_containers_own_and_begin_with_its_content() {
    let mut node = Node::start().await;
    let image = image_with_volumes(&node).await;
    let folder = node.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine"), "").unwrap();
    let sandbox = node.sandbox("volumes").await;
    let script = "cat /data/link; stat -c '%a %u %g %Y' /data /data/inner/file; readlink /data/link; ls /given
        touch /data/new /new/deep/new && echo written; touch /sealed 2>/dev/null || echo sealed
        grep -c '^overlay ' /proc/mounts; dd if=/dev/zero of=/data/large bs=64k count=32 2>/dev/null; sleep 1000";
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let mut config = v1::ContainerConfig { image: Some(image.clone()), ..shell(name, script) };
        security(&mut config).readonly_rootfs = true;
        config.mounts = vec![bind(&folder, "/given")];
        ids.push(node.run(&sandbox, config).await);
    }
    for id in &ids {
        let path = node.status(id).await.log_path;
        let said = || fs::read_to_string(&path).unwrap_or_default();
        crate::support::eventually("all was said", || said().lines().count() >= 8).await;
        let said = output(&crate::support::log(&node.status(id).await));
        let expected =
            "content\n1770 0 0 1700000000\n4750 33 34 1700000000\ninner/file\nmine\nwritten\nsealed\n1\n";
        assert_eq!(said, expected);
        // it counts for the container
        let volume = node.config.root.join("containers").join(id).join("volumes/0");
        crate::support::eventually("the file is written", || {
            fs::metadata(volume.join("large")).is_ok_and(|file| file.len() == 2 << 20)
        })
        .await;
        let request = v1::ContainerStatsRequest { container_id: id.clone() };
        let stats = node.cri.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.writable_layer.unwrap().used_bytes.unwrap().value >= 2 << 20);
    }
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}
