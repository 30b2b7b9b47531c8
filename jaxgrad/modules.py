"""Strangers' Python files and modules, imported by name: what they raise is told in a sentence, as theirs."""

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxgrad.errors import JaxgradError


@contextlib.contextmanager
def imported(name: str) -> Iterator[Any]:
    """The module in a Python file, by its path, or of a name; inside, its folder is looked in for what it imports.

    Raises `JaxgradError`, with what to do, where there is none, and where the module, or what is called of it inside,
    raises.
    """
    path = Path(name)
    folder = str((path.parent if path.suffix == ".py" else Path()).absolute())
    sys.path.insert(0, folder)
    try:
        yield _module(path, name)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise JaxgradError(f"{name}: {error}") from None
    # A stranger's code, which may raise anything and may mean to end the process.
    except (Exception, SystemExit) as error:
        raise JaxgradError(f"{name}: {_where(error)} {type(error).__name__}: {str(error)[:200]}; mend it") from error
    finally:
        sys.path.remove(folder)


def _where(error: BaseException) -> str:
    """The last line that was reached, in words."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '').name}, line {error.lineno}, raises"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}, raises"


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
