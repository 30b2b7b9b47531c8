"""A checkpoint is read back bit for bit, and one that is not whole is never read as if it were."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Statistics, init
from jaxgrad.training import checkpoints, run
from jaxgrad.training.checkpoints import Checkpoint, Metadata
from jaxgrad.training.config import config_of, optimizer
from jaxgrad.training.step import start


def make(dtype=jnp.float32, h_size: int = 4, name: str = "adam") -> Checkpoint:
    """A checkpoint whose every leaf differs from a fresh one's, so that none can pass by being made anew."""
    params = init(jax.random.key(0), 5, h_size=h_size, dtype=dtype)
    state = start(params, optimizer(config_of(optimizer=name)))
    state = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state)
    statistics = Statistics(params.bn_bias, jnp.exp(params.bn_bias))
    return Checkpoint(state, jax.random.key_data(jax.random.key(1)), statistics)


def save(folder: Path, checkpoint: Checkpoint, dev_loss: float | None = 2.5) -> None:
    checkpoints.begin(folder, checkpoint, Metadata(dev_loss, (0.1, 0.2), 3, "a", "b", {"hidden": 4}))()


def same_bits(a: Checkpoint, b: Checkpoint) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_leaf_is_read_back_bit_for_bit(tmp_path: Path, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        saved = make(dtype)
        save(tmp_path / "checkpoint", saved)
        read = checkpoints.restore(tmp_path / "checkpoint", jax.eval_shape(lambda: saved))
    assert same_bits(read, saved)


def test_nan_infinities_and_signed_zeros_are_kept(tmp_path: Path):
    saved = make()
    odd = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-45])
    saved = saved._replace(state=saved.state._replace(params=saved.state.params._replace(b2=odd)))
    save(tmp_path / "checkpoint", saved)
    assert same_bits(checkpoints.restore(tmp_path / "checkpoint", saved), saved)


def test_arrays_may_be_donated_as_soon_as_a_save_has_begun(tmp_path: Path):
    saved, expected = make(), make()
    finish = checkpoints.begin(tmp_path / "checkpoint", saved, Metadata(None, (), 0, "", "", {}))
    for leaf in jax.tree.leaves(saved):
        leaf.delete()
    assert not (tmp_path / "checkpoint").exists()
    finish()
    assert same_bits(checkpoints.restore(tmp_path / "checkpoint", expected), expected)


def test_nothing_but_the_checkpoint_is_left(tmp_path: Path):
    save(tmp_path / "checkpoint", make())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["arrays", "notes.json", "sha256"]


def test_metadata_are_read_back_as_they_were(tmp_path: Path):
    # Each of these is a float that a shorter text would change.
    kept = Metadata(0.1 + 0.2, (float(np.float32(0.1)), 5e-324, 2.5), 7, "a", "b", {"seed": 2**32 - 1}, (1.5, 0.1, 2.5))
    checkpoints.begin(tmp_path / "checkpoint", make(), kept)()
    assert checkpoints.metadata(tmp_path / "checkpoint") == kept


def test_an_array_goes_where_its_likeness_says(tmp_path: Path):
    saved = make()
    save(tmp_path / "checkpoint", saved)
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved)
    read = checkpoints.restore(tmp_path / "checkpoint", like)
    assert same_bits(read, saved) and {leaf.sharding for leaf in jax.tree.leaves(read)} == {sharding}


def test_the_last_and_the_best_stay(tmp_path: Path):
    for step, dev_loss in ((9, 2.2), (10, 2.1), (20, None), (30, 2.3), (40, 2.2)):
        save(tmp_path / "checkpoints" / str(step), make(), dev_loss)
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["9", "10", "20", "30", "40"]
    checkpoints.tidy(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "30", "40"]


def test_what_a_killed_process_left_is_swept_up_and_nothing_else(tmp_path: Path):
    save(tmp_path / "checkpoints" / "10", make())
    for left in ("checkpoints/.20.unfinished", "checkpoints/.5.removed", "checkpoints/10.damaged"):
        (tmp_path / left).mkdir()
    (tmp_path / ".losses.json.77.tmp").touch()
    checkpoints.remove_partial(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "10.damaged"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_that_exists_is_not_replaced(tmp_path: Path):
    first = make()
    save(tmp_path / "checkpoint", first)
    with pytest.raises(JaxgradError, match=r"checkpoint: the checkpoint exists already; remove it first"):
        save(tmp_path / "checkpoint", jax.tree.map(jnp.zeros_like, first))
    assert same_bits(checkpoints.restore(tmp_path / "checkpoint", first), first)


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        ({"h_size": 3}, r"state\.params\.W1 \(30, [34]\) float32|state\.opt_state\.\S+ \S+ \S+ float32"),
        ({"name": "sgd"}, r"state\.opt_state\.\S+ \(\) int32"),
        ({"dtype": "bfloat16"}, r"\(5, 10\) (float32|bfloat16)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_what_differs(tmp_path: Path, other, apart: str):
    save(tmp_path / "checkpoint", make())
    with pytest.raises(JaxgradError, match=rf"is of another model: it and the config differ in .*({apart})"):
        checkpoints.restore(tmp_path / "checkpoint", jax.eval_shape(lambda: make(**other)))


def test_a_missing_checkpoint_and_one_that_is_a_file_are_named(tmp_path: Path):
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(JaxgradError, match=rf"{path.name}: there is no checkpoint; train the run again"):
            checkpoints.restore(path, make())
        (tmp_path / "file").touch()


@pytest.mark.parametrize("kept", [0.0, 0.5], ids=["empty", "half"])
@pytest.mark.parametrize("name", ["arrays/_METADATA", "arrays/_sharding", "notes.json", "sha256"])
def test_a_checkpoint_whose_description_is_cut_is_refused(tmp_path: Path, name: str, kept: float):
    saved, folder = make(), tmp_path / "checkpoint"
    save(folder, saved)
    (folder / name).write_bytes((folder / name).read_bytes()[: int(kept * (folder / name).stat().st_size)])
    with pytest.raises(JaxgradError, match="checkpoint: the checkpoint is damaged"):
        checkpoints.restore(folder, saved)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = corpus.load()
    # As in tests of whole runs, few steps of a small model: what is read back does not depend on how good it is.
    run.train(config_of(steps=2, hidden=8, vocabulary=data.vocabulary, corpus_sha256="0"), data, folder)
    return folder


def data_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoints/2/arrays/ocdbt.process_0/d").iterdir() if path.is_file()]


def in_own_process(*arguments: str) -> subprocess.CompletedProcess:
    """Python run apart: a read that fails leaves tasks behind which complain in whatever test comes next."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_a_run_whose_arrays_are_gone_is_refused_in_a_sentence(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    for path in data_files(tmp_path / "run"):
        path.unlink()
    done = in_own_process("-m", "jaxgrad", "sample", str(tmp_path / "run"), "-n", "5")
    assert done.returncode == 2 and "all checkpoints are damaged" in done.stderr and "Traceback" not in done.stderr


# Which file holds the numbers, and where in it, is Orbax's to choose: one bit of each of these places is turned.
PLACES = 8
TURN_AND_LOAD = f"""
import sys
from pathlib import Path
import jax, numpy as np
from jaxgrad.errors import JaxgradError
from jaxgrad.training import run

_, *kept = run.load(Path(sys.argv[1]))
for name in sys.argv[2:]:
    file = Path(name)
    whole = file.read_bytes()
    for place in range({PLACES}):
        altered = bytearray(whole)
        altered[len(whole) * place // {PLACES}] ^= 1
        file.write_bytes(altered)
        try:
            _, *read = run.load(Path(sys.argv[1]))
        except JaxgradError:
            continue
        except Exception as error:
            print("not a sentence:", type(error).__name__)
            continue
        if not all(map(np.array_equal, jax.tree.leaves(read), jax.tree.leaves(kept))):
            print("other numbers, without a word")
    file.write_bytes(whole)
print("done")
"""


def test_altered_numbers_are_never_read_as_if_they_were_the_runs(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    done = in_own_process("-c", TURN_AND_LOAD, str(tmp_path / "run"), *map(str, data_files(tmp_path / "run")))
    # A file that nothing is read from may be altered; the numbers that are read may not.
    assert done.stdout.split("\n") == ["done", ""]
