//! A machine for tests: a fresh Debian kernel with nothing but the binary, on a wire with others.
//!
//! It is a guest of [`vm`](crate::vm) that changes its root: to a file system in memory with the binary, the libraries that it is
//! linked with (the released one has none), and an archive of images for `navarch image import`. There is no shell, no `/etc`,
//! no service manager.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::netns::NetNs;
use crate::vm::{Guest, Vm};
use crate::{eventually_within, image, run};

/// Machines share two processors with each other, and are emulated.
const PATIENCE: Duration = Duration::from_secs(600);

/// A running machine; it ends with this handle.
pub struct Machine(Guest);

impl Machine {
    /// Boots a machine with the address 192.0.2.`number` on the wire of `host`, where `binary` runs with `arguments` and has
    /// the image `busybox:test`.
    pub fn start(host: &NetNs, number: u8, binary: &Path, arguments: &str) -> anyhow::Result<Self> {
        let archive = image::busybox()?;
        let mut files =
            vec![(binary.to_owned(), "/bin/navarch".to_owned()), (archive, "/busybox.tar".to_owned())];
        for library in libraries(binary)? {
            files.push((library.clone().into(), library));
        }
        let mut script = String::from(
            "set -e; export PATH=/run/busybox-bin; /run/busybox mkdir -p $PATH; /run/busybox --install -s $PATH\n\
             root=/run/machine; mkdir $root; mount -t tmpfs -o size=100%,mode=755 tmpfs $root; cd $root\n\
             mkdir proc sys dev tmp run root old; cp /run/busybox run/busybox\n\
             for system in proc sys dev; do mount -o rbind /$system $system; done\n",
        );
        for (from, to) in files {
            let from = from.to_str().context("a path that is no text")?;
            script.push_str(&format!(
                "mkdir -p $(dirname .{to}); touch .{to}; mount -o bind $(realpath '{from}') .{to}\n"
            ));
        }
        script.push_str(&format!(
            "pivot_root . old; cd /; export PATH=/bin HOME=/root; unset TMPDIR\n\
             b=/run/busybox; $b umount -l /old; $b rmdir /old\n\
             navarch {arguments} & node=$!\n\
             until navarch image import /busybox.tar >/tmp/imported 2>&1; do $b sleep 1; done\n\
             echo has its image\n\
             if [ -f /var/lib/navarch/admin.kubeconfig ]; then\n\
             echo \"kubeconfig: $($b base64 -w 0 /var/lib/navarch/admin.kubeconfig)\"; echo \"token: $(navarch token)\"; fi\n\
             wait $node",
        ));
        let mut command = Command::new("/run/busybox");
        command.args(["sh", "-c", &script]);
        let vm = Vm { memory: 2048, wire: Some((host.clone(), number)), ..Vm::default() };
        Ok(Self(vm.start(&command)?))
    }

    /// Waits until it has said `what: …` on a line of its own; the rest of the line.
    pub fn said(&self, what: &str) -> String {
        let begin = format!("{what}: ");
        eventually_within(PATIENCE, &format!("the machine says {what}"), || {
            let output = self.0.output();
            let lines = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let said = lines.filter_map(|line| line.strip_prefix(&begin)).next();
            said.map(|rest| rest.trim().to_owned()).ok_or_else(|| self.0.logs())
        })
    }

    /// All that is known of it, for a person.
    pub fn logs(&self) -> String {
        self.0.logs()
    }
}

/// The shared libraries of a program, and what loads them.
fn libraries(binary: &Path) -> anyhow::Result<Vec<String>> {
    // says of a static program, with an error, that there are none
    let listed = run(Command::new("ldd").arg(binary)).unwrap_or_default();
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
