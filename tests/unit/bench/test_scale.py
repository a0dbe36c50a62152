"""Clusters on paper: the simulation meets what can be solved, and the counts are those of the real placement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import pytest
from click.testing import CliRunner, Result
from coffre.bench.bench_cli import bench
from coffre.bench.scale import (
    Capacities,
    Layout,
    balance,
    movement_on_join,
    movement_on_leave,
    placed,
    synthetic_map,
)
from coffre.bench.scale_durability import (
    EXACT_NODES_MAX,
    FailureModel,
    Groups,
    exact_loss_rate,
    group_loss_rate,
    mean_years_to_loss,
    simulate,
)
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.map import Policy
from coffre.cluster.names import ObjectName, partition_of

from tests.unit.bench.pages import charts_of, check_page

POLICY = Policy("4+2", 4, 2, ("FR",))
SEED = 7
# Errors are estimated themselves, and a seed may be unlucky; beyond this the model is wrong, not the luck.
STANDARD_ERRORS = 4.0


def model(site_losses: float = 0.0, failures: float = 0.5) -> FailureModel:
    return FailureModel(failures, site_losses, 3 * 86400.0, 50e6, 8e12)


def one_group() -> Groups:
    return Groups(4, 2, np.array([[0, 1, 2, 3, 4, 5]]), (0, 0, 1, 1, 2, 2))


def overlapping() -> Groups:
    """Nine nodes at three sites; 2+1 over eight groups."""
    members = [[0, 1, 2], [1, 2, 3], [3, 4, 5], [0, 4, 8], [5, 6, 7], [2, 6, 7], [1, 5, 6], [0, 7, 8]]
    return Groups(2, 1, np.array(members), tuple(i % 3 for i in range(9)))


# ------------------------------------------------------------------ durability


def test_the_chain_is_the_textbook_one() -> None:
    failure, repair, n = 0.1, 300.0, 5
    # Chen et al., RAID: High-Performance, Reliable Secondary Storage, 1994, one redundant disk, exact.
    raid5 = ((2 * n - 1) * failure + repair) / (n * (n - 1) * failure**2)
    assert mean_years_to_loss([n * failure, (n - 1) * failure], [0, repair]) == pytest.approx(raid5)
    assert mean_years_to_loss([n * failure], [0]) == pytest.approx(1 / (n * failure))


def test_repair_takes_the_bandwidth_of_the_nodes_that_are_left() -> None:
    found = FailureModel(0.1, 0.0, 100.0, 1e6, 1e9)
    assert found.repair_seconds(1, 11, 4) == pytest.approx(100 + 5 * 1e9 / (10 * 1e6))
    assert found.repair_seconds(2, 12, 4) == pytest.approx(100 + 2 * 5 * 1e9 / (10 * 1e6))
    assert found.repairs_per_year(0, 11, 4) == found.repairs_per_year(11, 11, 4) == 0


def test_sets_of_nodes_and_the_chain_of_counts_agree() -> None:
    solved = exact_loss_rate(model(), one_group())
    assert solved == pytest.approx(group_loss_rate(model(), 6, 4, 2), rel=1e-6)


@pytest.mark.parametrize("site_losses", [0.0, 0.002, 0.3])
@pytest.mark.parametrize("groups", [one_group(), overlapping()], ids=["one group", "overlapping"])
def test_the_simulation_meets_the_exact_solution(groups: Groups, site_losses: float) -> None:
    found = simulate(model(site_losses), groups, 8000, Random(SEED))
    exact = exact_loss_rate(model(site_losses), groups)
    assert found.losses_error < 0.05
    assert found.losses_per_year == pytest.approx(exact, rel=STANDARD_ERRORS * found.losses_error)


def test_losses_too_rare_to_see_are_estimated_all_the_same() -> None:
    rare = model(failures=1e-4)
    found = simulate(rare, one_group(), 8000, Random(SEED))
    exact = group_loss_rate(rare, 6, 4, 2)
    assert exact < 1e-13
    assert found.losses_per_year == pytest.approx(exact, rel=STANDARD_ERRORS * found.losses_error)
    assert found.losses_error < 0.05


def test_expected_losses_on_a_real_placement_are_those_of_the_chain() -> None:
    layout = Layout(60, 6, 3, 512)
    groups = Groups(4, 2, placed(synthetic_map(layout, POLICY), POLICY), tuple(i % 6 for i in range(60)))
    found = simulate(model(failures=0.02), groups, 8000, Random(SEED))
    expected = 512 * group_loss_rate(model(failures=0.02), 60, 4, 2)
    assert found.groups_lost_per_year == pytest.approx(expected, rel=STANDARD_ERRORS * found.groups_error)
    assert found.groups_error < 0.05
    assert found.losses_per_year <= found.groups_lost_per_year


def test_a_site_that_holds_more_than_m_shards_takes_them_along() -> None:
    gathered = Groups(4, 2, np.array([[0, 1, 2, 3, 4, 5]]), (0, 0, 0, 1, 1, 1))
    sites = 2
    assert exact_loss_rate(model(0.3), gathered) == pytest.approx(sites * 0.3, rel=0.02)
    assert simulate(model(0.3), gathered, 2000, Random(SEED)).losses_per_year == pytest.approx(0.6, rel=0.1)


def test_more_failures_than_repair_can_follow_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="does not keep up"):
        simulate(model(failures=500.0), one_group(), 100, Random(SEED))


@pytest.mark.parametrize("field", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_model_of_nonsense_is_refused(field: int, value: float) -> None:
    values = [0.1, 0.1, 60.0, 1e6, 1e12]
    values[field] = value
    with pytest.raises(InvalidArgument):
        FailureModel(*values)


def test_the_exact_solution_is_for_small_clusters() -> None:
    nodes = EXACT_NODES_MAX + 1
    with pytest.raises(InvalidArgument):
        exact_loss_rate(model(), Groups(2, 1, np.array([[0, 1, 2]]), tuple(range(nodes))))


# ------------------------------------------------------------------ placement


def test_partitions_are_counted_on_the_nodes_that_placement_gives() -> None:
    layout = Layout(12, 6, 3, 64)
    table = placed(synthetic_map(layout, POLICY), POLICY)
    found = balance(layout, POLICY, table, 10**9, np.random.RandomState(SEED))
    counts = [int((table == node).sum()) for node in range(12)]
    assert sum(counts) == 64 * 6
    assert (found.shards_min, found.shards_max) == (min(counts), max(counts))
    assert found.partitions_max_over_mean == pytest.approx(max(counts) / (64 * 6 / 12))
    assert found.objects_max_over_mean == pytest.approx(found.partitions_max_over_mean, rel=1e-3)


def test_capacity_weighs() -> None:
    layout = Layout(36, 6, 3, 1024, Capacities.MIXED)
    table = placed(synthetic_map(layout, POLICY), POLICY)
    small, large = ((table == node).sum() for node in (0, 12))  # 8 TB, 32 TB
    assert 2.5 < large / small < 4.5
    mixed = balance(layout, POLICY, table, 10**9, np.random.RandomState(SEED))
    assert mixed.partitions_max_over_mean < 1.5


def test_the_multinomial_draw_stands_for_hashed_names() -> None:
    objects, layout = 40_000, Layout(12, 6, 3, 64)
    table = placed(synthetic_map(layout, POLICY), POLICY)
    held = np.zeros(12)
    for number in range(objects):
        held[table[partition_of(ObjectName("tenant", "bucket", f"record/{number}"), 64)]] += 1
    share = np.bincount(table.ravel(), minlength=12) / 64
    spread = np.sqrt(objects * share * (1 - share))
    deviations = (held - objects * share) / spread
    assert np.abs(deviations).max() < 5
    assert 0.2 < np.sqrt((deviations**2).mean()) < 3
    found = balance(layout, POLICY, table, objects, np.random.RandomState(SEED))
    assert found.object_spread == pytest.approx(float((spread / (objects * share)).max()))


def test_one_node_that_comes_or_goes_moves_little_more_than_it_must() -> None:
    layout = Layout(30, 6, 3, 512)
    table = placed(synthetic_map(layout, POLICY), POLICY)
    join, leave = movement_on_join(layout, POLICY, table), movement_on_leave(layout, POLICY, table)
    assert leave is not None
    for found in (join, leave):
        assert 0 < found.minimum <= found.moved <= 1.1 * found.minimum
        assert found.minimum == pytest.approx(found.fair, rel=0.3)
        assert found.by_rank > found.moved
    assert leave.minimum == pytest.approx(float((table == 15).mean()))


def test_the_smallest_cluster_cannot_spare_a_node() -> None:
    layout = Layout(6, 3, 3, 16)
    assert movement_on_leave(layout, POLICY, placed(synthetic_map(layout, POLICY), POLICY)) is None


# ------------------------------------------------------------------ the command


def run(*arguments: str) -> Result:
    small = ("--nodes", "9", "--nodes", "12", "--policy", "4+2", "--partitions", "32", "--cycles", "200")
    return CliRunner().invoke(bench, ["scale", *small, *arguments])


def test_the_same_seed_gives_the_same_digest_and_another_one_does_not() -> None:
    first, again, other = (json.loads(run("--json", *more).stdout) for more in ((), (), ("--seed", "2")))
    assert first == again
    assert first["digest"] != other["digest"]
    assert len(first["durability"]) == 4
    assert all(row["exact_loss_probability"] for row in first["durability"] if row["nodes"] == 9)
    assert all(len(line) > 20 for line in first["assumptions"])


def test_the_tables_show_assumptions_and_digest() -> None:
    shown = run().stdout
    digest = json.loads(run("--json").stdout)["digest"]
    assert digest in shown
    assert "latent damage" in shown


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = tmp_path / "scale.html"
    assert run("--report", str(page)).exit_code == 0
    text = page.read_text("utf-8")
    check_page(text)
    assert len(charts_of(text)) == 2
    for label in ("4+2, nodes and sites", "4+2, nodes alone", "32 partitions, mixed nodes", "9", "12"):
        assert f">{label}</text>" in text


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--node-failures", "0"), 2),
        (("--node-failures", "nan"), 2),
        (("--policy", "many"), 2),
        (("--policy", "12+4"), 1),  # twelve nodes cannot
        (("--operators", "4"), 2),
        (("--node-failures", "1e6"), 2),
        (("--report", "/dev/null/scale.html"), 2),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(arguments: tuple[str, ...], status: int) -> None:
    found = run(*arguments)
    assert found.exit_code == status
    assert found.stderr.strip().count("\n") == 0
    assert "Traceback" not in found.output
