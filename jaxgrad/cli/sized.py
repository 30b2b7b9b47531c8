"""Options that hang on another: a command's `--model` decides which sizes it has."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from jaxgrad import models

ModelOption = Annotated[str, typer.Option("--model", help="Which model.")]

# A field of a model's sizes -> the annotation of its option and the default.
Option = Callable[[Any], tuple[Any, Any]]

_GIVEN = "jaxgrad.sizes"
_NAME = "jaxgrad.model"
_CONFIG_NAMES = {"lr": "learning_rate"}


def one(field: Any) -> tuple[Any, Any]:
    """A size as it is, within its range."""
    least = {"min": field.metadata.get("least", 1)} if type(field.default) is int else {}
    return Annotated[type(field.default), typer.Option(help=field.metadata["help"], **least)], field.default


def several(field: Any) -> tuple[Any, Any]:
    """A size's values, separated by commas."""
    return Annotated[str, typer.Option(help=f"{field.metadata['help'].rstrip('.')}; commas between.")], str(
        field.default
    )


def sized(after: str, option: Option = one) -> type[TyperCommand]:
    """The class of a command that has an option for every size of the model that its `--model` names.

    They stand after the option `after`. The command reads them by `given_sizes`. What the model's recipe has is shown
    as the default of the option of that name.
    """

    class Sized(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            ctx.meta[_NAME] = _model_in(args)
            return super().parse_args(ctx, args)

        def get_params(self, ctx: Any) -> list[Any]:
            params, name = super().get_params(ctx), ctx.meta.get(_NAME, models.DEFAULT)
            at = next(number for number, param in enumerate(params, 1) if param.name == after)
            return [*_by_recipe(params[:at], name), *_options(name, option), *_by_recipe(params[at:], name)]

        def invoke(self, ctx: Any) -> Any:
            own = [param.name for param in _options(ctx.meta[_NAME], option)]
            ctx.meta[_GIVEN] = {name: ctx.params.pop(name) for name in own}
            return super().invoke(ctx)

    return Sized


def sizes_given(context: typer.Context) -> dict[str, Any]:
    """The sizes that the command line itself gave, by name."""
    return {name: value for name, value in all_sizes(context).items() if _typed(context, name)}


def all_sizes(context: typer.Context) -> dict[str, Any]:
    """The values of all size options, by name, defaults among them."""
    return dict(context.meta[_GIVEN])


def given_options(context: typer.Context) -> set[str]:
    """The names of options that the command line itself gave, those of sizes among them."""
    return {name for name in (*context.params, *context.meta.get(_GIVEN, ())) if _typed(context, name)}


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _model_in(args: Sequence[str]) -> str:
    """The model that arguments name, the last where several do."""
    name = models.DEFAULT
    for number, arg in enumerate(args):
        if arg == "--model" and number + 1 < len(args):
            name = args[number + 1]
        elif arg.startswith("--model="):
            name = arg.partition("=")[2]
    return name


def _options(name: str, option: Option) -> list[Any]:
    """The options of a model's sizes, as typer makes them of a function's parameters."""
    made = [(field.name, *option(field)) for field in dataclasses.fields(models.sizes_of(name))]

    def command(**sizes: Any) -> None:
        """Have parameters; it is never called."""

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in made
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: annotation for name, annotation, _ in made}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return [param for param in typer.main.get_command(app).params if param.name in command.__annotations__]


def _by_recipe(params: list[Any], name: str) -> list[Any]:
    """The options with the defaults of a model's recipe. That of the default model is what they have: JAX stays out."""
    if name == models.DEFAULT:
        return params
    recipe = models.record(name).recipe
    return [_with_default(param, recipe) for param in params]


def _with_default(param: Any, recipe: Any) -> Any:
    name = _CONFIG_NAMES.get(param.name, param.name)
    if not isinstance(recipe.get(name), (int, float, str)):
        return param
    changed = copy.copy(param)
    changed.default = recipe[name]
    return changed
