#!/usr/bin/env bash
# usage: testdata/test.sh [ARGUMENTS OF cargo test]
#
# Installs what the tests need and runs them all. As another user than root, or with some program
# missing that apt does not have, tests say what they lack and are passed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
testdata/packages.sh cargo cc python3 git openssl busybox mmdebstrap docker-registry skopeo umoci \
  podman dockerd containerd ctr curl runc setpriv newuidmap pasta slirp4netns ssh-agent strace faketime mksquashfs
export PATH=$PATH:$HOME/.cargo/bin
exec cargo test --workspace --no-fail-fast "$@"
