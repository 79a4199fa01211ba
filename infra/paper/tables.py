"""Runs the paper's tables on the data sets that are there, and writes ours beside the published figures.

Only `gwm` commands are called, so an interrupted run goes on where it was: what is prepared, trained and scored stays.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
CONFIGURATIONS = PROJECT / "conf" / "paper"
PUBLISHED = Path(__file__).parent / "published.yaml"
FRAME_FOLDERS = {"DAVIS2016": "JPEGImages/480p", "SegTrackv2": "JPEGImages", "FBMS": "JPEGImages"}
NAMES = {"DAVIS2016": "davis2016", "SegTrackv2": "segtrackv2", "FBMS": "fbms59"}
IMAGE_SETS = ("CUB", "DUTS", "ECSSD", "OMRON")
JOINT = "joint"
"""All videos of the three sets as one: what Table 3's model is trained on."""
PROTOCOLS = ("label_free", "paper", "oracle")
"""Columns of these names are J under the protocol; others are scores of images."""
DONE = "summary.json"
"""In the output of a command that has ended."""
PARTLY = 2
"""Exit code of a command that is done but for what is in quarantine."""

SMOKE_SEQUENCES, SMOKE_FRAMES = 2, 8
SMOKE_BACKBONE = {"name": "vit_tiny_patch16_224", "weights": "none", "patch_stride_px": "8"}
SMOKE = {
    "prepare": ["estimate_flow.estimator=dis", "decode.height_px=64"],
    "train": [
        *(f"segmenter.backbone.{key}={value}" for key, value in SMOKE_BACKBONE.items()),
        *("segmenter.height_px=64", "segmenter.width_px=112", "segmenter.hidden_channels=16"),
        *("objective.height_px=60", "objective.width_px=108", "num_steps=4", "batch_size=2"),
    ],
    "evaluate": [
        *(f"merge.backbone.{key}={value}" for key, value in SMOKE_BACKBONE.items()),
        *("merge.height_px=64", "anchor_frames=4"),
    ],
}
"""Words that make each command run in seconds: a network of noise, four steps."""
GPU = {
    "prepare": ["placement.estimate_flow.num_gpus=1"],
    "train": ["placement.train_worker.num_gpus=1"],
    "evaluate": ["placement.score_sequence.num_gpus=1"],
}

Words = dict[str, list[str]]


class CommandError(Exception):
    """A gwm command that failed, with its last line."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The data that is there, where results go, and the words that every command gets."""

    data: Path
    output: Path
    words: Words

    def videos(self) -> list[str]:
        """The video sets below the data root."""
        return [name for name, folder in FRAME_FOLDERS.items() if (self.data / name / folder).is_dir()]

    def image_sets(self) -> list[str]:
        """The sets of photographs below the data root."""
        return [name for name in IMAGE_SETS if (self.data / name / "images").is_dir()]

    def missing(self) -> list[str]:
        """The sets of the tables that are not there."""
        return [
            name for name in (*FRAME_FOLDERS, *IMAGE_SETS) if name not in [*self.videos(), *self.image_sets()]
        ]

    def score(self, row: dict[str, Any], data_set: str) -> dict[str, Any]:
        """The summary of a row's model on a data set: prepared, trained and scored, or what was done before."""
        trained_on = JOINT if data_set in IMAGE_SETS else data_set
        model = self.output / "models" / row["train"] / trained_on
        scores = self.output / "scores" / f"{row['train']}-{row['evaluate']}" / data_set
        if not (scores / DONE).exists():
            self.gwm("train", row["train"], model, f"flow={self.prepare(trained_on)}")
            words = [f"data={self.data / data_set}", f"model={model}"]
            self.gwm("evaluate", row["evaluate"], scores, f"dataset={NAMES.get(data_set, 'images')}", *words)
        summary: dict[str, Any] = json.loads((scores / DONE).read_text())
        return summary

    def prepare(self, data_set: str) -> Path:
        """The flow of a data set, or of all videos together."""
        flow = self.output / "flow" / data_set
        if data_set == JOINT:
            videos = self.output / "joint.txt"
            folders = [self.data / name / FRAME_FOLDERS[name] for name in self.videos()]
            videos.write_text("".join(f"{video}\n" for folder in folders for video in subfolders(folder)))
        else:
            videos = self.data / data_set / FRAME_FOLDERS[data_set]
        self.gwm("prepare", "prepare_fbms" if data_set == "FBMS" else "prepare", flow, f"videos={videos}")
        return flow

    def gwm(self, command: str, config: str, output: Path, *words: str) -> None:
        """Runs a command, or goes on with one; what has ended is left alone."""
        if (output / DONE).exists():
            return
        file = CONFIGURATIONS / f"{config}.yaml"
        given = [*words, f"output={output}", *self.words[command]]
        call = [sys.executable, "-m", "pipeline", command, "--config", str(file), *given]
        print("gwm", *call[3:], file=sys.stderr, flush=True)
        done = subprocess.run(call, check=False, stderr=subprocess.PIPE, stdout=sys.stderr, text=True)
        if done.returncode not in (0, PARTLY):
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise CommandError(lines[-1] if lines else f"gwm {command} ended with {done.returncode}")


def smoke_copy(data: Path, copy: Path) -> None:
    """A few frames of a few sequences, and a few images, of every data set that is there."""
    for name, folder in FRAME_FOLDERS.items():
        annotations = folder.replace("JPEGImages", "Annotations")
        for truth in subfolders(data / name / annotations)[:SMOKE_SEQUENCES]:
            copy_first(truth, copy / name / annotations / truth.name)
            copy_first(data / name / folder / truth.name, copy / name / folder / truth.name)
    for name, folder in itertools.product(IMAGE_SETS, ("images", "masks")):
        copy_first(data / name / folder, copy / name / folder)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none where it is not there."""
    return sorted(path for path in folder.glob("*") if path.is_dir())


def copy_first(source: Path, target: Path) -> None:
    """The first files of a folder, if it is there."""
    for file in sorted(source.glob("*"))[:SMOKE_FRAMES]:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / file.name)


def table_lines(study: Study, table: dict[str, Any]) -> Iterator[str]:
    """One table in Markdown: for each column the published figure and ours."""
    columns = [(data_set, score) for data_set, score in table["columns"]]
    heads = [f"{data_set} {score}" for data_set, score in columns]
    yield from (f"## {table['title']}", "")
    yield "| method | " + " | ".join(f"{head}, published | ours" for head in heads) + " | source |"
    yield "|---|" + "---|---|" * len(heads) + "---|"
    notes: list[str] = []
    for row in table["rows"]:
        ours = [our_figure(study, row, *column, notes) for column in columns]
        cells = [f"{figure(value)} | {mine}" for value, mine in zip(row["published"], ours, strict=True)]
        yield f"| {row['method']} | " + " | ".join(cells) + f" | {row.get('source', '—')} |"
    yield from ("", *(f"- {note}" for note in dict.fromkeys(notes)), "")


def our_figure(study: Study, row: dict[str, Any], data_set: str, score: str, notes: list[str]) -> str:
    """A score in per cent, or a dash; what the reader must know is added to the notes."""
    if "train" not in row or data_set in study.missing() or not study.videos():
        return "—"
    try:
        summary = study.score(row, data_set)
    except CommandError as error:
        notes.append(f"{row['method']} on {data_set} failed: {error}")
        return "failed"
    if summary["missing_sequences"]:
        absent = len(summary["missing_sequences"])
        notes.append(f"{data_set}: {summary['frames']} frames were scored; {absent} sequences are not there.")
    measured = summary["protocols"][score]["j_mean"] if score in PROTOCOLS else summary[score]
    return figure(100 * measured)


def figure(value: float | None) -> str:
    """A figure with one decimal, or a dash."""
    return "—" if value is None else f"{value:.1f}"


def page_lines(study: Study, wanted: Sequence[int], *, smoke: bool) -> Iterator[str]:
    """The whole page."""
    published = yaml.safe_load(PUBLISHED.read_text())
    yield from ("# The paper's tables", "")
    if smoke:
        yield from (
            "**A smoke run: a network of noise, four steps, a few frames. Our figures mean nothing.**",
            "",
        )
    yield "Per cent. `—`: not published, not found in a source that could be checked, or not run."
    yield "Ours: conf/paper, the last iterate; what differs from the paper and its code is in gwm_model/README.md."
    yield from (
        f"{command} also got: `{' '.join(words)}`." for command, words in study.words.items() if words
    )
    if study.missing():
        yield f"Not below {study.data}: {', '.join(study.missing())}."
    if study.videos() != list(FRAME_FOLDERS):
        yield f"The joint model was trained on {', '.join(study.videos()) or 'nothing'}."
    yield ""
    for number in wanted:
        yield from table_lines(study, published["tables"][number - 1])
    yield from ("Sources:", "", *(f"- {name}: {text}" for name, text in published["sources"].items()), "")


def main() -> None:
    """Reads the command line, runs, writes and prints tables.md."""
    parser = argparse.ArgumentParser(prog="paper-tables", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of DAVIS2016/, SegTrackv2/, FBMS/, CUB/ ..."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gwm-paper"), help="flow, models, scores, tables.md"
    )
    parser.add_argument("--tables", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--smoke", action="store_true", help="a few frames and steps: proves that it runs")
    parser.add_argument("--gpu", action="store_true", help="one GPU for flow, training and scoring")
    asked = parser.parse_args()
    data, output = asked.data.resolve(), asked.output.resolve()
    words: Words = {command: [] for command in GPU}
    output.mkdir(parents=True, exist_ok=True)
    if asked.smoke:
        smoke_copy(data, output / "data")
        data, words = output / "data", SMOKE
    if asked.gpu:
        words = {command: [*words[command], *GPU[command]] for command in GPU}
    study = Study(data=data, output=output, words=words)
    page = "\n".join(page_lines(study, asked.tables, smoke=asked.smoke))
    (output / "tables.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
