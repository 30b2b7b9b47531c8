"""For readers of `docs/backprop_by_hand.ipynb`: a checker of their own derivatives, and pictures of shapes."""

from jaxgrad.learn.picture import Picture, shapes
from jaxgrad.learn.reference import Answers, answers
from jaxgrad.learn.verdict import Verdict, check, or_answer

__all__ = ["Answers", "Picture", "Verdict", "answers", "check", "or_answer", "shapes"]
