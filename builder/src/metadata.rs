//! `--metadata-file` and `--iidfile`: what was built, for programs. Keys and forms are buildx's
//! (`docs/reference/buildx_build.md`, "metadata-file"; `commands/build.go`, `getImageID`).
//!
//! `buildx.build.ref` is left out, since it names a record in a builder's history and rbuild has no
//! builder; `buildx.build.provenance` comes with provenance.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};

use crate::Outcome;
use crate::error::BuildError;
use crate::file_place::FilePlace;
use crate::request::BuildRequest;

/// Writes the files that `request` names; they appear whole or not at all.
pub(crate) fn write(request: &BuildRequest, built: &Outcome) -> Result<(), BuildError> {
    if let Some(path) = &request.metadata_file {
        let text = format!("{:#}", Value::Object(metadata(built)));
        write_file(path, text.as_bytes())?;
    }
    if let (Some(path), Some(id)) = (&request.image_id_file, built.image_id()) {
        write_file(path, id.to_string().as_bytes())?;
    }
    Ok(())
}

/// The metadata, keys in alphabetical order.
fn metadata(built: &Outcome) -> Map<String, Value> {
    let mut metadata = built.metadata.clone();
    if let Some(config) = built.config {
        metadata.insert("containerimage.config.digest".into(), config.to_string().into());
    }
    if let Some(image) = &built.image {
        let descriptor = serde_json::to_value(image).expect("a descriptor has string keys only");
        metadata.insert("containerimage.descriptor".into(), descriptor);
        metadata.insert("containerimage.digest".into(), image.digest.to_string().into());
    }
    if !built.names.is_empty() {
        let names: Vec<String> = built.names.iter().map(ToString::to_string).collect();
        metadata.insert("image.name".into(), names.join(",").into());
    }
    metadata.into_iter().collect()
}

/// Writes `bytes` into the file `path`, which appears whole or not at all; or to a device.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let write = || -> std::io::Result<()> {
        let path = match FilePlace::of(path)? {
            FilePlace::File(path) => path,
            FilePlace::Device(mut device) => return device.write_all(bytes),
        };
        let mut file = tempfile::NamedTempFile::new_in(FilePlace::folder(&path))?;
        file.write_all(bytes)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.persist(&path)?;
        Ok(())
    };
    write().map_err(|error| {
        let message = format!("cannot write `{}`: {error}", path.display());
        BuildError::fault(&std::io::Error::new(error.kind(), message))
    })
}

#[cfg(test)]
mod tests {
    use rbuild_cache::digest::Digest;
    use rbuild_cache::oci::{Descriptor, MediaType};

    use super::*;

    #[test]
    fn keys_are_buildxs() {
        let image = Descriptor::new(MediaType::OciManifest, Digest::of("manifest"), 8);
        let built = Outcome {
            image: Some(image),
            config: Some(Digest::of("config")),
            names: vec!["me/app:1".parse().unwrap(), "app".parse().unwrap()],
            ..Outcome::default()
        };
        insta::assert_snapshot!(format!("{:#}", Value::Object(metadata(&built))), @r#"
        {
          "containerimage.config.digest": "sha256:b79606fb3afea5bd1609ed40b622142f1c98125abcfe89a76a661b0e8e343910",
          "containerimage.descriptor": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
            "size": 8
          },
          "containerimage.digest": "sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
          "image.name": "docker.io/me/app:1,docker.io/library/app:latest"
        }
        "#);
        assert_eq!(built.image_id(), Some(Digest::of("config")));
        assert_eq!(metadata(&Outcome::default()), Map::new());
    }

    #[test]
    fn files_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"two");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_file(Path::new("/no/such/folder/id"), b"").unwrap_err();
        assert!(error.to_string().starts_with("cannot write `/no/such/folder/id`"), "{error}");
    }
}
