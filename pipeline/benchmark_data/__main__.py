"""The command line: `python -m pipeline.benchmark_data NAME SOURCE TARGET [--partial]`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.benchmark_data.arrange import arrange
from pipeline.benchmark_data.table import RAW_DATASETS
from pipeline.cli import DONE, FAILED, INTERRUPTED, PARTIAL
from pipeline.errors import GwmError
from pipeline.progress import say


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Wrong words are one sentence, and 2 is the exit code of a part."""
        raise GwmError(f"{message}. See --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: the whole data set; 1: an error; 2: a part of it, as asked for; 130: interrupted."""
    parser = _Parser(
        prog="benchmark-data", description="A downloaded data set -> the folders that gwm reads."
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(RAW_DATASETS))
    parser.add_argument("source", metavar="SOURCE", help="folder or URL of the unpacked download")
    parser.add_argument("target", metavar="TARGET", help="folder or URL to write to")
    parser.add_argument(
        "--partial", action="store_true", help="take what is there; exit code 2 if it is not all"
    )
    try:
        words = parser.parse_args(arguments)
        whole = arrange(words.name, words.source, words.target, partly=words.partial)
    except GwmError as error:
        say(f"benchmark-data: {error}")
        return FAILED
    except KeyboardInterrupt:
        say("benchmark-data: interrupted; the same command goes on where this one stopped.")
        return INTERRUPTED
    return DONE if whole else PARTIAL


if __name__ == "__main__":
    sys.exit(main())
