"""docs/results.md names every variable and attribute of every result."""

from pathlib import Path

from problems import line_problem

import thalweg as tw

ROOT = Path(__file__).parent.parent


def test_the_table_of_results_names_every_variable():
    table = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    path = tw.descend(
        line_problem(), tw.SGD(lr=lambda t: 0.1), epochs=1, batch_size=20, record=["grad", "batch"]
    )
    problem = line_problem(expected=lambda w: w["weight"])
    plane = tw.coordinate_plane(problem, {"bias": (0, 1), "weight": (0, 1)}, points=2)
    surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
    for name in {*path.variables, *surface.variables, *path.attrs, *surface.attrs} - {
        "bias",
        "weight",
    }:
        assert f"`{name.replace('schedule_lr', 'schedule_NAME')}`" in table, name
