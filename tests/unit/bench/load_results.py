"""Results of runs that never took place, for the tests of what reads results."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

from coffre.bench.load.plan import LoadPlan, Operation
from coffre.bench.load.recorder import Latencies, Recorder, Timeline
from coffre.bench.load.result import Check, ClusterFacts, Counters, Event, LoadResult, Usage
from coffre.bench.result import Machine

PLAN = LoadPlan(
    bucket="bench",
    prefix="load-1",
    seed=1,
    workload="health-without-archives",
    size_bytes=4096,
    texture="random",
    mix="put=1,get=3",
    objects=10,
    range_bytes=100,
    processes=2,
    in_flight=4,
    rate_per_s=100.0,
    ramp_s=2.0,
    duration_s=20.0,
    count=None,
)


def recorded(plan: LoadPlan, *, slower: float = 1.0, seed: int = 1, rate_per_s: float = 100.0) -> Recorder:
    """Gets and puts of two classes at a steady rate; latencies about 10 ms times `slower`."""
    chance = random.Random(seed)
    recorder = Recorder(0.0, plan.interval_s)
    for number in range(int(rate_per_s * plan.end_interval * plan.interval_s)):
        recorder.succeeded(
            Operation.GET if number % 4 else Operation.PUT,
            "fhir" if number % 3 else "bundle",
            since=number / rate_per_s - chance.lognormvariate(-4.6, 0.3) * slower,
            ended=number / rate_per_s,
            size_bytes=1000,
        )
    return recorder


def result_of(recorder: Recorder, plan: LoadPlan = PLAN, *, events: tuple[Event, ...] = ()) -> LoadResult:
    """What a session would make of what was recorded."""
    lag = Latencies()
    lag.record(0.0005)
    return LoadResult(
        version="0.1.0",
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        machine=Machine("a <fast> CPU & more", 2, 8 << 30, "6.1", "3.11", "ext4"),
        plan=plan,
        cluster=ClusterFacts("00aa", 1, 6, 3, 3, "4-2", 4, 2),
        usage=Usage(
            (10.0, 11.0), Counters(6, 10, 5, 100, 1000, 1.0), Counters(6, 510, 50, 900, 9000, 31.0), 22.5
        ),
        seconds=(plan.end_interval - plan.ramp_intervals) * plan.interval_s,
        not_started=0,
        lag=lag,
        timeline=Timeline(recorder.take()),
        check=Check(7, {}),
        events=events,
        examples=(),
    )


def failure_result() -> LoadResult:
    """Three phases; in the second one the cluster is slower, and some gets fail."""
    plan = replace(PLAN, ramp_s=0.0, duration_s=30.0)
    recorder = recorded(plan)
    for number in range(100):
        ended = 10.0 + number / 10
        recorder.failed(Operation.GET, "fhir", "Unavailable", ended=ended)
        recorder.succeeded(Operation.GET, "fhir", since=ended - 0.5, ended=ended, size_bytes=1000)
    phases = ((0.0, "steady"), (10.02, "killed"), (20.01, "brought back"))
    return result_of(recorder, plan, events=tuple(Event(at, name, f"{name} <node-1>") for at, name in phases))
