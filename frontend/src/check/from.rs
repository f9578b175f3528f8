//! What FROM is made from: `RedundantTargetPlatform`, `FromPlatformFlagConstDisallowed`,
//! `InvalidDefaultArgInFrom`, `InvalidBaseImagePlatform`.

use rbuild_cache::oci::Platform;

use super::{Checks, Rule};
use crate::Stage;
use crate::expand::Expansion;
use crate::source::Text;

/// The `--platform` `flag` came to `expansion`: says so where that is just `$TARGETPLATFORM`, whose
/// value is `target`.
pub fn redundant_target_platform(
    checks: &mut Checks,
    stage: &Stage,
    flag: &Text,
    expansion: &Expansion,
    target: &str,
) {
    let only_target = expansion.matched.iter().eq(["TARGETPLATFORM"]);
    if only_target && expansion.unmatched.is_empty() && expansion.result == target {
        let flag = flag.as_str();
        let message = format!(
            "Setting platform to predefined {flag} in FROM is redundant as this is the default \
             behavior"
        );
        checks.warn_in(Rule::RedundantTargetPlatform, &stage.origin, message);
    }
}

/// `--platform` came to `expansion`, which is `platform`: says so where no variable took part and
/// the stage's name does not tell the platform either.
pub fn const_platform_disallowed(
    checks: &mut Checks,
    stage: &Stage,
    expansion: &Expansion,
    platform: &Platform,
) {
    let name = stage.from.name.as_ref().map_or("", |name| name.as_str());
    let constant = expansion.matched.is_empty() && expansion.unmatched.is_empty();
    if constant && !name.contains(&platform.os) && !name.contains(&platform.architecture) {
        let message =
            format!("FROM --platform flag should not use constant value {:?}", expansion.result);
        checks.warn_in(Rule::FromPlatformFlagConstDisallowed, &stage.origin, message);
    }
}

/// The base's name is no image's name where no build arguments are given.
pub fn invalid_default_arg(checks: &mut Checks, stage: &Stage) {
    let base = stage.from.base.as_str();
    let message =
        format!("Default value for ARG {base} results in empty or invalid base image name");
    checks.warn(Rule::InvalidDefaultArgInFrom, stage.origin.span, message);
}

/// The base `image` is for `actual`: says so where that is not `expected`, variants apart.
pub fn base_image_platform(
    checks: &mut Checks,
    stage: &Stage,
    image: &str,
    expected: &Platform,
    actual: &Platform,
) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let message = format!(
            "Base image {image} was pulled with platform \"{actual}\", expected \"{expected}\" for \
             current build"
        );
        checks.warn_in(Rule::InvalidBaseImagePlatform, &stage.origin, message);
    }
}
