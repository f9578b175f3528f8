//! `SecretsUsedInArgOrEnv`: names that sound like passwords.

use super::{Checks, Rule};
use crate::syntax::Origin;

/// A name with one of these as a word is a secret's …
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];

/// … unless one of these is a word of it too.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// `keyword` (ARG or ENV) sets `name`: says so where that sounds secret.
pub fn secrets_in_arg_or_env(checks: &mut Checks, origin: &Origin, keyword: &str, name: &str) {
    if sounds_secret(name) {
        let message =
            format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})");
        checks.warn_in(Rule::SecretsUsedInArgOrEnv, origin, message);
    }
}

fn sounds_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    let has_word_of = |words: &[&str]| name.split('_').any(|word| words.contains(&word));
    has_word_of(&SECRET) && !has_word_of(&NO_SECRET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_name_sound_secret() {
        let check = |name, expected| assert_eq!(sounds_secret(name), expected, "{name}");
        check("api_key", true);
        check("DATABASE_PASSWORD", true);
        check("secret_MESSAGE", true);
        check("AUTH", true);
        check("author", false);
        check("monkey", false);
        check("PUBLIC_KEY", false);
        check("SECRET_FILE", false);
        check("a-token", false);
    }
}
