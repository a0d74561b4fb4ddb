"""The house: imports point one way, and a public name stays what it is."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import thalweg

ROOT = Path(thalweg.__file__).parent

# Each room may import from the floors below it, and on its own floor from the rooms that stand here.
TABLE = ROOT.parent.parent / "docs" / "architecture.md"
FLOORS = {
    room: int(number)
    for number, room in re.findall(
        r"^\| (\d+) \| `(\w+)(?:\.py|/)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE
    )
}
SIBLINGS = {
    "catalogue": {"backend"},
    "checks": {"inputs", "risks"},
    "job": {"shares"},
    "loop": {"feeds", "walks"},
    "losses": {"backend"},
    "params": {"backend"},
    "walks": {"feeds"},
    "weights": {"params"},
    "ensemble": {"optimizers"},
    "names": {"errors"},
    "stateful": {"identity"},
    "tangents": {"observables"},
}


def rooms():
    return sorted(
        {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    )


def imported_rooms(path):
    """The rooms of the package that a file imports, anywhere in it, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "thalweg":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("thalweg."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "thalweg":
                    found.add("*")
                elif alias.name.startswith("thalweg."):
                    found.add(alias.name.split(".")[1])
    return found


def test_every_room_has_its_floor():
    assert sorted(FLOORS) == [room for room in rooms() if not room.startswith("__")]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for other in imported_rooms(path) - {room, "__version__"}:
        if other == "*":
            # `import thalweg as tw` is the user's way in: studies are written as a user would.
            assert room == "studies", f"{room} imports the whole package"
            continue
        allowed = FLOORS[other] < FLOORS[room] or other in SIBLINGS.get(room, ())
        assert allowed, f"{room} imports {other}, which is not below it"


def test_plots_and_results_need_no_jax():
    single = ("results", "files", "projection", "show", "errors", "blocks", "tables")
    for room in ("plots", *(f"{name}.py" for name in single)):
        files = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))
        for path in files:
            text = path.read_text(encoding="utf-8")
            assert "import jax" not in text, path
            assert "from jax" not in text, path


def test_public_names_survive_the_import_of_every_module():
    modules = [
        info.name
        for info in pkgutil.walk_packages(thalweg.__path__, "thalweg.")
        if info.name != "thalweg.__main__"
    ]
    for module in modules:
        importlib.import_module(module)
    for name in thalweg._NAMES:
        value = getattr(thalweg, name)
        assert not isinstance(value, type(sys)), f"thalweg.{name} became a module"
    for name in thalweg._MODULES:
        assert isinstance(getattr(thalweg, name), type(sys))


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'desend'"):
        thalweg.desend  # noqa: B018


def test_import_loads_neither_jax_nor_numpy():
    code = (
        "import sys, thalweg, thalweg.cli;"
        "heavy = {'jax', 'numpy', 'xarray', 'matplotlib', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_surface_is_what_it_is():
    assert set(thalweg.__all__) == {
        "__version__", "InputError", "Problem", "ASGD", "LBFGS", "SGD", "Adadelta", "Adagrad", "Adam",
        "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "optax", "descend", "Observable",
        "empirical_risk", "expected_risk", "gradient_norm", "movement", "movement_by_parameter",
        "relative_movement", "risk_on", "successive_change", "Plane", "coordinate_plane", "line",
        "landscape", "jacobian", "kernel_drift", "linearize", "ntk", "scale_output",
        "load", "project", "save", "rerun", "losses", "optimizers", "plot", "report",
        "studies", "animate", "clear_caches", "computation_graph", "gradient_flow", "basins", "measure",
        "GaussNewton", "LevenbergMarquardt", "least_squares",
        "plotly", "Curvature", "fisher", "gauss_newton", "gradient_covariance", "gradient_norms",
        "gradient_noise", "sample_gradient_norms",
        "hessian", "preconditioned_sharpness", "sharpness", "stability_threshold", "hessian_plane",
        "interpolation", "pca_plane", "random_plane", "from_torch", "to_torch", "record", "trajectory",
    }  # fmt: skip
    assert set(thalweg.__all__) <= set(dir(thalweg))


def test_loading_leaves_numpys_random_numbers_alone():
    """JAX draws some when it is imported."""
    code = """
import numpy as np, thalweg as tw
np.random.seed(1)
tw.Problem, tw.plot
assert np.random.random() == np.random.RandomState(1).random()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_are_told_of_every_public_name():
    """The block of `if TYPE_CHECKING` imports each name from the module that it is loaded from."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in block
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    renamed = {node.targets[0].id: node.value.id for node in block if isinstance(node, ast.Assign)}
    told = {k: v for k, v in imported.items() if k not in renamed.values()}
    told |= {name: imported[module] for name, module in renamed.items()}
    names = {name: f"thalweg.{module}.{name}" for name, module in thalweg._NAMES.items()}
    modules = {name: f"thalweg.{module}" for name, module in thalweg._MODULES.items()}
    assert told == names | modules
