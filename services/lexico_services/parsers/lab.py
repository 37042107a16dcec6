"""`train` and `eval`, whose own options are slow to import: they come with their command alone."""

from __future__ import annotations

from typing import Any

from lexico_services.parsers.calls import LONG_S, add_servers
from lexico_services.parsers.extras import needs
from lexico_services.parsers.service import LEVEL

LAB: frozenset[str] = frozenset({"train", "eval"})


def add_lab_commands(commands: Any, full: frozenset[str]) -> None:
    """
    Args:
        commands: where they go.
        full: those of `LAB` that get their own options.

    Raises:
        ConfigurationError: a package that the options of one of them take is not installed.
    """
    training = commands.add_parser("train", help="learn a dictionary set for a model")
    training.set_defaults(command="train", extra="train")
    training.add_argument("--log-level", **LEVEL, default="warning")
    training.add_argument("--json", action="store_true", help="print one JSON document")
    if "train" in full:
        with needs("train"):
            from lexico_lab.training.options import add_arguments
        add_arguments(training)
        training.add_argument("--ray-address", default="", help="join this cluster")
        training.add_argument(
            "--register",
            action="store_true",
            help="register each set, and have nodes of the model take it (role admin)",
        )
        training.add_argument(
            "--any-weights",
            action="store_true",
            help="with --register: also for other weights of this shape, such as with an adapter",
        )
        training.add_argument(
            "--shared", action="store_true", help="with --register: for every tenant (operator)"
        )
        add_servers(training, wait=LONG_S)

    evaluation = commands.add_parser("eval", help="report what codecs do to a model's predictions")
    evaluation.set_defaults(command="eval", extra="train")
    evaluation.add_argument("--log-level", **LEVEL, default="warning")
    evaluation.add_argument("--json", action="store_true", help="print one JSON document")
    if "eval" in full:
        with needs("train"):
            from lexico_lab.evaluation.options import add_arguments as add_eval_arguments
        add_eval_arguments(evaluation)
