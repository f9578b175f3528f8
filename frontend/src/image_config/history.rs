//! An image's history, and how it is made to agree with the layers that were built.
//!
//! Follows `normalizeLayersAndHistory` and `patchImageConfig` in BuildKit's
//! `exporter/containerimage/writer.go`.

use rbuild_cache::digest::DiffId;
use serde::{Deserialize, Serialize};

use super::{ImageConfig, RootFs, Timestamp, null_is_default};

/// One step of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// What was done: `RUN /bin/sh -c make # buildkit`.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    /// Who did it.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// Which frontend did it.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    /// It made no layer.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
}

/// A layer of a built image, as far as its config hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedLayer {
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// When its step ran.
    pub created: Option<Timestamp>,
    /// What the step was called: its history text where the config has none.
    pub description: String,
}

impl ImageConfig {
    /// Fills in what is known only when all layers are built: their digests, the times of history
    /// entries, the time of the image.
    ///
    /// `base` is the config of the image that this one was made from, whose times stay as they are;
    /// `epoch` is `SOURCE_DATE_EPOCH`, which no other time is later than.
    pub fn finish(
        &mut self,
        layers: &[ExportedLayer],
        base: Option<&ImageConfig>,
        epoch: Option<Timestamp>,
    ) {
        let diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        self.rootfs = RootFs { diff_ids, ..RootFs::default() };
        self.agree_with(layers);
        self.date(layers);
        if let Some(epoch) = epoch {
            self.clamp(base, epoch);
        }
        if self.created.is_none() {
            self.created = self.history.iter().rev().find_map(|entry| entry.created);
        }
    }

    /// Makes history name as many layers as there are.
    fn agree_with(&mut self, layers: &[ExportedLayer]) {
        let mut left = layers.len();
        for entry in self.history.iter_mut().filter(|entry| !entry.empty_layer) {
            entry.empty_layer = left == 0;
            left = left.saturating_sub(1);
        }
        for layer in &layers[layers.len() - left..] {
            self.history.push(History {
                created: layer.created,
                created_by: layer.description.clone(),
                comment: "buildkit.exporter.image.v0".into(),
                ..History::default()
            });
        }
    }

    /// Gives each entry a time: that of its layer, otherwise of the layer before, and before the
    /// first new layer that of this one.
    fn date(&mut self, layers: &[ExportedLayer]) {
        let with_layer = self.history.iter_mut().filter(|entry| !entry.empty_layer);
        for (entry, layer) in with_layer.zip(layers) {
            entry.created = entry.created.or(layer.created);
        }
        let mut first = None;
        let mut undated = false;
        for entry in &self.history {
            if entry.created.is_some() {
                first = entry.created;
                if undated {
                    break;
                }
            }
            undated |= entry.created.is_none();
        }
        let mut current = first;
        let mut undated = false;
        for entry in &mut self.history {
            if entry.created.is_none() {
                undated = true;
                entry.created = current;
            } else if undated {
                current = entry.created;
            }
        }
    }

    /// Lets nothing that is not the base's be later than `epoch`.
    fn clamp(&mut self, base: Option<&ImageConfig>, epoch: Timestamp) {
        let base = base.map_or(&[][..], |base| &base.history);
        let inherited = self.history.iter().zip(base).take_while(|(a, b)| a == b).count();
        for entry in &mut self.history[inherited..] {
            entry.created = Some(entry.created.map_or(epoch, |created| created.min(epoch)));
        }
        self.created = self.created.map(|created| created.min(epoch));
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::digest::Digest;

    use super::*;

    fn layer(seconds: i64) -> ExportedLayer {
        ExportedLayer {
            diff_id: DiffId(Digest::of(seconds.to_string())),
            created: Some(Timestamp::from_seconds(seconds)),
            description: format!("step {seconds}"),
        }
    }

    fn entry(created: Option<i64>, empty_layer: bool) -> History {
        let created = created.map(Timestamp::from_seconds);
        History { created, empty_layer, created_by: "x".into(), ..History::default() }
    }

    #[track_caller]
    fn check(history: &[History], layers: &[ExportedLayer], epoch: Option<i64>, times: &[i64]) {
        let base = ImageConfig { history: history[..1].to_vec(), ..ImageConfig::default() };
        let mut config = ImageConfig { history: history.to_vec(), ..ImageConfig::default() };
        config.finish(layers, Some(&base), epoch.map(Timestamp::from_seconds));
        let found: Vec<i64> =
            config.history.iter().map(|entry| entry.created.unwrap().seconds()).collect();
        assert_eq!(found, times);
        assert_eq!(config.created.map(Timestamp::seconds), times.last().copied());
        assert_eq!(config.rootfs.diff_ids.len(), layers.len());
        let named = config.history.iter().filter(|entry| !entry.empty_layer).count();
        assert_eq!(named, layers.len());
    }

    #[test]
    fn entries_without_a_layer_take_the_time_of_the_layer_before() {
        let base = entry(Some(5), false);
        let (new, empty) = (entry(None, false), entry(None, true));
        let history = [base.clone(), empty.clone(), new.clone(), empty.clone(), new, empty];
        check(&history, &[layer(1), layer(7), layer(9)], None, &[5, 7, 7, 7, 9, 9]);
        check(&[base, entry(None, true)], &[layer(1)], None, &[5, 5]);
    }

    #[test]
    fn history_and_layers_are_made_to_agree() {
        let base = entry(Some(5), false);
        check(&[base.clone(), entry(None, false)], &[layer(1)], None, &[5, 5]);
        check(&[base], &[layer(1), layer(8)], None, &[5, 8]);
    }

    #[test]
    fn nothing_new_is_later_than_the_epoch() {
        let base = entry(Some(50), false);
        let history = [base, entry(None, false), entry(Some(3), true)];
        check(&history, &[layer(1), layer(90)], Some(10), &[50, 10, 3]);
    }
}
