//! What a Dockerfile comes to, as snapshots over `testdata/`.

mod lower;
