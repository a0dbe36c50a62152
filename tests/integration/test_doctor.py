"""`coffre doctor` against real nodes: what it looks at beside them, and when it ends with which status."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from coffre.client import connect
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import ResourceExhausted, Unavailable
from coffre.cluster.identity import issue_operator, issue_tenant, read_authority, write_issued
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.integration.conftest import QUICK
from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
MIB = 1 << 20
SMALL = {"capacity_bytes": 24 * MIB, "reserve_bytes": 2 * MIB, "volume_bytes": 2 * MIB}
REPAIR = {"round_seconds": 0.3, "settling_seconds": 0.2}


async def doctor(cluster: LocalCluster, *options: str) -> tuple[int, list[list[str]]]:
    command = [COFFRE, "doctor", "--json", "--operator", str(cluster.operator_config()), *options]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else [["", "", done.stderr]]


def issue(cluster: LocalCluster, days: int) -> None:
    """Another certificate for the tenant, in the place of its first, and one for a tenant that nobody has met."""
    pki = cluster.directory / "pki"
    authority, clock = read_authority(pki), SystemClock()
    for suffix in ("crt", "key"):
        (pki / f"clinic.{suffix}").unlink()
    write_issued(issue_tenant(authority, "clinic", clock, days), pki)
    write_issued(issue_tenant(authority, "lab", clock, days), pki)


async def test_what_doctor_looks_at_beside_the_nodes(tmp_path: Path) -> None:
    shape = ClusterShape(
        nodes=3, sites=1, k=2, m=1, capacity_bytes=24 * MIB, store=SMALL, repair=REPAIR, partitions=16
    )
    async with LocalCluster.create(tmp_path / "cluster", shape) as cluster:
        issue(cluster, 20)
        async with await connect(cluster.client_config(), options=QUICK) as client:
            await client.put("b", "k", b"one")
        status, findings = await doctor(cluster)
        assert status == 0, findings
        told = [(level, about) for level, about, _ in findings if level != "note"]
        assert told == [("warning", "tenant clinic"), ("warning", "tenant lab")]
        texts = {about: text for _, about, text in findings}
        assert "renew it where its application is" in texts["tenant clinic"]
        assert "if this tenant is no more" in texts["tenant lab"]
        assert (await doctor(cluster, "--fail-on", "warning"))[0] == 1

        async with await connect(cluster.client_config(), options=QUICK) as client:
            with pytest.raises((ResourceExhausted, Unavailable)):
                await client.put("b", "large", random.Random(1).randbytes(80 * MIB))
        status, findings = await doctor(cluster)
        assert any("for lack of space" in text for _, _, text in findings), findings

        cluster.kill(1)  # which served coordination
        status, findings = await doctor(cluster)
        assert status == 1
        assert ["error", "coordination"] in [row[:2] for row in findings]

        pki = cluster.directory / "pki"
        for suffix in ("crt", "key"):
            (pki / f"operator.{suffix}").unlink()
        write_issued(issue_operator(read_authority(pki), "operator", SystemClock(), 10), pki)
        _, findings = await doctor(cluster)
        assert ["warning", "operator operator"] in [row[:2] for row in findings]
