# What containers may not do to the node although they are root in their own view of it. `cargo xtask apparmor` compiles
# this file into navarch-default.bin beside it.
abi <abi/3.0>,

profile navarch-default flags=(attach_disconnected, mediate_deleted) {
  network,
  capability,
  file,
  umount,
  deny mount,

  # processes of the node and of the runtime may signal those of containers, and those each other
  signal (receive) peer=unconfined,
  signal (send, receive) peer=navarch-default,
  ptrace (trace, read, tracedby, readby) peer=navarch-default,

  # files right below /proc, and all below it but those of processes and of /proc/sys/kernel/shm*
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/{sysrq-trigger,mem,kmem,kcore} rwklx,

  # the devices and settings of the node; control groups stay
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
