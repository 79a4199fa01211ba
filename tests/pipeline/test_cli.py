import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import cli
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.load_config import load_config

PAGE_OPTIONS = {"--config", "--print-config", "--dry-run", "--debug", "--help"}
WORDS = ["videos=in", "output=out"]


def gwm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words], capture_output=True, text=True, check=False
    )


def script(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def page(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[PrepareConfig]:
    """Replaces `gwm prepare` behind the command line; returns the configurations it was called with."""
    calls: list[PrepareConfig] = []

    def prepare(config: PrepareConfig) -> Any:
        calls.append(config)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(cli, "_prepare", prepare)
    return calls


def test_help_and_wrong_words_need_no_heavy_library() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "codes = [main(['--help']), main([]), main(['prepare', '--help']), main(['prepare', 'vidoes=x'])]\n"
        "print([codes, sorted({'torch', 'ray', 'mlflow', 'timm', 'av'} & set(sys.modules))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[[0, 0, 0, 1], []]"
    for command in ("prepare", "train", "segment", "evaluate", "export", "demo", "verify"):
        assert command in done.stdout


def test_the_four_commands_have_the_same_options() -> None:
    from typer.main import get_command

    group: Any = get_command(cli.app)
    for name in ("prepare", "train", "segment", "evaluate"):
        options = {word for parameter in group.commands[name].params for word in parameter.opts}
        assert {word for word in options if word.startswith("--")} | {"--help"} == PAGE_OPTIONS


def test_version() -> None:
    done = gwm("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("gwm ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", *WORDS, "estimate_flow.gap=1"], "did you mean 'estimate_flow.gaps'?"),
        (["prepare"], "output= and videos= are missing"),
        (["prepare", "--confg", "x"], "--confg"),
        (["prepaer"], "prepaer"),
        (["verify"], "DATASET"),
        (["verify", "/nonexistent"], "is not a dataset"),
        (["prepare", "--config", "/nonexistent.yaml"], "There is no configuration file /nonexistent.yaml."),
        (
            ["prepare", "--dry-run", "videos=/nonexistent", "output=out"],
            "There is no file or folder /nonexistent.",
        ),
    ],
)
def test_a_mistake_gets_one_sentence_and_1(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 1
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("gwm: ")
    assert said in line
    assert captured.out == ""


@pytest.mark.parametrize(("quarantined", "errors", "code"), [(0, 0, 0), (3, 0, 2), (0, 1, 2)])
def test_units_in_quarantine_and_images_in_error_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, quarantined: int, errors: int, code: int
) -> None:
    units = {"done": 1, "skipped": 0, "quarantined": quarantined}
    calls = page(monkeypatch, {"units": units, "errors": errors})
    assert cli.main(["prepare", *WORDS, "decode.stride=3"]) == code
    assert calls == [load_config(PrepareConfig, None, [*WORDS, "decode.stride=3"])]


def test_errors_are_one_sentence_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page(monkeypatch, GwmError("the disk is full."))
    assert cli.main(["prepare", *WORDS]) == 1
    assert capfd.readouterr().err == "gwm: the disk is full.\n"
    page(monkeypatch, ZeroDivisionError("division\nby zero"))
    assert cli.main(["prepare", *WORDS]) == 1
    told = "gwm: unexpected ZeroDivisionError: division; run again with --debug for the traceback.\n"
    assert capfd.readouterr().err == told
    assert cli.main(["prepare", *WORDS, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_print_config_and_dry_run_do_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = page(monkeypatch, {})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"12345")
    words = [f"videos={tmp_path}/in", f"output={tmp_path}/out"]
    assert cli.main(["prepare", "--print-config", "videos=x"]) == 0
    assert "output: ???" in capfd.readouterr().out
    assert cli.main(["prepare", "--dry-run", *words]) == 0
    assert '"sources": {"video": 1}, "bytes": 5' in capfd.readouterr().out
    assert calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_config_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = page(monkeypatch, {})
    (tmp_path / "prepare.yaml").write_text("videos: a\ndecode: {stride: 4}\n")
    assert cli.main(["prepare", "--config", str(tmp_path / "prepare.yaml"), "output=b"]) == 0
    assert (calls[0].videos, calls[0].output, calls[0].decode.stride) == ("a", "b", 4)


def test_verify_answers_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "flow")
    dataset = Dataset.open(url, kind="flow", config=load_config(PrepareConfig, None, WORDS), schema_version=1)
    dataset.write_shard("a", pa.table({"x": [1]}).replace_schema_metadata({"source": "a.mp4"}))
    assert cli.main(["verify", url]) == 0
    Path(dataset.shard_url("a")).write_bytes(b"broken")
    assert cli.main(["verify", url]) == 1
    assert "a.parquet: cannot be read" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words", [["--version"], ["prepare", "--print-config"], ["schema", "train"], ["--help"]]
)
def test_a_reader_that_has_seen_enough_gets_no_traceback(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_that_a_rerun_continues(number: signal.Signals) -> None:
    process = script(
        "import signal, sys; from pipeline import cli\n"
        "def prepare(config):\n"
        "    print('ready', flush=True)\n"
        "    while True: signal.pause()\n"
        "cli._prepare = prepare\n"
        "sys.exit(cli.main(['prepare', 'videos=a', 'output=b']))"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "gwm: interrupted; the same command goes on where this one stopped.\n"
