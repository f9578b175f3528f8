//! What a Dockerfile comes to, as snapshots over `testdata/`.

#[cfg(test)]
mod lower;
