"""`imagewam <verb>`: one entry point for everything a user runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from imagewam_jax.cli.aot import add_aot_verb
from imagewam_jax.cli.check import add_check_verb
from imagewam_jax.cli.convert import add_convert_verb
from imagewam_jax.cli.data import add_data_verbs
from imagewam_jax.cli.encode_text import add_encode_text_verb
from imagewam_jax.cli.evaluate import add_evaluate_verb
from imagewam_jax.cli.export import add_export_verb
from imagewam_jax.cli.parity import add_parity_verbs
from imagewam_jax.cli.serve import add_serve_verb
from imagewam_jax.cli.train import add_train_verb
from imagewam_jax.errors import DISK_FULL, UserError
from imagewam_jax.paths import in_home, refuse_address

# Each adds its verbs to the parser, in the order of the help.
VERBS = (
    add_check_verb,
    add_train_verb,
    add_evaluate_verb,
    add_serve_verb,
    add_data_verbs,
    add_aot_verb,
    add_encode_text_verb,
    add_convert_verb,
    add_export_verb,
    add_parity_verbs,
)


INTERRUPTED = 130  # the exit code that shells give to a program that Ctrl-C has ended
EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, told in a line, or something was found wrong; 2 wrong "
    "arguments; 75 a training run was told to stop (SIGTERM or Ctrl-C) and has saved; "
    f"{INTERRUPTED} Ctrl-C ended any other verb."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; a `UserError` is one line on stderr and exit code 1, and
    so are a full disk, and Ctrl-C with exit code 130.

    Each verb imports what it needs when it runs, so that the help needs no JAX.
    """
    # Orbax warns about things that are intended here, and logs errors that it also raises.
    logging.set_verbosity(logging.FATAL)
    parser = argparse.ArgumentParser(prog="imagewam", description=__doc__, epilog=EXIT_CODES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for add_verb in VERBS:
        add_verb(verbs)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not {"config", "passes_on"} & vars(arguments).keys():
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        _check_paths(arguments)
        return arguments.run(arguments, rest)
    except UserError as error:
        # The message says what is wrong; where it was noticed is not the user's concern.
        print(f"imagewam {arguments.verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(f"imagewam {arguments.verb}: {error}; free some space there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"imagewam {arguments.verb}: ended by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


def _check_paths(arguments: argparse.Namespace) -> None:
    """Replace a leading ~ of all paths by the home folder: shells leave it in `--to=~/weights`.

    ConfigError: it is the home folder of nobody, or a path is an address.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, _checked(value))
        elif isinstance(value, list):
            setattr(arguments, name, [_checked(v) if isinstance(v, Path) else v for v in value])


def _checked(path: Path) -> Path:
    refuse_address(path)
    return Path(in_home(str(path)))
