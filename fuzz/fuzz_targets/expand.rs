//! Any text as a word with variables: expanded, within the limit.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use rbuild_frontend::expand::{LIMIT, Lexer};

fuzz_target!(|text: &str| {
    let env: BTreeMap<String, String> = [("a", "value"), ("b", ""), ("path", "/usr/lib/*.so")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for escape in ['\\', '`'] {
        let lexer = Lexer::new(escape);
        if let Ok(expansion) = lexer.expand(text, &env) {
            assert!(expansion.result.len() <= LIMIT);
        }
        let _ = lexer.words(text, &env);
    }
});
