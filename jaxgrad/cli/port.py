"""`jaxgrad port`: where a port parts from what it was ported from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxgrad.cli.app import JsonOption
from jaxgrad.cli.progress import counting_bar, stoppable
from jaxgrad.errors import JaxgradError


def port(
    subject: Annotated[
        str,
        typer.Argument(metavar="FILE.py:FUNCTION", help="A function that returns (fn, params, *inputs)."),
    ],
    torch: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:MODULE", help="An nn.Module, its class, or a function that returns one."),
    ] = None,
    jax: Annotated[str | None, typer.Option(metavar="FILE.py:FUNCTION", help="Another JAX function instead.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="The weights' mapping, as --save-mapping wrote it.")] = None,
    save_mapping: Annotated[Path | None, typer.Option(help="Write which leaf is made from which tensor.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the numbers that both programs are given.")] = 0,
    json: JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with both programs side by side.")] = None,
) -> None:
    """Find the first place where a JAX function and a torch module part; exit 1 where they do.

    Example: jaxgrad port model.py:case --torch reference.py:Model
    """
    from jaxgrad import files
    from jaxgrad import port as porting

    if (torch is None) == (jax is None):
        raise JaxgradError("give the other program: --torch FILE.py:MODULE or --jax FILE.py:FUNCTION")
    fn, params, *inputs = subject_named(subject)
    given = None if mapping is None else porting.read(mapping)
    with stoppable() as stop, counting_bar("steps") as progress:
        if torch is not None:
            stop.found = porting.compare(
                fn, params, *inputs, torch=module_named(torch), mapping=given, seed=seed, progress=progress
            )
        else:
            stop.found = porting.compare(fn, params, *inputs, jax=_named(str(jax)), seed=seed, progress=progress)
    verdict = stop.found if isinstance(stop.found, porting.Verdict) else None
    placed = stop.found if verdict is None else verdict.mapping
    if stop.found is not None:
        print(stop.found)
    if save_mapping is not None and placed is not None:
        placed.save(save_mapping)
    if json is not None and verdict is not None:
        files.write_json(json, verdict.as_json())
    if html is not None and verdict is not None:
        files.write_text(html, verdict.html())
    stop.exit(0 if verdict is not None and verdict.agrees else 1)


def subject_named(name: str) -> tuple[Any, ...]:
    """What the function that `FILE.py:FUNCTION` names returns: a function, its parameters and its inputs.

    Raises `JaxgradError` where there is no such function, it raises, or it returns something else.
    """
    made = _called(name, _named(name))
    if not (isinstance(made, tuple) and len(made) >= 2 and callable(made[0])):
        raise JaxgradError(f"{name} must return (fn, params, *inputs): the function, its parameters and its inputs")
    return made


def module_named(name: str) -> Any:
    """The torch module that `FILE.py:MODULE` names, or that a class or a function of that name makes.

    Raises `JaxgradError` where there is no such name, or it raises.
    """
    found = _named(name)
    # A class or a function makes the module; a module is callable too.
    return found if hasattr(found, "named_parameters") and not isinstance(found, type) else _called(name, found)


def _called(name: str, make: Any) -> Any:
    """What a function makes that takes no arguments. Raises `JaxgradError` where it raises."""
    from jaxgrad.port.values import raised

    try:
        return make()
    except Exception as error:
        raise JaxgradError(f"{name}, called without arguments, {raised(error)}") from error


def _named(name: str) -> Any:
    """What `FILE.py:NAME` names. Raises `JaxgradError` where there is no such file or name."""
    from jaxgrad import modules

    path, _, attribute = name.rpartition(":")
    if not path or not attribute:
        raise JaxgradError(f"{name!r} is not FILE.py:NAME; write for example model.py:case")
    with modules.imported(path) as module:
        found = getattr(module, attribute, None)
    if not callable(found):
        raise JaxgradError(f"{path} has no function or module {attribute!r}")
    return found
