"""Entry point of the `nnunet_ext` command.

Every sub-command is a module here with a docstring (its help text), `add_arguments(parser)` and
`run(arguments) -> exit status`. Modules are imported only when named, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from nnunet_ext import __version__
from nnunet_ext.errors import UsageError, UserError, one_line

COMMANDS = {
    "demo": "make a small data set, train, predict and evaluate, as a user would",
    "doctor": "check the installation and say what to do about each problem",
    "models": "list the trainers, what they need and where they come from",
    "plan": "write plans that size a network for a preprocessed data set",
    "import-weights": "fit published weights to a data set, for fine-tuning",
    "export-model": "write a trained model as one file, with its licence and checksums",
    "import-model": "install the file of a model, after checking it, where prediction finds it",
    "slurm": "cross-validations as batch jobs: write, submit, watch and resume them; or run them here",
    "predict": "nnUNetv2_predict in one process: exact fast export, bf16 on CPUs, no case lost to another",
    "predict-prompts": "segment by clicks and masks from prompt files (SAM-Med3D)",
    "clicks": "replay simulated users through the session of viewers: Dice and NSD after every interaction",
    "data": "check, clean, get and convert data sets",
    "predict-fewshot": "segment images by a few labelled ones, with no training (UniverSeg)",
    "support": "put other labelled images in the place of those a UniverSeg checkpoint carries",
    "evaluate": "Dice, HD95, NSD, ASSD and volumes of predictions against references",
    "uncertainty": "entropy, variance, agreement, GED and calibration of a prediction's samples",
    "report": "compare methods on one page: intervals, tests, plots, pictures, a methods paragraph",
}


def load(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module of a sub-command and its parser."""
    module = importlib.import_module("nnunet_ext.cli." + name.replace("-", "_"))
    parser = argparse.ArgumentParser(
        prog=f"nnunet_ext {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return 0 when all is well, 1 for a failure, 2 for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        name = argv[0]
        module, parser = load(name)
        try:
            _refuse_undecodable(argv)
            arguments = parser.parse_args(argv[1:])
            return int(module.run(arguments))
        except UserError as error:
            print(f"nnunet_ext {name}: {error}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
        except BrokenPipeError:
            # The reader, such as `head`, has seen enough. Python would complain once more while flushing at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            if error.filename is None:
                raise
            too_long = error.errno == errno.ENAMETOOLONG
            reason = "the name is too long; choose a shorter one" if too_long else error.strerror
            print(f"nnunet_ext {name}: {one_line(error.filename)}: {reason}", file=sys.stderr)
            return 2 if too_long else 1
        except KeyboardInterrupt:
            print(f"nnunet_ext {name}: interrupted", file=sys.stderr)
            return 130
    parser = argparse.ArgumentParser(
        prog="nnunet_ext",
        description="Published segmentation models beside nnU-Net v2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:17s} {text}" for name, text in COMMANDS.items())
        + "\n\nexample:\n  nnunet_ext demo\n\nEach command has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_ext {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of the commands below")
    parser.parse_args(argv)
    return 2


def _refuse_undecodable(argv: Sequence[str]) -> None:
    """Refuse words that are no UTF-8: no file of ours can hold them, and ITK ends the process at such a name.

    Raises:
        UsageError: naming the option or variable.
    """
    settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("nnUNet_", "NNUNET_EXT_"))]
    for text in [*argv, *settings]:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UsageError(f"{text} is not UTF-8; rename it, or set LC_ALL=C.UTF-8")


if __name__ == "__main__":
    sys.exit(main())
