"""The benchmark of explainers: every row and every peer in small, and what its figures are made of."""

import sys
from pathlib import Path

import pytest
import torch

import heatproof as hp

HOME = Path(__file__).parents[2]
sys.path.insert(0, str(HOME / "benchmarks"))  # where scripts are started from

import explainers  # noqa: E402


@pytest.fixture(scope="module")
def table():
    head, _, *lines = explainers.table(quick=True, rounds=1)
    names = [cell.strip() for cell in head.strip("|").split("|")]
    return [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]


def test_every_method_runs_on_a_model_and_no_peer_fails(table):
    served = {row["method"].partition("`,")[0].strip("`") for row in table if row["time, × forward"] != "refused"}
    asked = {row.method for row in (*explainers.rows(), *explainers.ALONE) if row.method in hp.methods()}
    assert asked <= served
    assert not [row for row in table if "fails" in row["peer, × forward"]]


def test_what_only_runs_forward_stands_elsewhere_and_all_else_here():
    families = {"perturbation", "control"}
    left_out = {name for name, entry in hp.methods().items() if entry.family not in families}
    assert left_out - {row.method for row in (*explainers.rows(), *explainers.ALONE)} <= {"lrp"}  # which is any preset


def test_the_unit_is_one_forward_pass_and_the_floors_are_what_they_say():
    bench, passes = explainers.build(explainers.CNN, True, 2), []
    bench.model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    for work in (explainers.forward, explainers.both_ways, explainers.to_the_layer):
        work(bench)
    assert passes == [2, 2, 2]
    hooks = [hook for part in bench.model.modules() for hook in part._forward_hooks]
    assert not hooks


def test_ours_and_the_peer_explain_the_same():
    bench = explainers.build(explainers.CNN, True, 2)
    row = explainers.with_layer(next(row for row in explainers.rows() if row.method == "hirescam"), bench)
    mine, theirs = explainers.ours(row, bench), torch.from_numpy(row.peer[1](bench))
    spans = [(maps - maps.amin((1, 2), keepdim=True)) for maps in (mine, theirs)]
    mine, theirs = [span / span.amax((1, 2), keepdim=True) for span in spans]
    assert (mine - theirs).abs().mean() < 0.05  # resized in another way
