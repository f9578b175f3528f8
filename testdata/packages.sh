#!/usr/bin/env bash
# usage: testdata/packages.sh PROGRAM...
#
# Installs what is missing of these programs, from Debian's packages, and Rust from rustup.
# docker.io is there for `--load`, whose tests start its `dockerd` with a root of its own.
# Does nothing where everything is there; asks for root (or sudo) only to install.
set -euo pipefail

declare -A package=(
  [cc]="gcc libc6-dev" [curl]="curl ca-certificates" [python3]=python3 [git]=git [openssl]=openssl
  [busybox]=busybox-static [mmdebstrap]=mmdebstrap [docker-registry]=docker-registry
  [skopeo]=skopeo [umoci]=umoci [podman]=podman [dockerd]=docker.io [containerd]=containerd [ctr]=containerd [runc]=runc [buildah]=buildah [setpriv]=util-linux
  [newuidmap]=uidmap [pasta]=passt [slirp4netns]=slirp4netns [ssh-agent]=openssh-client [strace]=strace
  [qemu-system-x86_64]="qemu-system-x86 seabios ipxe-qemu" [mkfs.ext4]=e2fsprogs [modprobe]=kmod [cpio]=cpio
  [qemu-system-aarch64]="qemu-system-arm ipxe-qemu" [aarch64-linux-gnu-gcc]="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
  [faketime]=faketime [mksquashfs]=squashfs-tools
)

has() { PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin command -v "$1" >/dev/null; }

missing=()
for program in "$@"; do
  if [ "$program" = cargo ]; then
    has cargo || has curl || missing+=("${package[curl]}")
  elif ! has "$program"; then
    missing+=("${package[$program]:?no package is known for $program}")
  fi
done

if [ ${#missing[@]} -gt 0 ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  echo "installing: ${missing[*]}" >&2
  # apt's own lines go to stderr: what calls this may print results.
  {
    $sudo apt-get update -q
    # Words of the list are packages.
    # shellcheck disable=SC2068
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends ${missing[@]}
  } >&2
fi

case " $* " in *" cargo "*)
  has cargo || curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -qy --profile default >&2
esac
