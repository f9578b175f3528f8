//! Why a build did not succeed.
