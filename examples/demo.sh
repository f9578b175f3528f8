#!/usr/bin/env bash
# usage: examples/demo.sh
#
# From a fresh clone to a running image: builds rbuild, makes a Debian base image, builds
# examples/calculator on it twice, and runs what came out.
# Uses a new state folder each time, unless RBUILD_ROOT names one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }

say "what is missing on this machine"
testdata/packages.sh cargo cc python3 busybox mmdebstrap newuidmap pasta
export PATH=$PATH:$HOME/.cargo/bin

say "rbuild itself"
cargo build --release --locked -p rbuild
rbuild=target/release/rbuild
ls -lh "$rbuild" >&2

say "debian:bookworm, from Debian's packages"
bases=${XDG_CACHE_HOME:-$HOME/.cache}/rbuild-bases
testdata/bases/make --only debian "$bases" >&2

scratch=$(mktemp -d)
# Files of an ordinary user's images belong to that user's further ids: they are removed as such.
trap 'rm -rf "$scratch" 2>/dev/null || unshare --map-auto --map-root-user rm -rf "$scratch"' EXIT
export RBUILD_ROOT=${RBUILD_ROOT:-$scratch/root}
out=$scratch/out
base=debian:bookworm=oci-layout://$bases/debian

say "the calculator, with apt and the Go compiler, from nothing"
$rbuild build --build-context "$base" -t calculator:v1 examples/calculator

say "the same again: nothing has changed"
$rbuild build --build-context "$base" -t calculator:v1 examples/calculator

say "the image, and what is in it"
$rbuild images
$rbuild build -q --build-context "$base" -o "type=local,dest=$out" examples/calculator
ls -lh "$out" >&2
"$out/calculator" '6 * (3 + 4)'
