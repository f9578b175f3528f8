//! How long it takes to read, check and lower a Dockerfile: an ordinary one of 1,000 lines, and
//! those that grow in one direction.
//!
//! `cargo bench --manifest-path bench/Cargo.toml`; `docs/performance.md` has what it said.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use rbuild_cache::oci::Platform;
use rbuild_frontend::check::Checks;
use rbuild_frontend::source::Source;
use rbuild_frontend::{BuildOptions, Resolved, lower, parse};
use rbuild_solver::graph::Graph;
use rustix::time::{ClockId, clock_gettime};

/// The time that the thread works: what else the machine does has no part in it. Reading a
/// Dockerfile waits for nothing, so on an idle machine it is the time that passes.
struct WorkTime;

impl Measurement for WorkTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).expect("no thread has worked for less than nothing");
        Duration::new(seconds, u32::try_from(time.tv_nsec).expect("it is below a second"))
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        static WALL_TIME: WallTime = WallTime;
        WALL_TIME.formatter()
    }
}

/// Reads, checks and lowers `text`; returns how many vertices come of it.
fn read(text: &str) -> usize {
    let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render(&dockerfile.source));
    let mut checks = Checks::default();
    checks.dockerfile(&dockerfile);
    let options = BuildOptions::new(Platform::new("linux", "amd64", None));
    let mut graph = Graph::new();
    let lowered = lower(&dockerfile, &options, &Resolved::default(), &mut graph);
    lowered.expect("the Dockerfile is right");
    graph.ids().count()
}

/// Twenty stages with what a stage usually has, 1,000 lines in all.
fn ordinary() -> String {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1.2.3\n");
    for stage in 0..20 {
        let base = if stage == 0 { "scratch".to_owned() } else { format!("s{}", stage - 1) };
        let _ = writeln!(text, "FROM {base} AS s{stage}\nARG VERSION\nWORKDIR /src/{stage}");
        for step in 0..9 {
            let _ = writeln!(
                text,
                "ENV NAME_{step}=\"value $VERSION\" PATH_{step}=${{PATH:-/usr/bin}}/{step}\n\
                 # check=skip=UndefinedVar\n\
                 COPY --chown=1000:1000 src/{step} lib/*.txt /app/{step}/\n\
                 RUN --mount=type=cache,target=/root/.cache make -j4 STAGE={stage} \\\n\
                 \x20   && make install"
            );
        }
        let _ = writeln!(text, "CMD [\"/app/{stage}\", \"--serve\"]");
    }
    let missing = 1_000 - text.lines().count();
    text + &"LABEL org.example.line=\"1\"\n".repeat(missing)
}

fn chain(stages: usize) -> String {
    let stage = |i: usize| match i {
        0 => "FROM scratch AS s0\nCOPY f /f0\n".to_owned(),
        i => format!("FROM s{} AS s{i}\nCOPY f /f{i}\n", i - 1),
    };
    (0..stages).map(stage).collect()
}

fn reads(stages: usize) -> String {
    let stage = |i: usize| match i {
        0 => "FROM scratch AS s0\nCOPY f /f\n".to_owned(),
        i => format!("FROM scratch AS s{i}\nCOPY --from=s{} /f /f\n", i - 1),
    };
    (0..stages).map(stage).collect()
}

fn benches(criterion: &mut Criterion<WorkTime>) {
    let mut group = criterion.benchmark_group("dockerfile");
    group.sample_size(10);
    let nested = format!("{}x{}", "${a:-".repeat(10_000), "}".repeat(10_000));
    let inputs = [
        ("1,000 lines", ordinary()),
        ("10,000 stages, each from the one before", chain(10_000)),
        ("10,000 stages, each copying from the one before", reads(10_000)),
        ("100,000 RUN", format!("FROM scratch\n{}", "RUN true\n".repeat(100_000))),
        ("100,000 ENV", format!("FROM scratch\n{}", "ENV A=b C=$A\n".repeat(100_000))),
        ("a line of 1 MiB", format!("FROM scratch\nRUN {}b\n", "aaaaaaa \\\n".repeat(104_857))),
        ("10,000 nested variables", format!("FROM scratch\nENV A={nested}\n")),
    ];
    for (name, text) in &inputs {
        group.bench_function(*name, |bencher| bencher.iter(|| read(black_box(text))));
    }
    group.finish();
}

criterion_group! {
    name = dockerfile;
    config = Criterion::default().with_measurement(WorkTime);
    targets = benches
}
criterion_main!(dockerfile);
