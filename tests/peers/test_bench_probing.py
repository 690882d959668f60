"""The benchmark of probing: its smoke test, what it counts and what it writes."""

import json
import sys
from pathlib import Path

import pytest
import torch

HOME = Path(__file__).parents[2]
sys.path.insert(0, str(HOME / "benchmarks"))  # where scripts are started from

import timing  # noqa: E402

import probing  # noqa: E402

QUICK = probing.Setting("cpu", 1, quick=True)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A page and a folder of its own for what is written."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{probing.MARKS[0]}old\n{probing.MARKS[1]}after\n")
    monkeypatch.setattr(timing, "PAGE", page)
    monkeypatch.setattr(probing, "RESULTS", tmp_path)
    monkeypatch.setattr(probing, "KEPT", tmp_path / "probing")
    return tmp_path


def rows(section):
    """A section's rows by the names of its columns, in small."""
    head, *found = section(QUICK)
    assert all(len(row) == len(head) for row in found)
    return [dict(zip(head, row, strict=True)) for row in found]


def test_both_sides_of_a_metric_run_the_same_number_of_changed_images(monkeypatch):
    monkeypatch.setattr(probing, "SIZES", {name: probing.SIZES[name] for name in ("LeNet", "ViT-B/16")})
    found = [row for row in rows(probing.metrics) if row["precision"] == "fp32"]
    assert {(row["model"], row["metric"]) for row in found} == {
        (model, f"`{metric}`") for model in probing.SIZES for metric in probing.SINGLY
    }
    images = 2
    for row in found:
        ours, theirs = (int(count) for count in row["passes, ours and theirs"].split(", "))
        start = images if row["metric"] == "`pixel_flipping`" else 0  # their curve leaves out the image itself
        assert ours == theirs + start, row


def test_both_sides_of_a_metric_find_the_same():
    bench = probing.Bench.of(QUICK, "LeNet", 3)
    ((options, peer),) = (
        given for name, given in probing.compared(28**2, 7, 2).items() if name == "faithfulness_estimate"
    )
    found = bench.ours({"faithfulness_estimate": options})["faithfulness_estimate"]
    assert torch.allclose(found, torch.tensor(bench.quantus(peer)).float(), atol=1e-4)


def test_a_suite_shares_what_it_can():
    passes = {row["ViT-Ti/16, eight metrics"]: int(row["passes"]) for row in rows(probing.suite)}
    images, samples = 2, 2
    shared = images * samples  # explanations of changed images
    shared += 3 * images - images  # estimate, correlation and flipping ask for the images themselves
    assert passes["ours, metric by metric"] - passes["ours, at once"] == shared


def test_lime_and_drop_run_as_many_versions_as_they_say():
    (lime, ours, *_, dropped), (black, without) = rows(probing.lime), rows(probing.drop)
    assert [int(row["passes"]) for row in (lime, ours, dropped)] == [20, 20, 21]  # the patches are found by one more
    assert int(without["passes"]) == int(black["passes"]) + 1 == 2 * 5 + 1


def test_memory_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(probing, "MASKED", {"deletion": probing.MASKED["deletion"]})
    few, many = rows(probing.memory)
    assert [few["masks"], many["masks"]] == ["10", "100"]
    largest = 16 * 50 * 50 * 4 / 1e6  # what one image's first convolution gives, MB
    assert 10 * largest < float(few["tensors, MB"]) < 60 * largest
    assert 64 * largest < float(many["tensors, MB"]) < 6 * 64 * largest  # the micro-batch is 64


@pytest.mark.parametrize("name", probing.MASKED)
def test_memory_does_not_grow_with_the_masks(name):
    few, many = (probing.memory_of(name, count, "cpu")["tensors"] for count in (100, 500))
    assert many < 1.05 * few


def test_throughput_runs_equal_passes():
    for row in rows(probing.throughput):
        bare, probed = row["passes, bare and probe"].split(", ")
        assert bare == probed == "4"


def test_quick_writes_nothing(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["probing.py", "--quick", "--only", "drop"])
    probing.main()
    assert "| tokens dropped |" in capsys.readouterr().out
    assert [path.name for path in results.iterdir()] == ["page.md"]
    assert "old" in timing.PAGE.read_text()


def test_sections_are_kept_and_the_page_is_made_of_the_latest_of_each(results, monkeypatch):
    numbers = iter("123")
    sections = {
        name: (title, lambda _: iter([["row"], [next(numbers)]])) for name, (title, _) in probing.SECTIONS.items()
    }
    monkeypatch.setattr(probing, "SECTIONS", sections)
    for only in (["drop", "memory"], ["drop"]):
        monkeypatch.setattr(sys, "argv", ["probing.py", "--device", "cpu", "--rounds", "4", "--only", *only])
        probing.main()
    assert json.loads((results / "probing" / "drop.cpu.json").read_text())["rows"] == [["row"], ["3"]]
    page = timing.PAGE.read_text()
    assert page.startswith("before\n" + probing.MARKS[0])
    assert page.endswith(probing.MARKS[1] + "after\n")
    assert "| 3 |" in page
    assert "| 2 |" in page
    assert "| 1 |" not in page
    assert "Median of 4 rounds" in page
    assert page.count("Not run") == 2 * len(sections) - 2
    assert page.split(probing.MARKS[0])[1].split(probing.MARKS[1])[0] in (results / "probing.md").read_text()


def test_live_bytes_see_the_peak_and_what_is_freed():
    known = torch.zeros(1000)
    with timing.LiveBytes([known]) as live:
        first = torch.ones(250)  # 1000 bytes
        del first
        second, third = torch.ones(500), known + 1  # 2000 and 4000 bytes
        _ = known.view(10, 100)
    assert live.peak == 6000
    assert live.now == 6000
    del second, third
    assert live.now == 0


def test_rounds_are_interleaved():
    order = []
    found = timing.interleaved("cpu", {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert [len(times) for times in found.values()] == [2, 2]
    slow = probing.Measured(None, 1, [2.0, 3.0])
    assert probing.Measured(None, 1, [1.0, 6.0]).times_as_fast_as(slow) == [2.0, 0.5]
