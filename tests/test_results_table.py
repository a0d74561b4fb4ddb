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
    seen = plane.project(path.isel(step=slice(2)), problem)
    principal = tw.landscape(
        problem, tw.pca_plane(problem, path, points=2), ["empirical"], curvature=True
    )
    random = tw.random_plane(problem, problem.params, vectors=True, points=2).dataset()
    curved = tw.hessian_plane(problem, problem.params, points=2).dataset()
    spectrum = tw.hessian(problem, problem.params).density()
    results = (path, surface, seen, principal, random, curved, spectrum)
    own = {"bias", "weight", "pc1", "pc2", "direction_1", "direction_2", "top1", "bottom1"}
    for name in {name for r in results for name in (*r.variables, *r.attrs)} - own:
        assert f"`{name.replace('schedule_lr', 'schedule_NAME')}`" in table, name
