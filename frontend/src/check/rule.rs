//! The rules: BuildKit's names, descriptions and pages (`linter/ruleset.go`).

/// What a check looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Stage names in upper case.
    StageNameCasing,
    /// `FROM … as`, `from … AS`.
    FromAsCasing,
    /// An empty line inside a continued instruction.
    NoEmptyContinuation,
    /// `Run` among `RUN`s.
    ConsistentInstructionCasing,
    /// Two stages of one name.
    DuplicateStageName,
    /// A stage called `scratch` or `context`.
    ReservedStageName,
    /// CMD or ENTRYPOINT in shell form.
    JsonArgsRecommended,
    /// MAINTAINER.
    MaintainerDeprecated,
    /// A variable in FROM that no ARG before the first FROM declares.
    UndefinedArgInFrom,
    /// A relative WORKDIR before any absolute one.
    WorkdirRelativePath,
    /// A variable that nothing defines.
    UndefinedVar,
    /// A second CMD, ENTRYPOINT or HEALTHCHECK.
    MultipleInstructionsDisallowed,
    /// `ENV name value`.
    LegacyKeyValueFormat,
    /// A base of another platform than asked for.
    InvalidBaseImagePlatform,
    /// `FROM --platform=$TARGETPLATFORM`.
    RedundantTargetPlatform,
    /// A password in ARG or ENV.
    SecretsUsedInArgOrEnv,
    /// A base name that is wrong unless a build argument is given.
    InvalidDefaultArgInFrom,
    /// `FROM --platform=linux/amd64`.
    FromPlatformFlagConstDisallowed,
    /// COPY of what `.dockerignore` leaves out.
    CopyIgnoredFile,
    /// A comment above a stage or argument that does not describe it.
    InvalidDefinitionDescription,
    /// `EXPOSE 80/TCP`.
    ExposeProtoCasing,
    /// `EXPOSE 127.0.0.1:80:80`.
    ExposeInvalidFormat,
}

impl Rule {
    /// Every rule, in BuildKit's order.
    pub const ALL: [Self; 22] = [
        Self::StageNameCasing,
        Self::FromAsCasing,
        Self::NoEmptyContinuation,
        Self::ConsistentInstructionCasing,
        Self::DuplicateStageName,
        Self::ReservedStageName,
        Self::JsonArgsRecommended,
        Self::MaintainerDeprecated,
        Self::UndefinedArgInFrom,
        Self::WorkdirRelativePath,
        Self::UndefinedVar,
        Self::MultipleInstructionsDisallowed,
        Self::LegacyKeyValueFormat,
        Self::InvalidBaseImagePlatform,
        Self::RedundantTargetPlatform,
        Self::SecretsUsedInArgOrEnv,
        Self::InvalidDefaultArgInFrom,
        Self::FromPlatformFlagConstDisallowed,
        Self::CopyIgnoredFile,
        Self::InvalidDefinitionDescription,
        Self::ExposeProtoCasing,
        Self::ExposeInvalidFormat,
    ];

    /// The name by which it is skipped.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StageNameCasing => "StageNameCasing",
            Self::FromAsCasing => "FromAsCasing",
            Self::NoEmptyContinuation => "NoEmptyContinuation",
            Self::ConsistentInstructionCasing => "ConsistentInstructionCasing",
            Self::DuplicateStageName => "DuplicateStageName",
            Self::ReservedStageName => "ReservedStageName",
            Self::JsonArgsRecommended => "JSONArgsRecommended",
            Self::MaintainerDeprecated => "MaintainerDeprecated",
            Self::UndefinedArgInFrom => "UndefinedArgInFrom",
            Self::WorkdirRelativePath => "WorkdirRelativePath",
            Self::UndefinedVar => "UndefinedVar",
            Self::MultipleInstructionsDisallowed => "MultipleInstructionsDisallowed",
            Self::LegacyKeyValueFormat => "LegacyKeyValueFormat",
            Self::InvalidBaseImagePlatform => "InvalidBaseImagePlatform",
            Self::RedundantTargetPlatform => "RedundantTargetPlatform",
            Self::SecretsUsedInArgOrEnv => "SecretsUsedInArgOrEnv",
            Self::InvalidDefaultArgInFrom => "InvalidDefaultArgInFrom",
            Self::FromPlatformFlagConstDisallowed => "FromPlatformFlagConstDisallowed",
            Self::CopyIgnoredFile => "CopyIgnoredFile",
            Self::InvalidDefinitionDescription => "InvalidDefinitionDescription",
            Self::ExposeProtoCasing => "ExposeProtoCasing",
            Self::ExposeInvalidFormat => "ExposeInvalidFormat",
        }
    }

    /// What it is about, whatever it found.
    pub const fn description(self) -> &'static str {
        match self {
            Self::StageNameCasing => "Stage names should be lowercase",
            Self::FromAsCasing => "The 'as' keyword should match the case of the 'from' keyword",
            Self::NoEmptyContinuation => {
                "Empty continuation lines will become errors in a future release"
            }
            Self::ConsistentInstructionCasing => {
                "All commands within the Dockerfile should use the same casing (either upper or \
                 lower)"
            }
            Self::DuplicateStageName => "Stage names should be unique",
            Self::ReservedStageName => "Reserved words should not be used as stage names",
            Self::JsonArgsRecommended => {
                "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior \
                 related to OS signals"
            }
            Self::MaintainerDeprecated => {
                "The MAINTAINER instruction is deprecated, use a label instead to define an image \
                 author"
            }
            Self::UndefinedArgInFrom => "FROM command must use declared ARGs",
            Self::WorkdirRelativePath => {
                "Relative workdir without an absolute workdir declared within the build can have \
                 unexpected results if the base image changes"
            }
            Self::UndefinedVar => "Variables should be defined before their use",
            Self::MultipleInstructionsDisallowed => {
                "Multiple instructions of the same type should not be used in the same stage"
            }
            Self::LegacyKeyValueFormat => {
                "Legacy key/value format with whitespace separator should not be used"
            }
            Self::InvalidBaseImagePlatform => {
                "Base image platform does not match expected target platform"
            }
            Self::RedundantTargetPlatform => {
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is \
                 the default behavior"
            }
            Self::SecretsUsedInArgOrEnv => {
                "Sensitive data should not be used in the ARG or ENV commands"
            }
            Self::InvalidDefaultArgInFrom => {
                "Default value for global ARG results in an empty or invalid base image name"
            }
            Self::FromPlatformFlagConstDisallowed => {
                "FROM --platform flag should not use a constant value"
            }
            Self::CopyIgnoredFile => "Attempting to Copy file that is excluded by .dockerignore",
            Self::InvalidDefinitionDescription => {
                "Comment for build stage or argument should follow the format: `# <arg/stage \
                 name> <description>`. If this is not intended to be a description comment, add an \
                 empty line or comment between the instruction and the comment."
            }
            Self::ExposeProtoCasing => "Protocol in EXPOSE instruction should be lowercase",
            Self::ExposeInvalidFormat => {
                "IP address and host-port mapping should not be used in EXPOSE instruction. This \
                 will become an error in a future release"
            }
        }
    }

    /// The page that says more, if there is one.
    pub const fn url(self) -> Option<&'static str> {
        macro_rules! page {
            ($name:literal) => {
                Some(concat!("https://docs.docker.com/go/dockerfile/rule/", $name, "/"))
            };
        }
        match self {
            Self::StageNameCasing => page!("stage-name-casing"),
            Self::FromAsCasing => page!("from-as-casing"),
            Self::NoEmptyContinuation => page!("no-empty-continuation"),
            Self::ConsistentInstructionCasing => page!("consistent-instruction-casing"),
            Self::DuplicateStageName => page!("duplicate-stage-name"),
            Self::ReservedStageName => page!("reserved-stage-name"),
            Self::JsonArgsRecommended => page!("json-args-recommended"),
            Self::MaintainerDeprecated => page!("maintainer-deprecated"),
            Self::UndefinedArgInFrom => page!("undefined-arg-in-from"),
            Self::WorkdirRelativePath => page!("workdir-relative-path"),
            Self::UndefinedVar => page!("undefined-var"),
            Self::MultipleInstructionsDisallowed => page!("multiple-instructions-disallowed"),
            Self::LegacyKeyValueFormat => page!("legacy-key-value-format"),
            Self::InvalidBaseImagePlatform => None,
            Self::RedundantTargetPlatform => page!("redundant-target-platform"),
            Self::SecretsUsedInArgOrEnv => page!("secrets-used-in-arg-or-env"),
            Self::InvalidDefaultArgInFrom => page!("invalid-default-arg-in-from"),
            Self::FromPlatformFlagConstDisallowed => page!("from-platform-flag-const-disallowed"),
            Self::CopyIgnoredFile => page!("copy-ignored-file"),
            Self::InvalidDefinitionDescription => page!("invalid-definition-description"),
            Self::ExposeProtoCasing => page!("expose-proto-casing"),
            Self::ExposeInvalidFormat => page!("expose-invalid-format"),
        }
    }

    /// Whether it runs only where it is asked for.
    pub const fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }
}
