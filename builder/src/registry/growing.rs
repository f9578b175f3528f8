//! Pushing layers while they are compressed.
//!
//! Whoever compresses a layer writes it to the content store, and what is there is sent from there:
//! a slow network does not hold the compressing up, and nothing waits in memory. This is only a head
//! start. A layer that did not get through is pushed like any other afterwards, with all patience;
//! so nothing here is tried twice, and no failure is the user's matter.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::ImageRef;
use rbuild_cache::store::growing::{End, Growing};
use rbuild_solver::progress::Task;
use tokio::sync::mpsc::UnboundedReceiver;

use super::clients::Sent;
use super::error::Cause;
use super::push::Pusher;
use super::sink::Gauge;
use super::upload::Uploads;

impl Pusher {
    /// Sends `blobs` to the repository of `image` while they grow, until no more come. [`Self::push`]
    /// knows which of them arrived.
    ///
    /// Blobs that stay small are left to `push`, which asks first whether they are there.
    pub async fn push_growing(
        &self,
        image: &ImageRef,
        mut blobs: UnboundedReceiver<Growing>,
        task: &Task,
    ) {
        let endpoint = match self.transport().hosts().and_then(|hosts| hosts.push_endpoint(image)) {
            Ok(endpoint) => endpoint,
            // `push` says it.
            Err(error) => return tracing::debug!(%error, "no head start"),
        };
        let uploads = Uploads { transport: self.transport(), endpoint: &endpoint };
        let at_once = self.transport().settings().transfers.max(1);
        let (mut running, mut number, mut more) = (FuturesUnordered::new(), 0, true);
        while more || !running.is_empty() {
            tokio::select! {
                blob = blobs.recv(), if more && running.len() < at_once => match blob {
                    None => more = false,
                    Some(blob) => {
                        number += 1;
                        running.push(send(uploads, blob, number, task));
                    }
                },
                Some(outcome) = running.next(), if !running.is_empty() => match outcome {
                    Ok(Some((digest, sent))) => self.note(&endpoint, digest, sent),
                    Ok(None) => {}
                    Err(cause) => tracing::debug!(%cause, "a layer is sent again from its start"),
                },
            }
        }
    }
}

/// Sends one blob. The digest of what arrived, and whether it had to be sent for that.
async fn send(
    uploads: Uploads<'_>,
    blob: Growing,
    number: usize,
    task: &Task,
) -> Result<Option<(Digest, bool)>, Cause> {
    // As much must be left to send that leaving off is worth a question.
    let large = uploads.transport.settings().range;
    if !blocking(&blob, move |blob| blob.outgrows(large)).await? {
        return Ok(None);
    }
    let mut patience = uploads.transport.patience();
    let address = uploads.start(&mut patience).await?;
    let gauge = Gauge::of(task, format!("new layer {number}"), None);
    let sent = Arc::new(Sent::default());
    let (source, told) = (blob.clone(), gauge.clone());
    let streaming = uploads.stream(
        address.clone(),
        Arc::new(move || Ok(Box::new(source.leaving()))),
        Arc::new(move |bytes| told.at(bytes)),
        &sent,
    );
    let there = async {
        let End::Whole(digest, size) = blocking(&blob, Growing::wait).await? else {
            return Ok(None);
        };
        let is_worth_asking = size.saturating_sub(sent.bytes()) >= large;
        let is_there = is_worth_asking && uploads.has(&digest).await?;
        Ok::<_, Cause>(is_there.then_some((digest, size)))
    };
    tokio::pin!(streaming, there);
    let next = tokio::select! {
        next = &mut streaming => next?,
        found = &mut there => match found? {
            None => streaming.await?,
            Some((digest, size)) => {
                gauge.done(size);
                uploads.cancel(address).await;
                return Ok(Some((digest, false)));
            }
        },
    };
    let End::Whole(digest, size) = blocking(&blob, Growing::wait).await? else {
        return Ok(None);
    };
    uploads.complete(next, &digest).await?;
    gauge.done(size);
    Ok(Some((digest, true)))
}

/// Asks `blob` on a thread that may wait.
async fn blocking<T: Send + 'static>(
    blob: &Growing,
    ask: impl FnOnce(&Growing) -> T + Send + 'static,
) -> Result<T, Cause> {
    let blob = blob.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&blob)).await;
    Ok(answer.map_err(std::io::Error::other)?)
}
