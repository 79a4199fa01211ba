import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig, SegmentConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.load_config import config_yaml, fingerprint, flatten, load_config

NEEDED = ["videos=in", "output=out"]


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def sentence(*words: str, path: str | None = None) -> str:
    with pytest.raises(GwmError) as raised:
        load_config(PrepareConfig, path, words)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "videos: a\noutput: b\ndecode: {stride: 2, height_px: 240}\n")
    config = load_config(
        PrepareConfig, path, ["decode.stride=3", "estimate_flow.gaps=[1,-1,2]", "decode.fps=null"]
    )
    assert (config.videos, config.decode.stride, config.decode.height_px) == ("a", 3, 240)
    assert config.estimate_flow.gaps == (1, -1, 2)
    assert config.estimate_flow.iterations == PrepareConfig().estimate_flow.iterations


@pytest.mark.parametrize(
    "text", ["*.mp4", "0012", "1e5", "[a]", "a=b", "s3://b/k:v", "null.mp4", "a: b", "# no"]
)
def test_text_values_are_taken_literally(text: str) -> None:
    assert load_config(PrepareConfig, None, [f"videos={text}", "output=o"]).videos == text


def test_numbers_in_yaml_and_in_words_read_alike(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "flow: f\noutput: o\noptimizer:\n  learning_rate: 1e-5\n")
    assert load_config(TrainConfig, path, []).optimizer.learning_rate == 1e-5
    words = ["flow=f", "output=o", "optimizer.learning_rate=1e-5"]
    assert load_config(TrainConfig, None, words).optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "estimate_flow.gap=[1]",
            "Unknown key 'estimate_flow.gap' in prepare: did you mean 'estimate_flow.gaps'?",
        ),
        ("outptu=x", "Unknown key 'outptu' in prepare: did you mean 'output'?"),
        ("decode.zzz=1", "Unknown key 'decode.zzz' in prepare: the keys of decode are clip_frames, fps,"),
        ("decode=1", "'decode' in prepare is a section"),
        ("decode.stride=fast", "Wrong value for 'decode.stride'"),
        ("estimate_flow.estimator=raft", "expected one of ['raft_large', 'raft_small', 'dis']"),
        ("estimate_flow.gaps=[1,2", "Cannot read the value of 'estimate_flow.gaps=[1,2'"),
        ("decode.stride", "Expected key=value, got 'decode.stride'."),
        ("decode.stride=0", "stride must be at least 1, not 0"),
        ("estimate_flow.gaps=[1,1]", "gaps must be different and not 0"),
        ("estimate_flow.gaps=[0]", "gaps must be different and not 0"),
        ("placement.estimate_flow.num_actors=0", "num_actors must be at least 1"),
    ],
)
def test_a_wrong_word_gets_one_sentence(word: str, said: str) -> None:
    assert said in sentence(*NEEDED, word)


def test_stride_and_fps_exclude_each_other() -> None:
    assert "stride and fps exclude each other" in sentence(*NEEDED, "decode.stride=2", "decode.fps=5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("estimate_flow: {gap: [1]}", "did you mean 'estimate_flow.gaps'?"),
        ("videos: a\noutput: b\ndecode:\n  stride: fast\n", "Wrong value for 'decode.stride' in "),
        ("decode: 3", "'decode' in prepare is a section"),
        ("a: [", "is not valid YAML (line "),
        ("- 1\n- 2\n", "is not a configuration"),
        ("", "output= and videos= are missing: give them in "),
    ],
)
def test_a_wrong_file_gets_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    assert said in sentence(path=yaml_file(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert sentence(path=str(tmp_path / "no.yaml")).startswith("There is no configuration file")
    assert sentence(path=str(tmp_path)).startswith("Cannot read the configuration file")


def test_missing_values_are_named() -> None:
    assert sentence("videos=a") == "output= is missing: give it on the command line."


def test_yaml_shows_what_is_resolved_and_what_is_missing() -> None:
    text = config_yaml(PrepareConfig, None, ["videos=a", "decode.stride=7"])
    assert "videos: a\n" in text
    assert "output: ???\n" in text
    assert "  stride: 7\n" in text


def test_fingerprint_follows_results_only() -> None:
    def of(*words: str) -> str:
        return fingerprint(load_config(PrepareConfig, None, ["videos=a", "output=b", *words]))

    assert of() == of("output=elsewhere", "placement.estimate_flow.num_gpus=1", "tracking.experiment=x")
    assert of() == of("retry_quarantined=true")
    assert len({of(), of("decode.stride=2"), of("estimate_flow.gaps=[-1,1]"), of("videos=c")}) == 4


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from pipeline.config import SegmentConfig; from pipeline.load_config import *;"
        "print(fingerprint(load_config(SegmentConfig, None, ['images=a', 'model=m', 'output=o'])))"
    )
    config = load_config(SegmentConfig, None, ["images=a", "model=m", "output=o"])
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == fingerprint(config)


def test_flatten_has_dotted_keys_and_plain_values() -> None:
    flat = flatten(load_config(PrepareConfig, None, NEEDED))
    assert flat["estimate_flow.gaps"] == "[1, -1]"
    assert flat["decode.fps"] is None
    assert flat["placement.plan_clips.num_cpus"] == 0.25
    assert all(value is None or isinstance(value, str | int | float | bool) for value in flat.values())


def test_a_file_differs_from_the_one_it_extends_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("videos: a\ndecode: {stride: 2, height_px: 240}\n")
    (tmp_path / "sub" / "middle.yaml").write_text("extends: ../base.yaml\noutput: b\ndecode: {stride: 3}\n")
    (tmp_path / "sub" / "row.yaml").write_text("extends: middle.yaml\noutput: c\n")
    config = load_config(PrepareConfig, str(tmp_path / "sub" / "row.yaml"), ["decode.clip_frames=5"])
    assert (config.videos, config.output) == ("a", "c")
    assert (config.decode.stride, config.decode.height_px, config.decode.clip_frames) == (3, 240, 5)


def test_values_come_from_the_environment_where_a_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file(
        tmp_path,
        "videos: ${oc.env:GWM_ANY_VIDEOS}\noutput: ${oc.env:GWM_ANY_OUTPUT,flow}\n"
        "decode: {stride: '${oc.env:GWM_ANY_STRIDE}'}\nretry_quarantined: ${oc.env:GWM_ANY_RETRY,true}\n",
    )
    monkeypatch.setenv("GWM_ANY_VIDEOS", "https://user:secret@host/videos")
    monkeypatch.setenv("GWM_ANY_STRIDE", "3")
    config = load_config(PrepareConfig, path, [])
    assert (config.videos, config.output) == ("https://user:secret@host/videos", "flow")
    assert config.decode.stride == 3
    assert config.retry_quarantined is True
    assert load_config(PrepareConfig, path, ["decode.stride=2"]).decode.stride == 2
    shown = config_yaml(PrepareConfig, path, [])
    assert "videos: ${oc.env:GWM_ANY_VIDEOS}\n" in shown
    assert "secret" not in shown
    monkeypatch.setenv("GWM_ANY_STRIDE", "fast")
    assert "Value 'fast' of type 'str' could not be converted to Integer" in sentence(path=path)
    monkeypatch.delenv("GWM_ANY_STRIDE")
    assert "Environment variable 'GWM_ANY_STRIDE' not found" in sentence(path=path)


def test_no_variable_replaces_a_value_that_does_not_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWM_DECODE__STRIDE", "5")
    monkeypatch.setenv("GWM_OUTPUT", "elsewhere")
    assert load_config(PrepareConfig, None, NEEDED).decode.stride == 1
    assert load_config(PrepareConfig, None, NEEDED).output == "out"


def test_a_file_that_extends_a_missing_wrong_or_its_own_file_gets_one_sentence(tmp_path: Path) -> None:
    assert sentence(path=yaml_file(tmp_path, "extends: no.yaml")).startswith("There is no configuration file")
    assert "extends itself" in sentence(path=yaml_file(tmp_path, "extends: config.yaml"))
    (tmp_path / "base.yaml").write_text("vidoes: a\n")
    assert "did you mean 'videos'?" in sentence(path=yaml_file(tmp_path, "extends: base.yaml"))
