# Recipes for working on rbuild; `just` lists them.

[private]
default:
    @just --list --unsorted

# From a fresh clone to a running image
demo:
    examples/demo.sh

# All tests, after installing what they need
test *ARGS:
    testdata/test.sh {{ARGS}}

# The end-to-end tests, or those whose names contain ARGS
e2e *ARGS:
    cargo test -p rbuild --test end_to_end -- {{ARGS}}

# The loops of faults (kills, damage, full disks, builds during prunes), ROUNDS of each
soak ROUNDS="200":
    RBUILD_ROUNDS={{ROUNDS}} cargo test -p rbuild --test end_to_end -- --test-threads 1 \
        crash:: damage:: documents:: full_disk:: merging:: parallel:: power_loss:: \
        surroundings:: write_order::

# What CI runs
ci:
    .ci/run

# Base images for examples and tests, as OCI layouts
bases *ARGS:
    testdata/bases/make {{ARGS}}

fmt:
    cargo fmt --all

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, advisories and duplicate versions (needs cargo-deny)
deny:
    cargo deny check

# The figures, side by side with buildah
bench *ARGS:
    bench/run {{ARGS}}

# How long Dockerfiles take to read (criterion)
bench-dockerfile *ARGS:
    cargo bench --manifest-path bench/Cargo.toml {{ARGS}}

# The cases of the conformance kit in folder KIT
conformance KIT *ARGS:
    bench/conformance {{KIT}} {{ARGS}}
