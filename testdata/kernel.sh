#!/usr/bin/env bash
# usage: testdata/kernel.sh [TEST...]
#
# Runs the tests of the sandbox (or those whose names contain TEST) on a kernel other than this
# machine's: Debian's, in an emulator, with control groups of version 2 only; as root, as a user with
# ranges of ids, and as one without. Takes some minutes, needs root and the network, and installs
# what it lacks. KERNEL names another package (linux-image-cloud-amd64), KERNEL_DEB a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
testdata/packages.sh cargo cc busybox newuidmap setpriv qemu-system-x86_64 mkfs.ext4 modprobe cpio pasta slirp4netns
export PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The kernel, and those of its modules that are not built in.
if [ -z "${KERNEL_DEB:-}" ]; then
  meta=${KERNEL:-linux-image-cloud-amd64}
  # What a name without a version depends on is the newest.
  package=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -1)
  (cd "$scratch" && apt-get download -q "${package:-$meta}" >&2)
  KERNEL_DEB=$(echo "$scratch"/*.deb)
fi
dpkg-deb -x "$KERNEL_DEB" "$scratch/kernel"
version=$(ls "$scratch/kernel/lib/modules" 2>/dev/null || ls "$scratch/kernel/usr/lib/modules")
modules=$(dirname "$(find "$scratch/kernel" -type d -path "*/modules/$version")")
depmod -b "${modules%/lib/modules}" "$version"
mkdir -p "$scratch"/initrd/{bin,modules,proc,dev,root}
load=()
for name in virtio_pci virtio_blk ext4 overlay tun veth; do
  while read -r verb file _; do
    [ "$verb" = insmod ] || continue
    plain=$(basename "${file%.xz}")
    case "$file" in *.xz) xz -dc "$file" >"$scratch/initrd/modules/$plain" ;; *) cp "$file" "$scratch/initrd/modules/" ;; esac
    load+=("$plain")
  done < <(modprobe -d "${modules%/lib/modules}" -S "$version" --show-depends "$name" 2>/dev/null || true)
done
busybox=$(command -v busybox)
cp "$busybox" "$scratch/initrd/bin/busybox"
cat >"$scratch/initrd/init" <<INIT
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t proc proc /proc
\$b mount -t devtmpfs dev /dev
for m in ${load[*]}; do \$b insmod /modules/\$m 2>/dev/null; done
\$b mount -t ext4 /dev/vda /root || \$b poweroff -f
\$b umount /proc
\$b mount --move /dev /root/dev
exec \$b switch_root /root /init
INIT
chmod +x "$scratch/initrd/init"
(cd "$scratch/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$scratch/initrd.gz"

# The machine's disk: the tests, what they are linked to, and little else.
tests=$(cargo test -p rbuild-solver --test sandbox --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*sandbox-[^"]*\)".*/\1/p' | tail -1)
disk=$scratch/disk
mkdir -p "$disk"/{bin,usr/bin,usr/sbin,etc,proc,sys,dev,tmp,run,root,home/ann}
chmod 1777 "$disk/tmp"
put() {
  for file in "$1" $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
    mkdir -p "$disk$(dirname "$file")"
    cp -L "$file" "$disk$file"
  done
}
for program in newuidmap newgidmap setpriv env pasta slirp4netns; do put "$(readlink -f "$(command -v $program)")"; done
chmod 4755 "$disk"/usr/bin/new?idmap
put "$tests"
cp "$tests" "$disk/sandbox"
cp "$busybox" "$disk/usr/bin/busybox"
for name in $("$busybox" --list); do ln -sf /usr/bin/busybox "$disk/bin/$name"; done
rm -f "$disk"/bin/{setpriv,env}
printf 'root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/ann:/bin/sh\n' >"$disk/etc/passwd"
printf 'root:x:0:\nann:x:1000:\nbob:x:1001:\n' >"$disk/etc/group"
echo ann:100000:65536 | tee "$disk/etc/subuid" >"$disk/etc/subgid"
cat >"$disk/init" <<INIT
#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
ip link set lo up
echo "kernel \$(uname -r), control groups \$(cat /sys/fs/cgroup/cgroup.controllers)"
run() { echo "== \$*"; "\$@" /sandbox $*; echo "exit code \$?"; }
run /usr/bin/env
run /usr/bin/setpriv --reuid=1000 --regid=1000 --init-groups --reset-env
run /usr/bin/setpriv --reuid=1001 --regid=1001 --init-groups --reset-env
poweroff -f
INIT
chmod +x "$disk/init" "$disk/sandbox"
truncate -s $(($(du -sm "$disk" | cut -f1) + 600))M "$scratch/disk.img"
mkfs.ext4 -q -d "$disk" "$scratch/disk.img"
kernel=$(echo "$scratch"/kernel/boot/vmlinuz-*)
accelerator=tcg
[ "${ACCELERATOR:-}" ] && accelerator=$ACCELERATOR
timeout 1500 qemu-system-x86_64 -accel $accelerator -cpu max,arch-capabilities=off -m 1536 -smp 2 -nographic -no-reboot \
  -kernel "$kernel" -initrd "$scratch/initrd.gz" \
  -append "console=ttyS0 panic=-1 no_timer_check cgroup_no_v1=all" \
  -drive "file=$scratch/disk.img,if=virtio,format=raw" | tr -d '\r' | tee "$scratch/log"
# All three, and none of them with an error.
[ "$(grep -c '^exit code 0$' "$scratch/log")" = 3 ]
