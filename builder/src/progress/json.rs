//! `--progress=rawjson`: what happens as JSON, one object a line, in the shape of BuildKit's
//! `client.SolveStatus` that buildx writes, so that what reads the one reads the other.
//!
//! A vertex is named by a digest as there; it is that of the vertex's name and number, since
//! rbuild's cache keys are not known before a vertex starts. Why a step was not found in the cache
//! is in `missed`, which only rbuild writes.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_cache::digest::Digest;
use rbuild_solver::progress::{Event, EventKind, TaskId};
use serde_json::{Value, json};

use super::{End, Renderer};

/// Writes an object per event.
pub(super) struct RawJson {
    out: Box<dyn Write + Send>,
    begun: SystemTime,
    vertices: HashMap<TaskId, Vertex>,
}

struct Vertex {
    digest: Digest,
    name: String,
    started: String,
    parts: HashMap<String, String>,
}

impl RawJson {
    /// Writes to `out`; the build began at `begun`.
    pub(super) fn new(out: Box<dyn Write + Send>, begun: SystemTime) -> Self {
        Self { out, begun, vertices: HashMap::new() }
    }

    fn time(&self, at: Duration) -> String {
        let time = jiff::Timestamp::try_from(self.begun + at);
        time.map(|time| format!("{time:.9}")).unwrap_or_default()
    }

    fn write(&mut self, kind: &str, value: &Value) {
        // A log whose reader is gone is no reason to stop a build.
        let _ = writeln!(self.out, "{}", json!({ kind: [value] }));
    }

    fn ended(&mut self, task: TaskId, at: Duration, more: &[(&str, Value)]) {
        let completed = self.time(at);
        let Some(vertex) = self.vertices.get(&task) else { return };
        let mut object = vertex.object();
        object["completed"] = completed.into();
        for (key, value) in more {
            object[*key] = value.clone();
        }
        self.write("vertexes", &object);
    }
}

impl Vertex {
    fn object(&self) -> Value {
        json!({ "digest": self.digest, "name": self.name, "started": self.started })
    }
}

impl Renderer for RawJson {
    fn event(&mut self, event: &Event) {
        let (task, now) = (event.task, self.time(event.at));
        let digest = self.vertices.get(&task).map(|vertex| vertex.digest);
        match &event.kind {
            EventKind::Started { name } => {
                let digest = Digest::of(format!("{task:?} {name}"));
                let (name, parts) = (name.clone(), HashMap::new());
                let vertex = Vertex { digest, name, started: now, parts };
                let object = vertex.object();
                self.vertices.insert(task, vertex);
                self.write("vertexes", &object);
            }
            EventKind::Output { stream, bytes } => {
                let data = BASE64_STANDARD.encode(bytes);
                let log =
                    json!({ "vertex": digest, "stream": stream, "data": data, "timestamp": now });
                self.write("logs", &log);
            }
            EventKind::Progress { part, current, total, done } => {
                let started = match self.vertices.get_mut(&task) {
                    Some(vertex) => vertex.parts.entry(part.clone()).or_insert(now.clone()).clone(),
                    None => now.clone(),
                };
                let mut status = json!({
                    "id": part, "vertex": digest, "current": current, "total": total.unwrap_or(0),
                    "timestamp": now, "started": started,
                });
                if *done {
                    status["completed"] = now.into();
                }
                self.write("statuses", &status);
            }
            EventKind::Warning { message } => {
                let short = BASE64_STANDARD.encode(message);
                self.write("warnings", &json!({ "vertex": digest, "level": 1, "short": short }));
            }
            EventKind::Miss { reason } => {
                if let Some(vertex) = self.vertices.get(&task) {
                    let mut object = vertex.object();
                    object["missed"] = reason.as_str().into();
                    self.write("vertexes", &object);
                }
            }
            EventKind::Result { what, digest: result } => {
                let id = format!("{what} {result}");
                let status = json!({
                    "id": id, "vertex": digest, "current": 0, "total": 0,
                    "timestamp": now, "started": now, "completed": now,
                });
                self.write("statuses", &status);
            }
            EventKind::Cached => self.ended(task, event.at, &[("cached", true.into())]),
            EventKind::Finished => self.ended(task, event.at, &[]),
            EventKind::Failed { message } => {
                self.ended(task, event.at, &[("error", message.as_str().into())]);
            }
            EventKind::Canceled => {
                self.ended(task, event.at, &[("error", "context canceled".into())]);
            }
        }
    }

    fn pause(&mut self) {
        let _ = self.out.flush();
    }

    fn tick(&mut self, _now: Duration) {
        let _ = self.out.flush();
    }

    fn finish(&mut self, _end: End, _now: Duration) {
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Paper, event, output, part, started};
    use super::*;

    #[test]
    fn events_are_buildkits() {
        let paper = Paper::default();
        let mut json = RawJson::new(Box::new(paper.clone()), SystemTime::UNIX_EPOCH);
        let events = [
            event(1, 0, started("[1/2] FROM busybox")),
            event(1, 10, EventKind::Cached),
            event(2, 20, started("[2/2] RUN make")),
            event(2, 21, EventKind::Miss { reason: "main.c changed".into() }),
            event(2, 30, output("hi\n")),
            event(2, 40, EventKind::Warning { message: "odd".into() }),
            event(2, 50, part("layer", 1, 2, false)),
            event(2, 60, part("layer", 2, 2, true)),
            event(2, 70, EventKind::Failed { message: "exit code: 1".into() }),
        ];
        for event in &events {
            json.event(event);
        }
        let text = paper.text();
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
        insta::assert_snapshot!(text, @r#"
        {"vertexes":[{"digest":"sha256:9f50e93f98579da99b9b2e43b3e50f434c8e7da98b65b912924e0a4874259113","name":"[1/2] FROM busybox","started":"1970-01-01T00:00:00.000000000Z"}]}
        {"vertexes":[{"digest":"sha256:9f50e93f98579da99b9b2e43b3e50f434c8e7da98b65b912924e0a4874259113","name":"[1/2] FROM busybox","started":"1970-01-01T00:00:00.000000000Z","completed":"1970-01-01T00:00:00.010000000Z","cached":true}]}
        {"vertexes":[{"digest":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","name":"[2/2] RUN make","started":"1970-01-01T00:00:00.020000000Z"}]}
        {"vertexes":[{"digest":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","name":"[2/2] RUN make","started":"1970-01-01T00:00:00.020000000Z","missed":"main.c changed"}]}
        {"logs":[{"vertex":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","stream":1,"data":"aGkK","timestamp":"1970-01-01T00:00:00.030000000Z"}]}
        {"warnings":[{"vertex":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","level":1,"short":"b2Rk"}]}
        {"statuses":[{"id":"layer","vertex":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","current":1,"total":2,"timestamp":"1970-01-01T00:00:00.050000000Z","started":"1970-01-01T00:00:00.050000000Z"}]}
        {"statuses":[{"id":"layer","vertex":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","current":2,"total":2,"timestamp":"1970-01-01T00:00:00.060000000Z","started":"1970-01-01T00:00:00.050000000Z","completed":"1970-01-01T00:00:00.060000000Z"}]}
        {"vertexes":[{"digest":"sha256:1b5b493434fcaa77ec6602fb29b986969ba3a63a41466c0cbba6e766bd102501","name":"[2/2] RUN make","started":"1970-01-01T00:00:00.020000000Z","completed":"1970-01-01T00:00:00.070000000Z","error":"exit code: 1"}]}
        "#);
    }
}
