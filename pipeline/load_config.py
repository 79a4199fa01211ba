"""Configurations: a YAML file and `key=value` words, merged strictly into the frozen dataclasses."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.error import MarkedYAMLError

from gwm_model.errors import first_line
from pipeline.config import EXTENDS
from pipeline.errors import GwmError
from pipeline.storage_errors import without_secrets

T = TypeVar("T")
Scalar = str | int | float | bool | None

NOT_PART_OF_A_RESULT = (
    "output",
    "initial_model",
    "adapt",
    "adaptation",
    "placement",
    "tracking",
    "report",
    "retry_quarantined",
    "write_overlays",
    "decode.timeout_s",
    "decode.max_bytes",
    "cache",
    "num_workers",
    "max_bad_batches",
    "checkpoint_every_steps",
    "log_every_steps",
    "picture_every_steps",
)
"""Values that say where and how a job runs, what is drawn of its result, or which model it uses: a model counts by its
content, not by its place."""

MAX_YAML_BYTES = 2**20
MAX_YAML_DEPTH = 16
"""A configuration has three levels, and a list."""


def load_config(cls: type[T], path: str | None, overrides: Sequence[str]) -> T:
    """Defaults, then the YAML file, then `key=value` words, as a frozen dataclass.

    A file that says `extends: OTHER.yaml`, a path beside it, differs from that file by what it says.

    Raises GwmError with one sentence for an unknown key, a wrong value, or a value that is missing.
    """
    tree = _merged(cls, path, overrides)
    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        config = None if missing else OmegaConf.to_object(tree)
    except (OmegaConfBaseException, ValueError) as error:
        raise GwmError(f"Impossible value: {first_line(error)}.") from error
    if missing:
        words = " and ".join(f"{key}=" for key in missing)
        verb = "is" if len(missing) == 1 else "are"
        where = f"in {path} or on the command line" if path else "on the command line"
        raise GwmError(f"{words} {verb} missing: give {'it' if verb == 'is' else 'them'} {where}.")
    return cast("T", config)


def config_yaml(cls: type[Any], path: str | None, overrides: Sequence[str]) -> str:
    """The resolved configuration as YAML, to be shown: without secrets in URLs; values still to be given read `???`."""
    return without_secrets(str(OmegaConf.to_yaml(_merged(cls, path, overrides))))


def extended(cls: type[T], config: object, **values: object) -> T:
    """The configuration as one of a class with more fields, which have these values."""
    inherited = {item.name: getattr(config, item.name) for item in dataclasses.fields(cast("Any", config))}
    return cls(**inherited, **values)


def flatten(config: object) -> dict[str, Scalar]:
    """All values under dotted keys; a sequence is written as JSON."""
    return dict(_leaves(dataclasses.asdict(cast("Any", config)), ""))


def fingerprint(config: object, *, exclude: Collection[str] = NOT_PART_OF_A_RESULT) -> str:
    """Hex digest of the values that decide a result: the same over runs, machines and Python versions."""
    return digest(result_values(config, exclude=exclude))


def result_values(config: object, *, exclude: Collection[str] = NOT_PART_OF_A_RESULT) -> dict[str, Scalar]:
    """The flattened values without the excluded keys and sections."""
    kept = flatten(config).items()
    return {key: value for key, value in kept if key not in exclude and key.split(".")[0] not in exclude}


def digest(values: Mapping[str, Scalar]) -> str:
    """The first 128 bits of the SHA-256 of sorted JSON, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _merged(cls: type[Any], path: str | None, overrides: Sequence[str]) -> Any:
    tree = OmegaConf.structured(cls)
    for file, values in _layers(path, ()) if path is not None else ():
        tree = _merge(cls, tree, values, where=file)
    for word in overrides:
        tree = _merge(cls, tree, _nested(cls, word), where=f"'{word}'")
    return tree


def _layers(path: str, extending: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's values, after those of the files that it extends."""
    if path in extending:
        raise GwmError(f"The configuration file {path} extends itself.")
    values = _read_yaml(path)
    base = values.pop(EXTENDS, None)
    if base is not None:
        yield from _layers(str(Path(path).parent / str(base)), (*extending, path))
    yield path, values


def _merge(cls: type[Any], tree: Any, values: dict[str, Any], *, where: str) -> Any:
    _check_keys(cls, values, _root_name(cls), "")
    try:
        return OmegaConf.merge(tree, OmegaConf.create(values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        what = f"Wrong value for '{key}'" if key else "Wrong value"
        raise GwmError(f"{what} in {where}: {first_line(error)}.") from error


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_YAML_BYTES).decode()
    except FileNotFoundError as error:
        raise GwmError(f"There is no configuration file {path}.") from error
    except (OSError, ValueError) as error:
        raise GwmError(f"Cannot read the configuration file {path}: {error}.") from error
    try:
        _check_yaml(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise GwmError(f"{path} is not a configuration: expected lines of the form 'key: value'.")
        # OmegaConf's loader reads 1e-5 as a number, which plain YAML 1.1 takes for a string.
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise GwmError(f"{path} is not valid YAML{line}: {problem}.") from error
    return cast("dict[str, Any]", OmegaConf.to_container(loaded))


def _check_yaml(text: str) -> None:
    """YAMLError for what would grow without bound when it is read: references and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise MarkedYAMLError(problem="references (*name) are not taken", problem_mark=event.start_mark)
        if depth > MAX_YAML_DEPTH:
            raise MarkedYAMLError(problem="it is nested too deeply", problem_mark=event.start_mark)


def _nested(cls: type[Any], word: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; a value for a text field is taken literally (globs, numbers, brackets)."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise GwmError(f"Expected key=value, got '{word}'.")
    value: Any = text
    if not _is_text(cls, key):
        try:
            _check_yaml(text)
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise GwmError(f"Cannot read the value of '{word}': {first_line(error)}.") from error
        value = cast("dict[str, Any]", value)["value"]
    elif text in ("null", ""):
        value = None
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast("dict[str, Any]", value)


def _is_text(cls: type[Any], key: str) -> bool:
    """Whether the field under a dotted key is a string."""
    kind: Any = cls
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind is str or str in get_args(kind)


def _check_keys(cls: type[Any], values: Mapping[Any, Any], command: str, prefix: str) -> None:
    """Raises GwmError at the first unknown key, with the nearest known one."""
    known = get_type_hints(cls)
    for key, value in values.items():
        if key not in known:
            raise GwmError(_unknown_key(list(known), str(key), command, prefix))
        if not dataclasses.is_dataclass(known[key]):
            continue
        if not isinstance(value, Mapping):
            inner = next(iter(get_type_hints(known[key])))
            raise GwmError(
                f"'{prefix}{key}' in {command} is a section, not a value: "
                f"name a key of it, for example {prefix}{key}.{inner}=."
            )
        _check_keys(cast("type[Any]", known[key]), value, command, f"{prefix}{key}.")


def _unknown_key(known: list[str], key: str, command: str, prefix: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    there = f"the keys of {prefix.rstrip('.') or command} are {', '.join(sorted(known))}."
    hint = f"did you mean '{prefix}{near[0]}'?" if near else there
    return f"Unknown key '{prefix}{key}' in {command}: {hint}"


def _root_name(cls: type[Any]) -> str:
    return cls.__name__.removesuffix("Config").lower()


def _leaves(value: object, prefix: str) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        yield prefix, json.dumps(value)
    elif value is None or isinstance(value, (str, int, float, bool)):
        yield prefix, value
    else:
        yield prefix, str(value)
