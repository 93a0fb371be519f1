"""`skipgym bench`, called as a user calls it."""

import json

import pytest

from skipgym.scripts.cli import main

SMALL = ["--backbone", "resnet8-w4", "--shape", "1", "8", "8", "--num-envs", "4", "--rounds", "1"]


def test_all_figures_are_printed_and_kept_with_what_they_were_made_with(tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = ["--what", "environments", "learners", "table", "prefix", "--images", "4", "--single-envs", "2"]
    table = ["--table.images", "2", "--table.copies", "1", "--table.envs", "3"]
    assert main(["bench", "env", *SMALL, *words, *table, "--out", str(out)]) == 0
    printed, kept = capsys.readouterr().out, json.loads(out.read_text())
    for told in ("ours to it", "backbone", "reinforce", "engine, 3 slots", "from stored features"):
        assert told in printed
    assert set(kept) == {"command", "config", "machine", "versions", "environments", "learners", "table", "prefix"}
    assert kept["config"]["shape"] == [1, 8, 8]
    assert set(kept["environments"]["ratio"]) == {"limit", "masked", "single"}
    assert f"{kept['environments']['ratio']['limit']['median']:.2f}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "envs"], "Did you mean env"),
        (["bench", "env", "--task", "time-skip"], "expected one of images or clips, got time-skip"),
        (["bench", "env", "--what", "table", "--backbone", "resnet56"], "at most 4,096 ways through, got layer-skip"),
        (["bench", "env", "--what", "prefix", "--task", "resolution"], "before the first decision, got nothing"),
        (["bench", "env", "--out", "nowhere/b.json"], "expected a new file in a directory that exists"),
    ],
)
def test_mistake_is_told_in_one_line_before_anything_is_measured(words, message, capsys):
    assert main(words) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_usage_names_every_measurement(capsys):
    assert main(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in ("env", "controller"))
    assert main(["bench"]) == 2
