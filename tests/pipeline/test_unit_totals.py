from pipeline.unit_totals import UnitTotals


def summary_row(status, **values):
    row = {"unit": "", "source": "a.mp4", "status": status, "num_units": 1, "num_rows": 0, "num_bytes": 0}
    return row | {"sha256": "", "seconds_plan_clips": 0.5, "seconds_decode_clip": 0.0} | values


def test_sums_over_summary_rows():
    totals = UnitTotals()
    totals.add(
        summary_row("done", unit="u1", num_rows=8, num_bytes=100, sha256="ab", seconds_decode_clip=2.0)
    )
    totals.add(summary_row("done", unit="u2", num_rows=3, num_bytes=50, sha256="cd", seconds_decode_clip=1.0))
    totals.add(summary_row("skipped", num_units=7))
    totals.add(summary_row("quarantined"))
    assert totals.units == {"done": 2, "skipped": 7, "quarantined": 1}
    assert totals.units.total() == 10
    assert (totals.num_rows, totals.num_bytes) == (11, 150)
    assert totals.seconds == {"plan_clips": 2.0, "decode_clip": 3.0}
    assert [(entry.unit, entry.num_rows, entry.sha256) for entry in totals.entries] == [
        ("u1", 8, "ab"),
        ("u2", 3, "cd"),
    ]
    assert totals.metrics() == {
        "rows": 11.0,
        "bytes": 150.0,
        "units_done": 2.0,
        "units_skipped": 7.0,
        "units_quarantined": 1.0,
    }
