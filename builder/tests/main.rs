//! End-to-end tests: the built `rbuild` on real input, with the registries, builders and runtimes
//! that its users have.
//!
//! `rbuild`, `base`, `registry`, `token_server`, `faulty_registry`, `git_repository`, `podman`,
//! `docker`, `containerd`, `archive`, `figure` and `soak` are the hands; every other module holds
//! tests. A test that lacks something it needs (root, a program, the network) says so on stderr and
//! passes, unless `RBUILD_TESTS=complete` is set, as it is in CI.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests stand outside of the program, and read the environment as its users do"
)]

mod archive;
mod base;
mod containerd;
mod docker;
mod extremes;
mod faulty_registry;
mod figure;
mod git_repository;
mod hostile_tar;
mod needs;
mod podman;
mod promise;
mod rbuild;
mod registry;
mod soak;
mod token_server;
mod user;

mod archives;
mod bad_input;
mod bases;
mod caches;
mod caching;
mod calculator;
mod commands;
mod confidential;
mod containers;
mod crash;
mod damage;
mod devices;
mod django;
mod documents;
mod engines;
mod full_disk;
mod hostile_archives;
mod hostile_contexts;
mod hostile_images;
mod hostile_layers;
mod http_files;
mod interrupts;
mod language;
mod linked_copies;
mod long_chains;
mod merging;
mod misses;
mod networks;
mod ordinary_user;
mod outputs;
mod packing;
mod parallel;
mod planted;
mod platforms;
mod power_loss;
mod progress;
mod provenance;
mod pruning;
mod referrers;
mod registries;
mod registry_auth;
mod registry_bad_input;
mod registry_client;
mod registry_faults;
mod registry_matrix;
mod registry_peers;
mod registry_streams;
mod remote_cache;
mod reproducible;
mod resources;
mod sandbox;
mod slim;
mod slim_musl;
mod slim_platforms;
mod slim_probes;
mod slim_runtimes;
mod surroundings;
mod tar_readers;
mod users;
mod write_order;
