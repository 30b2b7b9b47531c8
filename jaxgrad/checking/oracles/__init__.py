"""Independent answers to a question, one file for each kind of program that gives them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import Question
from jaxgrad.jaxprs.noise import Draw

# Draws to the answer of each, one after another, with its roundings drawn at random.
Samples: TypeAlias = Callable[[Sequence[Draw]], Iterable[Pulled]]


class Oracle(NamedTuple):
    """An independent program, and how it answers.

    `pull(question, second)` answers in the question's own type, with the names of its nodes; `samples` answers a
    float64 question with its roundings drawn at random, and is None where a program cannot be followed;
    `nodes(question)` names its nodes. `program` is a JAX function, where there is one, to be looked into.
    `flaw(question)` says, in a sentence, in what the oracle contradicts itself, and nothing where it does not. Each
    may raise: that is what the oracle says of a question that it cannot be asked.
    """

    name: str
    pull: Callable[[Question, bool], tuple[Pulled, list[str]]]
    samples: Callable[[Question, bool], Samples] | None
    nodes: Callable[[Question], list[str]]
    program: Callable | None = None
    flaw: Callable[[Question], str] = lambda question: ""
