#!/usr/bin/env bash
# usage: testdata/kernel.sh [TEST...]
#
# Runs the tests of the sandbox (or those whose names contain TEST) on a kernel other than this
# machine's: Debian's, in an emulator, with control groups of version 2 only; as root, as a user with
# ranges of ids, and as one without. Takes some minutes, needs root and the network, and installs
# what it lacks. KERNEL names another package (linux-image-cloud-amd64), KERNEL_DEB a file.
# MACHINE=aarch64 compiles them for that processor and emulates it, which takes longer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
machine=${MACHINE:-$(uname -m)}
case $machine in
  x86_64) debian=amd64 console=ttyS0 hardware="-cpu max,arch-capabilities=off" ;;
  aarch64) debian=arm64 console=ttyAMA0 hardware="-machine virt -cpu cortex-a72" ;;
  *) echo "no kernel is known for $machine" >&2; exit 2 ;;
esac
target=$machine-unknown-linux-gnu
compiler=cc foreign=()
[ "$machine" = "$(uname -m)" ] || compiler=$machine-linux-gnu-gcc foreign=(--target "$target")
testdata/packages.sh cargo cc $compiler mmdebstrap "qemu-system-$machine" mkfs.ext4 modprobe cpio
export PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin
[ $compiler = cc ] || rustup -q target add "$target"
export "CARGO_TARGET_$(echo "${target^^}" | tr - _)_LINKER=$compiler"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Unpacks packages of the other machine, and what they depend on, into a folder.
unpack() { # FOLDER PACKAGE...
  mmdebstrap -q --mode=root --variant=extract --architectures=$debian --include="${*:2}" bookworm "$1"
}

# The kernel, and those of its modules that are not built in.
if [ -z "${KERNEL_DEB:-}" ]; then
  unpack "$scratch/kernel" "${KERNEL:-linux-image-cloud-$debian}"
else
  dpkg-deb -x "$KERNEL_DEB" "$scratch/kernel"
fi
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

# The machine's disk: the tests, and the programs that they use.
disk=$scratch/disk
unpack "$disk" libc6 libgcc-s1 busybox-static uidmap util-linux coreutils passt slirp4netns
cp "$disk/bin/busybox" "$scratch/initrd/bin/busybox"
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

tests=$(cargo test -p rbuild-solver --test sandbox --no-run "${foreign[@]}" --message-format=json |
  sed -n 's/.*"executable":"\([^"]*sandbox-[^"]*\)".*/\1/p' | tail -1)
mkdir -p "$disk"/{proc,sys,dev,tmp,run,root,home/ann,opt}
chmod 1777 "$disk/tmp"
cp "$tests" "$disk/opt/sandbox"
ln -s busybox "$disk/bin/sh"
printf 'root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/ann:/bin/sh\n' >"$disk/etc/passwd"
printf 'root:x:0:\nann:x:1000:\nbob:x:1001:\n' >"$disk/etc/group"
echo ann:100000:65536 | tee "$disk/etc/subuid" >"$disk/etc/subgid"
cat >"$disk/init" <<INIT
#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
busybox mount -t proc proc /proc
busybox --install -s # but for the names that are there
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
ip link set lo up
echo "kernel \$(uname -r), control groups \$(cat /sys/fs/cgroup/cgroup.controllers)"
run() { echo "== \$*"; "\$@" /opt/sandbox $*; echo "exit code \$?"; }
run /usr/bin/env RBUILD_EMULATED=1
run /usr/bin/setpriv --reuid=1000 --regid=1000 --init-groups --reset-env /usr/bin/env RBUILD_EMULATED=1
run /usr/bin/setpriv --reuid=1001 --regid=1001 --init-groups --reset-env /usr/bin/env RBUILD_EMULATED=1
poweroff -f
INIT
chmod +x "$disk/init" "$disk/opt/sandbox"
truncate -s $(($(du -sm "$disk" | cut -f1) + 600))M "$scratch/disk.img"
mkfs.ext4 -q -d "$disk" "$scratch/disk.img"
kernel=$(echo "$scratch"/kernel/boot/vmlinuz-*)
accelerator=tcg
[ "${ACCELERATOR:-}" ] && accelerator=$ACCELERATOR
# $hardware is words.
# shellcheck disable=SC2086
timeout 2400 "qemu-system-$machine" -accel $accelerator $hardware -m 1536 -smp 2 -nographic -no-reboot \
  -kernel "$kernel" -initrd "$scratch/initrd.gz" \
  -append "console=$console panic=-1 no_timer_check cgroup_no_v1=all" \
  -drive "file=$scratch/disk.img,if=virtio,format=raw" | tr -d '\r' | tee "$scratch/log"
# All three, and none of them with an error or for nothing.
[ "$(grep -c '^exit code 0$' "$scratch/log")" = 3 ] && ! grep 'tests are skipped' "$scratch/log"
