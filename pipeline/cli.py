"""The command line: `gwm prepare|train|segment|evaluate|export|demo|verify|schema|submit|status`.

Heavy libraries are imported by the command that needs them, so that help and a misspelt word answer at once.
Exit codes: 0 all done; 1 an error, one sentence on stderr; 2 done, but something is in quarantine;
130 interrupted.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer

from gwm_model.errors import first_line
from pipeline import help_pages
from pipeline.completion import complete_command, complete_word, see_equals_sign
from pipeline.config import EvaluateConfig, ExportConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.local_ray import keep_ray_to_this_machine
from pipeline.progress import print_result, say

T = TypeVar("T")

DONE, FAILED, PARTIAL, INTERRUPTED = 0, 1, 2, 130

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values that replace those of the file.", autocompletion=complete_word
    ),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML file; without it, all values are words.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration only.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="The cluster's dashboard, as http://HEAD:8265.",
    ),
]

app = typer.Typer(
    name="gwm",
    help="Object segmentation learned from unlabelled video.",
    epilog=help_pages.GWM,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> int:
    """Object segmentation learned from unlabelled video."""
    if show_version:
        from pipeline.summary import version

        print_result(f"gwm {version()}\n")
    elif context.invoked_subcommand is None:
        print_result(context.get_help() + "\n")
    return DONE


@app.command(epilog=help_pages.PREPARE)
def prepare(
    words: Words = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Videos -> flow shards.

    videos= and output= are needed.
    """
    return _page_command(_prepare, PrepareConfig, words, config, print_config, dry_run, debug)


@app.command(epilog=help_pages.TRAIN)
def train(
    words: Words = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Flow shards -> segmenter.

    flow= and output= are needed.
    """
    return _page_command(_train, TrainConfig, words, config, print_config, dry_run, debug)


@app.command(epilog=help_pages.SEGMENT)
def segment(
    words: Words = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Images or videos -> mask shards.

    images=, model= and output= are needed.
    """
    return _page_command(_segment, SegmentConfig, words, config, print_config, dry_run, debug)


@app.command(epilog=help_pages.EVALUATE)
def evaluate(
    words: Words = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Masks against ground truth -> scores.

    dataset=, data=, output= and masks= or model= are needed.
    """
    return _page_command(_evaluate, EvaluateConfig, words, config, print_config, dry_run, debug)


@app.command(epilog=help_pages.EXPORT)
def export(words: Words = None, debug: Debug = False) -> int:
    """Masks, flow or a segmenter -> a format of other tools.

    format=, output= and masks=, flow= or model= are needed.
    """
    return _guarded(partial(_export, words or []), debug)


@app.command(epilog=help_pages.DEMO)
def demo(
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Where everything goes.")
    ] = "gwm-demo",
    videos: Annotated[
        str | None, typer.Option("--videos", metavar="PATH", help="Your videos instead of rendered scenes.")
    ] = None,
    debug: Debug = False,
) -> int:
    """All four commands on sample videos, with a report."""
    return _guarded(partial(_demo, output, videos), debug)


@app.command(epilog=help_pages.VERIFY)
def verify(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of flow or mask shards.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove bad files of gwm's own; a rerun makes them again.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Read every shard and compare it with the manifest.

    Where all is well, and with --repair, the manifest is written anew, with shards that it did not list.
    """
    return _guarded(partial(_verify, dataset, repair), debug)


@app.command(epilog=help_pages.SCHEMA)
def schema(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="prepare, train, segment, evaluate or export.",
            autocompletion=complete_command,
        ),
    ],
    debug: Debug = False,
) -> int:
    """The JSON Schema of a command's values, for editors."""
    return _guarded(partial(_schema, command), debug)


@app.command(epilog=help_pages.SUBMIT)
def submit(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="prepare, train, segment or evaluate.",
            autocompletion=complete_command,
        ),
    ],
    words: Words = None,
    config: ConfigFile = None,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the job's log until it ends; its exit code is ours.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="A variable of this environment that the job gets too."),
    ] = None,
    debug: Debug = False,
) -> int:
    """One of the four commands as a job on a Ray cluster.

    What runs already is not started again; --follow shows it.
    """
    return _guarded(partial(_submit, command, config, words or [], address, env or [], follow), debug)


@app.command(epilog=help_pages.STATUS)
def status(
    outputs: Annotated[
        list[str] | None, typer.Argument(metavar="[OUTPUT]", help="Datasets and models that commands write.")
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> int:
    """How far outputs are; without any, the jobs of a cluster."""
    return _guarded(partial(_status, outputs or [], address), debug)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    see_equals_sign()
    before = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        return int(
            app(args=None if arguments is None else list(arguments), prog_name="gwm", standalone_mode=False)
            or DONE
        )
    except Exception as error:
        # Typer's own complaints about options are the only ones that know how to show themselves.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        say(f"gwm: {str(message()).strip()} See gwm --help.")
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _page_command(
    page: Callable[[T], Mapping[str, Any]],
    cls: type[T],
    words: list[str] | None,
    path: str | None,
    print_config: bool,
    dry_run: bool,
    debug: bool,
) -> int:
    return _guarded(partial(_run_page, page, cls, words or [], path, print_config, dry_run), debug)


def _run_page(
    page: Callable[[T], Mapping[str, Any]],
    cls: type[T],
    words: list[str],
    path: str | None,
    print_config: bool,
    dry_run: bool,
) -> int:
    from pipeline.load_config import config_yaml, load_config

    if print_config:
        print_result(config_yaml(cls, path, words))
        return DONE
    config = load_config(cls, path, words)
    if dry_run:
        from pipeline.dry_run import describe
        from pipeline.summary import show_summary

        show_summary(describe(config), None)
        return DONE
    keep_ray_to_this_machine(config.placement.address)  # type: ignore[attr-defined]  # each command's has one
    return _exit_code(page(config))


def _guarded(command: Callable[[], int], debug: bool) -> int:
    """The command's exit code; an error becomes one sentence, and a traceback only with --debug."""
    try:
        return command()
    except KeyboardInterrupt:
        say("gwm: interrupted; the same command goes on where this one stopped.")
        return INTERRUPTED
    except Exception as error:
        if debug:
            say("".join(traceback.format_exception(error)).rstrip())
        known = _unwrap(error)
        if isinstance(known, GwmError):
            say(f"gwm: {known}")
        else:
            hint = "" if debug else "; run again with --debug for the traceback"
            say(f"gwm: unexpected {type(known).__name__}: {first_line(known)}{hint}.")
        return FAILED


def _exit_code(summary: Mapping[str, Any]) -> int:
    undone = summary.get("units", {}).get("quarantined", 0) or summary.get("errors", 0)
    return PARTIAL if undone else DONE


def _unwrap(error: Exception) -> BaseException:
    """The user's sentence inside Ray's exceptions; Ray is only asked where it was used."""
    if isinstance(error, GwmError) or "ray" not in sys.modules:
        return error
    from pipeline.placement import unwrap

    return unwrap(error)


def _on_terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: what is finished stays, and a rerun goes on."""
    raise KeyboardInterrupt


def _prepare(config: PrepareConfig) -> Mapping[str, Any]:
    from pipeline.prepare import prepare as page

    return page(config)


def _train(config: TrainConfig) -> Mapping[str, Any]:
    from pipeline.train import train as page

    return page(config)


def _segment(config: SegmentConfig) -> Mapping[str, Any]:
    if config.adapt:
        from pipeline.adapt import adapt as page
    else:
        from pipeline.segment import segment as page

    return page(config)


def _evaluate(config: EvaluateConfig) -> Mapping[str, Any]:
    from pipeline.evaluate import evaluate as page

    return page(config)


def _export(words: list[str]) -> int:
    from pipeline.export import export as write
    from pipeline.load_config import load_config

    return _exit_code(write(load_config(ExportConfig, None, words)))


def _demo(output: str, videos: str | None) -> int:
    keep_ray_to_this_machine(None)
    from pipeline.demo import demo as page

    return _exit_code(page(output=output, videos=videos))


def _verify(dataset: str, repair: bool) -> int:
    from pipeline.verify import verify as check

    return FAILED if check(dataset, repair=repair) else DONE


def _schema(command: str) -> int:
    from pipeline.config_schema import schema_json

    print_result(schema_json(command))
    return DONE


def _submit(
    command: str, path: str | None, words: list[str], address: str | None, env: list[str], follow: bool
) -> int:
    from pipeline.submit import submit as send

    return send(command, path, words, address=address, env=env, wait=follow)


def _status(outputs: list[str], address: str | None) -> int:
    from pipeline.status import show_jobs, show_outputs

    if outputs:
        show_outputs(outputs)
    else:
        show_jobs(address)
    return DONE
