use proptest::prelude::*;

use super::*;

fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// `text` with HOME, EMPTY and FILE set; an error as its reason.
fn expanded(text: &str) -> Result<String, String> {
    let env = env(&[("HOME", "/root"), ("EMPTY", ""), ("FILE", "a.b.tar.gz"), ("이름", "값")]);
    match Lexer::new('\\').expand(text, &env) {
        Ok(expansion) => Ok(expansion.result),
        Err(error) => Err(error.reason.to_string()),
    }
}

fn check(text: &str, expected: &str) {
    assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
}

fn check_error(text: &str, expected: &str) {
    assert_eq!(expanded(text).unwrap_err(), expected, "{text}");
}

#[test]
fn names() {
    check("$HOME", "/root");
    check("${HOME}", "/root");
    check("a$HOME/b", "a/root/b");
    check("$HOMER", "");
    check("$", "$");
    check("$.", "$.");
    check("$1x", "x");
    check("$10x", "x");
    check("$$x", "x");
    check("$이름", "값");
    check("${-}", "");
    check("${@:-word}", "word");
}

#[test]
fn quotes_and_escapes() {
    check("'$HOME'", "$HOME");
    check("\"$HOME\"", "/root");
    check("\"'$HOME'\"", "'/root'");
    check("\\$HOME", "$HOME");
    check("\\\\$HOME", "\\/root");
    check("\"\\$HOME \\t \\\"\"", "$HOME \\t \"");
    check("'a\\'", "a\\");
    check("a\\tb", "atb");
    check("a\\", "a");
    check("he\\'llo", "he'llo");
    check_error("he'llo", "unexpected end of statement while looking for matching single-quote");
    check_error("\"abc", "unexpected end of statement while looking for matching double-quote");
    check_error("\"abc\\\"", "unexpected end of statement while looking for matching double-quote");
}

#[test]
fn defaults_and_alternatives() {
    check("${NONE:-word}", "word");
    check("${EMPTY:-word}", "word");
    check("${EMPTY-word}", "");
    check("${NONE-word}", "word");
    check("${HOME:-word}", "/root");
    check("${HOME:+word}", "word");
    check("${EMPTY:+word}", "");
    check("${EMPTY+word}", "word");
    check("${NONE+word}", "");
    check("${NONE:-$HOME}", "/root");
    check("${NONE:-${NONE:-${HOME}}}", "/root");
    check("${NONE:-\\$HOME}", "$HOME");
    check("${NONE:-\"a b\"}", "a b");
    check("\"${NONE:-'a'}\"", "a");
    check("${NONE:-{}", "{");
    check("${NONE:-a}}", "a}");
}

#[test]
fn required_variables() {
    check("${HOME:?no home}", "/root");
    check("${EMPTY?no}", "");
    check_error("${NONE:?no home}", "NONE: no home");
    check_error("${NONE?}", "NONE: is not allowed to be unset");
    check_error("${EMPTY:?}", "EMPTY: is not allowed to be empty");
}

#[test]
fn patterns() {
    check("${FILE#*.}", "b.tar.gz");
    check("${FILE##*.}", "gz");
    check("${FILE%.*}", "a.b.tar");
    check("${FILE%%.*}", "a");
    check("${FILE#x}", "a.b.tar.gz");
    check("${FILE%.???}", "a.b.tar.gz");
    check("${FILE%.??}", "a.b.tar");
    check("${FILE#a.b}", ".tar.gz");
    check("${FILE/./-}", "a-b.tar.gz");
    check("${FILE//./-}", "a-b-tar-gz");
    check("${FILE//?/[\\$0]}", "[\\a][\\.][\\b][\\.][\\t][\\a][\\r][\\.][\\g][\\z]");
    check("${EMPTY//*/x}", "x");
    check("${HOME///-}", "-/-r-o-o-t-");
    check("${FILE/.*/}", "a");
    check("${FILE//\\//x}", "a.b.tar.gz");
    check("${HOME//\\//_}", "_root");
    check("${NONE#a}", "");
    check("${FILE/#a/b}", "a.b.tar.gz");
    check("${FILE/$NONE/x}", "xa.b.tar.gz");
    check_error("${FILE#\\a}", "invalid pattern (\\a) in substitution: invalid escape '\\a'");
    check_error("${FILE:#a}", "unsupported modifier (:#) in substitution");
}

#[test]
fn wrong_braces() {
    check_error("${}", "syntax error: bad substitution");
    check_error("${:-a}", "syntax error: bad substitution");
    check_error("${{a}", "syntax error: bad substitution");
    check_error("${", "syntax error: missing '}'");
    check_error("${HOME", "syntax error: missing '}'");
    check_error("${HOME:-a", "syntax error: missing '}'");
    check_error("${HOME:-\"a}", "syntax error: missing '}'");
    check_error("${HOME/a}", "syntax error: missing '/' in ${}");
    check_error("${HOME/a/b", "syntax error: missing '}'");
    check_error("${NONE:-${HOME/a}", "syntax error: missing '}'");
    check_error("${HOME:=a}", "unsupported modifier (:=) in substitution");
    check_error("${HOME.}", "unsupported modifier (.) in substitution");
    check_error("${HOME:-${}}", "syntax error: bad substitution");
}

#[test]
fn words_are_split_where_nothing_protects_blanks() {
    let check = |text: &str, expected: &[&str]| {
        let env = env(&[("space", "abc  def"), ("leading", "  ab c")]);
        assert_eq!(Lexer::new('\\').words(text, &env).unwrap(), expected, "{text}");
    };
    check("hello there", &["hello", "there"]);
    check("hello\" there  \"", &["hello there  "]);
    check("hello\\ there", &["hello there"]);
    check("hello${space}bye", &["helloabc", "defbye"]);
    check("hello\"${space}\"bye", &["helloabc  defbye"]);
    check("hello${leading}def", &["hello", "ab", "cdef"]);
    check("a <<  EOF", &["a", "<<  EOF"]);
    check("", &[]);
    // BuildKit loses what stands before a nested word.
    check("80${none:-81}", &["81"]);
}

#[test]
fn what_is_shown_keeps_what_the_shell_will_see() {
    let check = |text: &str, expected: &str| {
        let expansion = Lexer::for_display('\\').expand(text, &env(&[("HOME", "/root")])).unwrap();
        assert_eq!(expansion.result, expected, "{text}");
    };
    check("echo \"$HOME\" '$HOME' $NONE", "echo \"/root\" '$HOME' $NONE");
    check("${NONE} ${NONE:-a} ${NONE/a/b} ${NONE##a}", "${NONE} ${NONE:-a} ${NONE/a/b} ${NONE##a}");
}

#[test]
fn quotes_mean_nothing_in_heredocs() {
    let expansion =
        Lexer::for_heredocs().expand("it's \"$HOME\" \\$HOME", &env(&[("HOME", "/root")]));
    assert_eq!(expansion.unwrap().result, "it's \"/root\" $HOME");
}

#[test]
fn variables_that_were_asked_for_are_told_apart() {
    let expansion =
        Lexer::new('\\').expand("$A ${B:-$C} ${D+x}", &env(&[("A", ""), ("D", "1")])).unwrap();
    assert_eq!(Vec::from_iter(&expansion.matched), ["A", "D"]);
    assert_eq!(Vec::from_iter(&expansion.unmatched), ["B", "C"]);
}

#[test]
fn nesting_costs_no_stack_and_little_time() {
    let depth = 50_000;
    let text = "${a:-x".repeat(depth) + &"}".repeat(depth);
    let start = std::time::Instant::now();
    let length = Lexer::new('\\').expand(&text, &NoEnv).map(|expansion| expansion.result.len());
    assert!(length == Ok(depth));
    assert!(start.elapsed().as_secs() < 5);
    let open = "\"${a:-".repeat(depth);
    assert_eq!(expanded(&open).unwrap_err(), "syntax error: missing '}'");
}

#[test]
fn what_a_text_may_expand_to_is_bounded() {
    let env = env(&[("A", &"a".repeat(1 << 20))]);
    let check = |text: &str, expected| {
        let error = Lexer::new('\\').expand(text, &env).map_err(|error| error.reason).err();
        assert_eq!(error, expected);
    };
    check(&"$A".repeat(16), None);
    check(&"$A".repeat(17), Some(ExpandReason::TooLong));
    check(&"${A#*}".repeat(17), Some(ExpandReason::TooLong));
    check("${A//a/aaaaaaaaaaaaaaaaaaaaaaaaaa}", Some(ExpandReason::TooLong));
}

proptest! {
    #[test]
    fn any_text_is_expanded_or_refused(text in any::<String>()) {
        let _ = expanded(&text);
    }

    #[test]
    fn any_text_of_special_characters_is_expanded_or_refused(
        text in r#"[$ {}:\-+?#%/'"<\\a*A]{0,40}"#
    ) {
        let _ = expanded(&text);
        let _ = Lexer::for_display('`').expand(&text, &NoEnv);
        let _ = Lexer::new('\\').words(&text, &NoEnv);
        let _ = Lexer::for_heredocs().expand(&text, &NoEnv);
    }

    #[test]
    fn what_is_in_single_quotes_stays(text in "[^']*") {
        prop_assert_eq!(expanded(&format!("'{text}'")), Ok(text));
    }
}
