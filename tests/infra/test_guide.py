import json
import re
from pathlib import Path

from pipeline.job_metrics import COUNTERS, GAUGES, LABELS

PROJECT = Path(__file__).parents[2]
GUIDE = (PROJECT / "infra" / "guides" / "cluster.md").read_text()
DASHBOARD = json.loads((PROJECT / "infra" / "grafana" / "gwm.json").read_text())
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


def test_the_guides_files_exist() -> None:
    for path in re.findall(r"\b(?:infra|conf)/[\w./-]+\.(?:yaml|json|txt|md)", GUIDE):
        assert (PROJECT / path).is_file(), path
    assert (PROJECT / "infra" / "guides" / "cluster-transcript.md").is_file()


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_and_the_guide_know_all_metrics_and_no_others() -> None:
    assert set(re.findall(r"\bray_gwm_\w+", " ".join(expressions()))) == EXPORTED
    assert set(re.findall(r"\bray_gwm_\w+", GUIDE)) - {"ray_gwm_"} == EXPORTED


def test_the_dashboard_groups_by_labels_that_the_metric_has() -> None:
    for expression in expressions():
        for by, metric in re.findall(
            r"by \(([\w, ]+)\) \(?(?:rate\()?ray_(gwm_\w+?)(?:_total)?\{", expression
        ):
            assert set(by.split(", ")) <= set(LABELS.get(metric, ("command",))), expression
