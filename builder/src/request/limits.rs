//! `--limit NAME=N`: how much is taken in from images, archives, contexts and servers.

use rbuild_cache::limits::{Limit, Limits, Unit};

use super::{UsageError, resources, step};

const FLAG: &str = "--limit";

/// Reads all `--limit`; the last one of a name holds.
pub(crate) fn limits(given: &[String]) -> Result<Limits, UsageError> {
    given.iter().try_fold(Limits::default(), |limits, text| {
        let (limit, value) = limit(text)?;
        Ok(limits.with(limit, value))
    })
}

fn limit(text: &str) -> Result<(Limit, u64), UsageError> {
    let wrong = |reason: String| UsageError::value(FLAG, text, reason);
    let (name, value) = text.split_once('=').ok_or_else(|| wrong("expected NAME=N".into()))?;
    let limit: Limit = name.parse().map_err(|_| {
        let names: Vec<_> = Limit::ALL.iter().map(|limit| limit.name()).collect();
        wrong(format!("`{name}` is none of {}", names.join(", ")))
    })?;
    let value = match limit.unit() {
        Unit::Bytes => step::bytes(FLAG, value).map_err(|_| wrong("expected a size".into()))?,
        Unit::Seconds => {
            resources::timeout(value).map_err(|_| wrong("expected a time".into()))?.as_secs().max(1)
        }
        Unit::Files | Unit::Layers | Unit::Folders => {
            value.parse().map_err(|_| wrong("expected a number".into()))?
        }
    };
    match limit.most() {
        Some(most) if value > most => Err(wrong(format!("it can be at most {most}"))),
        _ => Ok((limit, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_in_its_unit() {
        let check = |text: &str, limit, expected| {
            assert_eq!(super::limit(text), Ok((limit, expected)), "{text}");
        };
        check("layer-size=10g", Limit::LayerSize, 10 << 30);
        check("layer-files=1000", Limit::LayerFiles, 1000);
        check("layers=5", Limit::Layers, 5);
        check("document-size=1m", Limit::DocumentSize, 1 << 20);
        check("download-time=5m", Limit::DownloadTime, 300);
        let last = limits(&["layers=5".to_owned(), "layers=6".to_owned()]).unwrap();
        assert_eq!(last.of(Limit::Layers), 6);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |text: &str, expected: &str| {
            let error = super::limit(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("layers", "expected NAME=N");
        check("size=1", "none of layer-size, layer-files");
        check("layers=1g", "expected a number");
        check("layer-size=x", "expected a size");
        check("document-size=1g", "at most 8388608");
    }
}
