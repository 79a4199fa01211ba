"""What a command costs before it does anything."""

import statistics
import subprocess
import sys
import time

from common import report

ROUNDS = 7


def seconds(*words: str) -> float:
    """Median wall seconds of a command that ends well."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", *words], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Prints one JSON line for each target."""
    report("startup", "gwm --help", "seconds", seconds("--help"), at_most=0.5)
    for command in ("prepare", "train", "segment", "evaluate"):
        required = {
            "prepare": ["videos=a", "output=b"],
            "train": ["flow=a", "output=b"],
            "segment": ["images=a", "model=b", "output=c"],
            "evaluate": ["data=a", "masks=b", "output=c"],
        }[command]
        case = f"gwm {command} --print-config"
        report("startup", case, "seconds", seconds(command, *required, "--print-config"), at_most=1.0)


if __name__ == "__main__":
    main()
