"""A run that the oldest allowed versions saved is read by those that are installed, and goes on.

The archive is of a run made in the environment of `make test-oldest` (jax 0.8.1, orbax-checkpoint 0.11.20):
`jaxgrad train --out oldest_run --steps 40 --hidden 8 --batch-size 8 --save-every 40 --log-every 20 --optimizer adam`.
"""

import json
import tarfile
from pathlib import Path

import pytest

from jaxgrad.cli.app import app
from jaxgrad.training.folder import read_metrics

ARCHIVE = Path(__file__).with_name("run_of_oldest_versions.tar.gz")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "oldest_run"


def test_its_losses_are_what_they_were(run: Path, tmp_path: Path):
    kept, file = json.loads((run / "losses.json").read_text()), tmp_path / "losses.json"
    app(["eval", str(run), "--json", str(file)], standalone_mode=False)
    found = json.loads(file.read_text())
    # Another compiler may sum the 200,000 losses of float32 in another order.
    assert {split: found[split] for split in kept} == pytest.approx(kept, rel=1e-6)


def test_it_goes_on(run: Path):
    before = read_metrics(run)
    app(["train", "--resume", str(run), "--steps", "60"], standalone_mode=False)
    after = read_metrics(run)
    assert after[: len(before)] == before and [line.step for line in after] == [20, 40, 60]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["40", "60"]
