//! Any bytes as an ignore file: read, and matched against a few paths.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rbuild_cache::pattern::PatternMatcher;
use rbuild_frontend::ignore;

fuzz_target!(|bytes: &[u8]| {
    let Ok(patterns) = ignore::read(bytes) else { return };
    let matcher = PatternMatcher::new(&patterns).expect("what was read is patterns");
    for path in ["a", "a/b", "a/b/c.txt", "src/main.rs", ".git/config", "ä/[x]"] {
        matcher.matches_or_parent_matches(path);
        matcher.covers(path);
        matcher.may_match_below(path);
    }
});
