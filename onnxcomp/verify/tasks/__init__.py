"""Does the new model decide as the original does? Agreement by the task, guessed from the model and its answers."""

from onnxcomp.verify.tasks.base import KINDS, Measure, Seen
from onnxcomp.verify.tasks.guess import Tasks, look, parse_task

__all__ = ["KINDS", "Measure", "Seen", "Tasks", "look", "parse_task"]
