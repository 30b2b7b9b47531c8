"""`jaxgrad sweep`: what it prints and leaves, and that devices do not change it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--steps", "30", "--batch-size", "4")


def sweep(out: Path, *args: str, devices: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxgrad", "sweep", "--out", str(out), *SMALL, *args],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        check=False,
    )


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_models_split_over_devices_are_the_same_models(tmp_path: Path):
    args = ("--seeds", "0:5", "--lr", "0.1", "--hidden", "8", "--dtype", "float64")
    for devices in (1, 8):
        done = sweep(tmp_path / str(devices), *args, devices=devices)
        assert done.returncode == 0 and done.stderr == ""
        assert f"on {devices} device(s)" in " ".join(done.stdout.split())
    for one, eight in zip(results(tmp_path / "1"), results(tmp_path / "8"), strict=True):
        assert one["seed"] == eight["seed"]
        # Thirty steps in float64, about 1e-15 apart at each.
        assert float(one["dev"]) == pytest.approx(float(eight["dev"]), rel=1e-12)


def test_the_best_is_named_with_the_command_that_trains_it_alone(tmp_path: Path):
    table = tmp_path / "table.json"
    done = sweep(tmp_path / "s", "--seeds", "3,4", "--lr", "0.1,0.0001", "--hidden", "8", "--json", str(table))
    rows = json.loads(table.read_text())["runs"]
    best = rows[0]["seed"]
    assert f"jaxgrad train --seed {best} --hidden 8 --steps 30 --batch-size 4" in " ".join(done.stdout.split())
    assert [row["learning_rate"] for row in rows] == [0.1, 0.1, 0.0001, 0.0001]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seeds", "4:4"), "--seeds is '4:4'; give FROM:TO with FROM below TO"),
        (("--seeds", "-1:2"), "seed is -1; it must be a whole number of at least 0"),
        (("--lr", "fast"), "--lr is 'fast'; give numbers separated by commas"),
        (("--lr", "0.1,-1"), "learning rate is -1.0"),
        (("--hidden", "0"), "hidden is 0"),
        (("--memory", "0.001"), "allow more memory, or make it smaller"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(tmp_path: Path, args: tuple[str, ...], message: str):
    done = sweep(tmp_path / "s", *args)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing half-written stays"
