//! How long a large node takes: everything at once, and one change at a time; what it keeps in
//! memory; how it grows.

mod report;
mod world;

use std::{fs, hint::black_box, path::Path, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion};
use peak_alloc::PeakAlloc;
use sidecar_agent::{
    compile::{Compiler, plans},
    model::{Object, Snapshot, service::Service},
};

use world::{NODE, Size, changed, mesh};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SERVICES: [usize; 4] = [2_500, 5_000, 10_000, 20_000];
const WORKLOADS: [usize; 4] = [125, 250, 500, 1_000];

fn main() {
    let results = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scale");
    // What an earlier run left is not this run's.
    let _ = fs::remove_dir_all(&results);
    let mut criterion = Criterion::default()
        .output_directory(&results)
        .without_plots()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(10)
        .configure_from_args();
    report::shape(&mesh(NODE));
    let memory = report::memory(MEMORY);
    everything(&mut criterion);
    one_change(&mut criterion);
    growth(&mut criterion);
    criterion.final_summary();
    report::table(
        &results,
        &memory,
        &[
            ("services", SERVICES.to_vec()),
            ("workloads", WORKLOADS.to_vec()),
        ],
    );
}

/// The mesh without Sidecars: every workload sees everything.
fn unrestricted() -> Snapshot {
    Snapshot {
        sidecars: Vec::new(),
        ..mesh(NODE)
    }
}

fn everything(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("everything");
    for (name, snapshot) in [("sidecars", mesh(NODE)), ("no sidecars", unrestricted())] {
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| plans(&snapshot));
        });
    }
    group.finish();
}

/// From one version of the mesh to another and back, compiler and all else being warm.
fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one change");
    let base = mesh(NODE);
    let open = unrestricted();
    let sidecar = Snapshot {
        sidecars: changed(&base.sidecars, NODE.sidecars / 2, |sidecar| {
            sidecar.egress[0].hosts.push("team-099/*".into());
        }),
        ..base.clone()
    };
    let position = |base: &Snapshot, namespace: &str| {
        let of = |service: &Object<Service>| service.meta.namespace == namespace;
        let found = base.services.iter().position(|service| of(service));
        found.expect("a service of that namespace")
    };
    let service = |base: &Snapshot, namespace: &str| Snapshot {
        services: changed(&base.services, position(base, namespace), |service| {
            service.ports[0].port = 81;
        }),
        ..base.clone()
    };
    let without_service = |base: &Snapshot| {
        let mut services = base.services.clone();
        services.remove(position(base, "team-077"));
        Snapshot {
            services,
            ..base.clone()
        }
    };
    let without_workload = |base: &Snapshot| {
        let mut workloads = base.workloads.clone();
        workloads.remove(NODE.workloads / 2);
        Snapshot {
            workloads,
            ..base.clone()
        }
    };
    // As by a line inserted above all services of a file.
    let moved = |base: &Snapshot| Snapshot {
        services: base.services.iter().map(a_line_below).collect(),
        ..base.clone()
    };
    for (name, from, to) in [
        ("nothing", &base, base.clone()),
        ("a sidecar", &base, sidecar),
        ("a service", &base, service(&base, "team-077")),
        (
            "a service that all see",
            &base,
            service(&base, "istio-system"),
        ),
        ("a service more or less", &base, without_service(&base)),
        ("a workload more or less", &base, without_workload(&base)),
        ("the lines of all services", &base, moved(&base)),
        ("a service, no sidecars", &open, service(&open, "team-077")),
    ] {
        let mut compiler = Compiler::default();
        let mut versions = [Arc::new(from.clone()), Arc::new(to)];
        let _ = compiler.plans(&versions[1]);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    versions.rotate_left(1);
                    Arc::clone(&versions[1])
                },
                |snapshot| black_box(compiler.plans(&snapshot)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn a_line_below(service: &Arc<Object<Service>>) -> Arc<Object<Service>> {
    let mut service = Arc::clone(service);
    Arc::make_mut(&mut service).origin.line += 1;
    service
}

fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("services");
    for services in SERVICES {
        let snapshot = mesh(Size { services, ..NODE });
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter_with_large_drop(|| plans(&snapshot));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("workloads");
    for workloads in WORKLOADS {
        let snapshot = mesh(Size { workloads, ..NODE });
        group.bench_function(BenchmarkId::from_parameter(workloads), |bencher| {
            bencher.iter_with_large_drop(|| plans(&snapshot));
        });
    }
    group.finish();
}
