//! What a Dockerfile says and what it comes to, as snapshots over `testdata/`, and how it compares.

#[cfg(test)]
mod cpu_time;
#[cfg(test)]
mod figure;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod lower;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod other_parsers;
#[cfg(test)]
mod parse;
#[cfg(test)]
mod show;
