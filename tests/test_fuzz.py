"""Ten thousand files that nobody meant: only our own errors come out, and nothing half-written stays.

The seeds are fixed, so that a failure here is a failure everywhere; each block has its share of the ten thousand.
"""

import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad import files as records
from jaxgrad.bench import compare
from jaxgrad.bench.report import SCHEMA
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Statistics, init
from jaxgrad.training import checkpoints, folder
from jaxgrad.training.checkpoints import Checkpoint
from jaxgrad.training.config import config_of, flat
from jaxgrad.training.state import State

SHARES = {"corpus": 3500, "config": 3000, "metadata": 2000, "checksums": 500, "bench": 1000}

WORDS = [b"ann", b"bob", "zoë".encode(), "李".encode(), b"", b" ", b"a.b", b"a b", b"\xff", b"\x00", b"\xef\xbb\xbf"]
ENDS = [b"\n", b"\r\n", b"\r", b"\n\n", b"", b"\x85", b"\x0c", "\u2028".encode()]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, -0.0, 2**31, 2**32, 2**63, 10**400, "", "sgd", "adam",
    "float64", "é" * 300, "../../etc/passwd", [], [[]], [["b1", 0.5]], {}, {"a": 1}, [1, 2, 3],
    ["."], [".", "a", "a"], [".", ["x"]],
]  # fmt: skip


def noise(draw: random.Random, least: int = 0, most: int = 60) -> bytes:
    return draw.randbytes(draw.randint(least, most))


def broken(draw: random.Random, text: bytes) -> bytes:
    """A file cut off, with bytes changed, doubled, or with noise in it."""
    at, to = sorted(draw.randint(0, len(text)) for _ in range(2))
    return draw.choice(
        [text[:at], text[:at] + noise(draw) + text[to:], text + text[at:to], text[at:], text[:at] + text[to:]]
    )


def altered(draw: random.Random, values: dict[str, Any]) -> bytes:
    """A JSON object with some values replaced, some keys gone, and some new."""
    values = dict(values)
    for _ in range(draw.randint(1, 3)):
        match draw.randrange(4):
            case 0:
                values.pop(draw.choice(list(values)), None) if values else None
            case 1:
                values["".join(draw.choices(string.printable, k=5))] = draw.choice(VALUES)
            case _:
                values[draw.choice(list(values or "x"))] = draw.choice(VALUES)
    return json.dumps(draw.choice([values, values, values, [values], draw.choice(VALUES)])).encode()


def only_our_errors(read: Callable[[], Any], what: bytes) -> bool:
    """Whether `read` went through; any error but ours fails the test, with the input that it came from."""
    try:
        read()
    except JaxgradError as error:
        assert str(error)
        return False
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} from {what[:300]!r}") from error
    return True


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_corpora(files: Path):
    draw, path, read = random.Random(1), files / "words.txt", 0
    for _ in range(SHARES["corpus"]):
        lines = [draw.choice(WORDS) + draw.choice(ENDS) for _ in range(draw.randint(0, 30))]
        text = b"".join(
            draw.choices([b"".join(lines), b"ann\n" * draw.randint(0, 20), noise(draw)], k=draw.randint(1, 2))
        )
        path.write_bytes(broken(draw, text) if draw.random() < 0.3 else text)
        n = draw.choice([1, 2, 3, 8, 40])
        read += only_our_errors(lambda n=n: corpus.load(path, n), path.read_bytes())
    assert 0.05 * SHARES["corpus"] < read < 0.95 * SHARES["corpus"], "inputs must be neither all good nor all bad"


def test_configs(files: Path):
    draw, path = random.Random(2), files / "config.json"
    good = json.loads(json.dumps(flat(config_of(vocabulary=(".", "a", "b"), corpus_sha256="0" * 64))))
    path.write_bytes(json.dumps(good).encode())
    assert folder.load_config(files).vocabulary == (".", "a", "b")
    for _ in range(SHARES["config"]):
        text = altered(draw, good)
        path.write_bytes(broken(draw, text) if draw.random() < 0.3 else text)
        only_our_errors(lambda: folder.load_config(files), path.read_bytes())


METADATA = checkpoints.Metadata(2.3, (2.5, 2.25), 1234, "0" * 64, "f" * 64, {"hidden": 8}, (2.1, 2.2, 2.3))


def test_metadata_of_checkpoints(files: Path):
    draw, path = random.Random(3), files / "notes.json"

    def read() -> checkpoints.Metadata:
        return records.read_json(path, checkpoints.Metadata, "metadata", "train again")

    path.write_text(json.dumps(METADATA._asdict()))
    assert read() == METADATA
    for _ in range(SHARES["metadata"]):
        text = altered(draw, METADATA._asdict())
        path.write_bytes(broken(draw, text) if draw.random() < 0.3 else text)
        only_our_errors(read, path.read_bytes())


def test_checkpoints_with_a_file_altered(files: Path):
    draw = random.Random(4)
    like = Checkpoint(
        State(init(jax.random.key(0), 3, h_size=2), (), jnp.int32(5)),
        jax.random.key_data(jax.random.key(1)),
        Statistics(jnp.zeros((1, 2)), jnp.ones((1, 2))),
    )
    checkpoints.begin(files / "5", like, METADATA)()
    paths = sorted(path for path in (files / "5").rglob("*") if path.is_file())
    for _ in range(SHARES["checksums"]):
        path = draw.choice(paths)
        text = path.read_bytes()
        while (other := broken(draw, text)) == text:
            pass
        path.write_bytes(other)
        assert not only_our_errors(lambda: checkpoints.restore(files / "5", like), other), f"{path} was read"
        path.write_bytes(text)
    restored = checkpoints.restore(files / "5", like)
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(like)))


PEER = {"name": "fused", "reason": None, "seconds_per_step": {"median": 2e-5, "low": 1e-5, "high": 3e-5}}
RUN = {
    "schema": SCHEMA,
    "environment": {"cpu": "a", "cores": 2},
    "sizes": [{"batch": 32, "hidden": 200, "peers": [PEER]}],
}


def test_runs_of_the_benchmark(files: Path):
    draw, path = random.Random(5), files / "run.json"
    for _ in range(SHARES["bench"]):
        size = {**RUN["sizes"][0], "peers": [json.loads(altered(draw, PEER))]}
        text = altered(draw, RUN) if draw.random() < 0.5 else json.dumps({**RUN, "sizes": [size]}).encode()
        path.write_bytes(broken(draw, text) if draw.random() < 0.3 else text)

        def read() -> None:
            run = compare.load(path)
            compare.changes(run, run)
            compare.differences(run, run)

        only_our_errors(read, path.read_bytes())


def test_the_shares_are_ten_thousand():
    assert sum(SHARES.values()) == 10_000
