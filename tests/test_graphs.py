"""Computation graphs: against derivatives taken by hand, and how they are drawn."""

import shutil
import stat
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import thalweg as tw
from thalweg import errors
from thalweg.plots import layered


def z(θ):
    return (1 - jnp.log(1 + jnp.exp(θ))) ** 2


def shared(a, b):
    """a is used by three operations."""
    u = a * b
    return jnp.sin(u) * a + a / b


def node(graph, name):
    (place,) = np.flatnonzero(graph["name"].values == name)
    return graph.isel(node=place)


def of_kind(graph, kind):
    return graph["name"].values[graph["kind"].values == kind].tolist()


# The forward pass -------------------------------------------------------------------------------


def test_every_value_of_the_forward_pass_by_hand():
    graph = tw.computation_graph(z, 1.0)
    e = np.e
    by_hand = {
        "θ": ("input", "", 1.0),
        "v1": ("exp", "exp θ", e),
        "v2": ("+", "1 + v1", 1 + e),
        "v3": ("log", "log v2", np.log(1 + e)),
        "v4": ("−", "1 − v3", 1 - np.log(1 + e)),
        "z": ("square", "v4²", (1 - np.log(1 + e)) ** 2),
        "1": ("constant", "", 1.0),
    }
    assert set(graph["name"].values) == set(by_hand)  # the constant 1, used twice, stands once
    for name, (operation, expression, value) in by_hand.items():
        found = node(graph, name)
        assert (found["operation"], found["expression"]) == (operation, expression)
        np.testing.assert_allclose(found["value"], value, rtol=1e-15)
    assert of_kind(graph, "input") == ["θ"]
    assert of_kind(graph, "output") == ["z"]
    # the value and derivative that the study's description gives
    np.testing.assert_allclose(node(graph, "z")["value"], 0.09813, atol=5e-6)


def test_edges_lead_from_operands_in_their_order():
    graph = tw.computation_graph(lambda a, b: a - b, 3.0, 5.0)
    names = graph["name"].values
    found = {
        (str(names[s]), str(names[t])): int(place)
        for s, t, place in zip(
            graph["source"].values, graph["target"].values, graph["operand"].values, strict=True
        )
    }
    assert found == {("a", "output"): 0, ("b", "output"): 1}
    assert node(graph, "output")["value"] == -2


@pytest.mark.parametrize(
    ("f", "x", "operation", "expression"),
    [
        (jnp.exp, 0.5, "exp", "exp x"),
        (lambda x: x + 2.5, 0.5, "+", "x + 2.5"),
        (lambda x: x * -2, 0.5, "×", "x × −2"),
        (lambda x: -x, 0.5, "−", "−x"),
        (jnp.square, 0.5, "square", "x²"),
        (lambda x: x**2, 0.5, "square", "x²"),
        (lambda x: x**3, 0.5, "cube", "x³"),
        (lambda x: x**-2, 0.5, "power", "x ^ −2"),
        (lambda x: x**0.5, 0.5, "power", "x ^ 0.5"),
        (lambda x: jnp.maximum(x, 0.1), 0.5, "max", "max(x, 0.1)"),
        (jnp.abs, -0.5, "abs", "|x|"),
        (jax.nn.relu, 0.5, "relu", "relu x"),
        (jax.nn.sigmoid, 0.5, "sigmoid", "sigmoid x"),
        (jnp.tanh, 0.5, "tanh", "tanh x"),
        (jnp.sum, np.ones(3), "sum", "Σ x"),
        (lambda x: jnp.where(x > 0, x, 0), 0.5, "where", "x if v1 else 0"),
        (jax.nn.softplus, 0.5, "logaddexp", "logaddexp(x, 0)"),
        (jnp.arctan, 0.5, "atan", "atan(x)"),
    ],
)
def test_operations_bear_the_fields_names(f, x, operation, expression):
    graph = tw.computation_graph(lambda x: f(x), x)
    last = node(graph, "output")
    assert (last["operation"], last["expression"]) == (operation, expression)
    np.testing.assert_allclose(last["value"], f(x), rtol=1e-15)


def test_inputs_are_named_as_arguments_and_entries():
    w = {"weight": 2.0, "bias": [1.0, 3.0]}
    graph = tw.computation_graph(lambda w: w["weight"] * w["bias"][1], w)
    assert of_kind(graph, "input") == ["bias.0", "bias.1", "weight"]
    graph = tw.computation_graph(lambda w, x: w["weight"] * x, w, 4.0)
    assert of_kind(graph, "input") == ["w.bias.0", "w.bias.1", "w.weight", "x"]
    graph = tw.computation_graph(lambda v1, v2: jnp.exp(v1 * v2), 1.0, 2.0)
    assert graph["name"].values.tolist() == ["v1", "v2", "u1", "output"]


def test_what_does_not_depend_on_an_input_is_one_constant():
    table = np.array([1.0, 2.0])

    def f(x):
        unused = jnp.cos(x)  # noqa: F841
        return x * jnp.sum(jnp.exp(jnp.asarray(table))) + jnp.linspace(0, 1, 3)[1]

    graph = tw.computation_graph(f, 2.0)
    assert [*graph["operation"].values] == ["input", "constant", "×", "constant", "+"]
    np.testing.assert_allclose(graph["value"][1], np.e + np.e**2, rtol=1e-15)


def test_arrays_are_told_by_shape_and_range():
    x = np.arange(6.0).reshape(2, 3)
    graph = tw.computation_graph(lambda x: (x * 2).sum(), x)
    doubled = node(graph, "v1")
    assert doubled["shape"] == "2×3"
    assert (doubled["low"], doubled["high"]) == (0, 10)
    assert np.isnan(doubled["value"])
    assert node(graph, "output")["value"] == 30


def test_several_outputs_and_ones_that_are_inputs_or_constants():
    def f(x):
        return {"twice": 2 * x, "same": x, "three": 3.0}

    graph = tw.computation_graph(f, 1.5)
    assert sorted(of_kind(graph, "output")) == ["f.same", "f.three", "f.twice"]
    assert node(graph, "f.same")["operation"] == "copy"
    assert node(graph, "f.twice")["value"] == 3


def test_calls_are_followed_and_loops_are_one_operation():
    inner = jax.jit(lambda x: jnp.exp(x) + 1)
    graph = tw.computation_graph(lambda x: jax.checkpoint(inner)(x) * 2, 0.0)
    assert graph["operation"].values.tolist() == ["input", "exp", "constant", "+", "constant", "×"]
    loop = tw.computation_graph(lambda x: jax.lax.fori_loop(0, 3, lambda i, v: v * 2, x), 1.0)
    assert loop["operation"].values[-1] in ("scan", "while")
    assert loop["value"].values[-1] == 8


def test_dtypes_are_kept_and_casts_shown():
    graph = tw.computation_graph(lambda x: x * np.float64(2), np.float32(1))
    assert graph["dtype"].values.tolist()[0] == "float32"
    assert "as float64" in graph["operation"].values
    back = tw.computation_graph(lambda x: x * np.float64(2), np.float32(1), reverse=True)
    assert node(back, "∂output/∂x")["dtype"] == "float32"
    assert node(back, "∂output/∂x")["value"] == 2


# The reverse pass -------------------------------------------------------------------------------


def test_every_adjoint_by_hand():
    graph = tw.computation_graph(z, 1.0, reverse=True)
    e = np.e
    d4 = 2 * (1 - np.log(1 + e))
    by_hand = {
        "∂z/∂z": ("1", 1.0, np.nan),
        "∂z/∂v4": ("× 2 v4", d4, d4),
        "∂z/∂v3": ("× (−1)", -d4, -1.0),
        "∂z/∂v2": ("÷ v2", -d4 / (1 + e), 1 / (1 + e)),
        "∂z/∂v1": ("× 1", -d4 / (1 + e), 1.0),
        "∂z/∂θ": ("× v1", -d4 * e / (1 + e), e),
    }
    for name, (operation, value, local) in by_hand.items():
        found = node(graph, name)
        assert found["operation"] == operation
        np.testing.assert_allclose([found["value"], found["local"]], [value, local], rtol=1e-14)
    assert of_kind(graph, "gradient") == ["∂z/∂θ"]
    # study 3 of the description
    np.testing.assert_allclose(node(graph, "∂z/∂θ")["value"], 0.4580252880326174, rtol=1e-14)


A, B = 0.6, 1.7


@pytest.mark.parametrize(
    ("f", "words", "local"),
    [
        (lambda a: a + B, "× 1", 1),
        (lambda a: B - a, "× (−1)", -1),
        (lambda a: a * B, "× 1.7", B),
        (lambda a: a / B, "÷ 1.7", 1 / B),
        (lambda a: B / a, "× (−f ÷ a)", -(B / A) / A),
        (lambda a: -a, "× (−1)", -1),
        (jnp.exp, "× f", np.exp(A)),
        (jnp.expm1, "× (f + 1)", np.exp(A)),
        (jnp.log, "÷ a", 1 / A),
        (jnp.log1p, "÷ (1 + a)", 1 / (1 + A)),
        (jnp.square, "× 2 a", 2 * A),
        (lambda a: a**3, "× 3 a²", 3 * A**2),
        (lambda a: a**-2, "× (−2) a ^ −3", -2 * A**-3),
        (lambda a: a**1.7, "× 1.7 a ^ (1.7 − 1)", B * A ** (B - 1)),
        (lambda a: B**a, "× f log 1.7", B**A * np.log(B)),
        (jnp.sqrt, "÷ 2 f", 1 / (2 * np.sqrt(A))),
        (jnp.sin, "× cos a", np.cos(A)),
        (jnp.cos, "× (−sin a)", -np.sin(A)),
        (jnp.tanh, "× (1 − f²)", 1 - np.tanh(A) ** 2),
        (jax.nn.sigmoid, "× f (1 − f)", np.exp(-A) / (1 + np.exp(-A)) ** 2),
        (jax.nn.relu, "× [a > 0]", 1),
        (jnp.abs, "× sign a", 1),
        (lambda a: jnp.maximum(a, B), "× [a > 1.7]", 0),
        (lambda a: jnp.minimum(a, B), "× [a < 1.7]", 1),
        (jnp.arctan, "× ∂atan/∂a", 1 / (1 + A**2)),
    ],
)
def test_local_derivatives_are_what_their_words_say(f, words, local):
    g = lambda a: f(a)  # noqa: E731
    g.__name__ = "f"
    found = node(tw.computation_graph(g, A, reverse=True), "∂f/∂a")
    assert found["operation"] == words
    np.testing.assert_allclose(found["local"], local, rtol=1e-14)


def test_the_reverse_pass_uses_the_values_that_its_words_name():
    graph = tw.computation_graph(z, 1.0, reverse=True)
    names, residual = graph["name"].values, graph["role"].values == "residual"
    used = {
        (str(names[t]), str(names[s]))
        for s, t in zip(
            graph["source"].values[residual], graph["target"].values[residual], strict=True
        )
    }
    assert used == {("∂z/∂v4", "v4"), ("∂z/∂v2", "v2"), ("∂z/∂θ", "v1")}


def test_the_chain_rule_holds_at_every_node():
    graph = tw.computation_graph(shared, 1.3, 0.7, reverse=True)
    source, target, role = (graph[k].values for k in ("source", "target", "role"))
    value, local = graph["value"].values, graph["local"].values
    checked = 0
    for i in np.flatnonzero(np.isin(graph["kind"].values, ("adjoint", "gradient"))):
        before = source[(target == i) & (role == "adjoint")]
        if graph["operation"].values[i] == "+":
            np.testing.assert_allclose(value[i], value[before].sum(), rtol=1e-14)
        elif len(before):
            np.testing.assert_allclose(value[i], local[i] * value[before[0]], rtol=1e-14)
        checked += len(before)
    assert checked >= 8
    a, b = 1.3, 0.7
    by_hand = {
        "∂shared/∂a": np.cos(a * b) * b * a + np.sin(a * b) + 1 / b,
        "∂shared/∂b": np.cos(a * b) * a * a - a / b**2,
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(node(graph, name)["value"], expected, rtol=1e-14)


def test_the_mean_absolute_error_of_a_line_by_hand():
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([1.0, -1.0, 3.0])
    problem = tw.Problem(lambda w, x: w["a"] + w["b"] * x, "l1", x, y, params={"a": 0.0, "b": 0.0})
    graph = tw.computation_graph(problem.risk, problem.params, reverse=True)
    # residuals ŷ − y at zero are −y
    np.testing.assert_allclose(node(graph, "∂risk/∂a")["value"], -np.sign(y).mean(), rtol=1e-14)
    np.testing.assert_allclose(
        node(graph, "∂risk/∂b")["value"], -(np.sign(y) * x).mean(), rtol=1e-14
    )


def test_arrays_meet_numbers_and_products():
    matrix, vector = np.arange(6.0).reshape(2, 3), np.array([1.0, -1.0, 2.0])

    def f(w, scale):
        return jnp.sum(scale * (jnp.asarray(matrix) @ w))

    graph = tw.computation_graph(f, vector, 0.5, reverse=True)
    gradient = node(graph, "∂f/∂w")
    by_hand = 0.5 * matrix.sum(axis=0)
    assert (gradient["low"], gradient["high"]) == (by_hand.min(), by_hand.max())
    scale = node(graph, "∂f/∂scale")
    np.testing.assert_allclose(scale["value"], (matrix @ vector).sum(), rtol=1e-14)
    assert str(scale["operation"].values).endswith("summed")


def test_kinks_follow_the_functions_own_rule():
    # relu'(0) = 0 is jax.nn.relu's own rule; the max inside it has ½ there
    relu = tw.computation_graph(lambda x: jax.nn.relu(x), 0.0, reverse=True)
    assert node(relu, "∂output/∂x")["value"] == 0
    bare = tw.computation_graph(lambda x: jnp.maximum(x, 0), 0.0, reverse=True)
    assert node(bare, "∂output/∂x")["value"] == 0.5


def test_nothing_comes_back_where_nothing_depends():
    graph = tw.computation_graph(
        lambda a, b: jax.lax.stop_gradient(a) * 2 + 0 * b, 1.0, 1.0, reverse=True
    )
    assert node(graph, "∂output/∂a")["operation"] == "0"
    assert node(graph, "∂output/∂a")["value"] == 0
    whole = tw.computation_graph(lambda x, n: x * n, 1.5, 2, reverse=True)
    assert of_kind(whole, "gradient") == ["∂output/∂x"]  # a whole number has no derivative
    same = tw.computation_graph(lambda x: x, 1.5, reverse=True)
    assert node(same, "∂output/∂x")["value"] == 1
    constant = tw.computation_graph(lambda x: 3.0, 1.5, reverse=True)
    assert node(constant, "∂output/∂x")["value"] == 0


def test_a_saved_graph_is_the_same(tmp_path):
    graph = tw.computation_graph(shared, 1.0, 2.0, reverse=True)
    tw.save(graph, tmp_path / "graph.nc")
    loaded = tw.load(tmp_path / "graph.nc")
    assert loaded.identical(graph)
    assert tw.plot.graph(loaded)


def test_bad_input_is_one_line():
    with pytest.raises(tw.InputError, match="a function was expected, int"):
        tw.computation_graph(3)
    with pytest.raises(tw.InputError, match="cannot be traced"):
        tw.computation_graph(lambda x: x, "text")
    with pytest.raises(tw.InputError, match="more than 3 operations"):
        tw.computation_graph(z, 1.0, most=3)
    with pytest.raises(tw.InputError, match="function of one number"):
        tw.computation_graph(lambda x: (x, x), 1.0, reverse=True)
    with pytest.raises(tw.InputError, match="function of one number"):
        tw.computation_graph(lambda x: 2 * x, np.ones(3), reverse=True)
    with pytest.raises(tw.InputError, match="cannot be differentiated in reverse"):
        tw.computation_graph(
            lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v * 2, x), 1.0, reverse=True
        )
    with pytest.raises(tw.InputError, match="complex"):
        tw.computation_graph(lambda x: jnp.abs(x + 1j), 1.0)
    with pytest.raises(tw.InputError, match="a graph was expected"):
        tw.plot.graph(tw.descend(tw.Problem.from_catalogue("beale"), tw.SGD(lr=1e-3), steps=1))


# The picture ------------------------------------------------------------------------------------

FAKE_DOT = """#!{python}
import re, sys
text = sys.stdin.read()
assert sys.argv[1:] == ["-Tplain"] and text.startswith("digraph")
{mischief}
x, rank = {{}}, 0
print("graph 1 9 9")
for group in re.findall(r"rank=same; (.*?)}}", text):
    for place, name in enumerate(re.findall(r"n\\d+", group)):
        print(f'node {{name}} {{4 * place + 2}} {{9 - rank}} 1 0.3 "" solid box black lightgrey')
    rank += 1
print("stop")
"""


def install_dot(tmp_path, monkeypatch, mischief=""):
    program = tmp_path / "dot"
    program.write_text(FAKE_DOT.format(python=sys.executable, mischief=mischief))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(params=["dot", "igraph"])
def engine(request, tmp_path, monkeypatch):
    if request.param == "dot":
        install_dot(tmp_path, monkeypatch)
        monkeypatch.setattr(layered, "_by_igraph", None)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    return request.param


def boxes(ax):
    return {p.get_gid(): p.get_window_extent() for p in ax.patches if isinstance(p, FancyBboxPatch)}


def wide(a, b, c):
    """Long edges, shared values, constants, a matrix."""
    u = a * b + jnp.sin(c) * 2
    v = u / (a + 2) - jnp.exp(-c)
    w = jnp.maximum(v, b) * a
    return jnp.sum(jnp.ones(3) * w) + u * a + jnp.tanh(v) ** 3


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("f", "args"), [(z, (1.0,)), (shared, (1.0, 2.0)), (wide, (1.0, 2.0, 3.0))]
)
def test_nothing_overlaps_in_the_picture(engine, f, args, reverse):
    graph = tw.computation_graph(f, *args, reverse=reverse)
    ax = tw.plot.graph(graph)
    ax.figure.draw_without_rendering()
    found = boxes(ax)
    assert len(found) == graph.sizes["node"]
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not found[one].padded(-1).overlaps(found[other].padded(-1)), (one, other)
    window = ax.get_window_extent()
    for text in ax.texts:
        extent = text.get_window_extent()
        inside = [
            box for box in found.values()
            if box.x0 - 1 <= extent.x0 and extent.x1 <= box.x1 + 1
            and box.y0 - 1 <= extent.y0 and extent.y1 <= box.y1 + 1
        ]  # fmt: skip
        assert len(inside) == 1, text.get_text()
        assert window.x0 <= extent.x0
        assert extent.x1 <= window.x1
    legend = ax.get_legend().get_window_extent()
    assert not any(legend.overlaps(box) for box in found.values())
    assert legend.x0 >= window.x0
    assert legend.x1 <= window.x1


@pytest.mark.parametrize("reverse", [False, True])
def test_edges_pass_beside_boxes_and_end_at_them(engine, reverse):
    graph = tw.computation_graph(wide, 1.0, 2.0, 3.0, reverse=reverse)
    ax = tw.plot.graph(graph)
    ax.figure.draw_without_rendering()
    found = boxes(ax)
    to_pixels = ax.transData
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    pairs = {(int(s), int(t)) for s, t in graph[["source", "target"]].to_array().values.T}
    assert {p.get_gid() for p in arrows} == {f"edge-{s}-{t}" for s, t in pairs}
    for arrow in arrows:
        _, source, target = arrow.get_gid().split("-")
        path = arrow._path_original.interpolated(1)  # as given, before the head was cut off
        (line,) = path.to_polygons(closed_only=False, transform=to_pixels) or [None]
        ends = {"source": line[0], "target": line[-1]}
        for which, name in (("source", source), ("target", target)):
            assert found[f"node-{name}"].padded(2).contains(*ends[which]), arrow.get_gid()
        dense = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(line)])
        for name, box in found.items():
            if name not in (f"node-{source}", f"node-{target}"):
                (x0, y0), (x1, y1) = box.padded(-1).get_points()
                hits = ((dense > (x0, y0)) & (dense < (x1, y1))).all(axis=1)
                assert not hits.any(), (arrow.get_gid(), name)


def test_adjoints_stand_in_the_rows_of_their_values(engine):
    graph = tw.computation_graph(z, 1.0, reverse=True)
    found = boxes(tw.plot.graph(graph))
    middle = {int(k.split("-")[1]): (b.y0 + b.y1) / 2 for k, b in found.items()}
    for i, of in enumerate(graph["of"].values):
        if of >= 0:
            assert abs(middle[i] - middle[int(of)]) < 1


def test_boxes_say_operation_expression_and_value():
    ax = tw.plot.graph(tw.computation_graph(z, 1.0, reverse=True), title="$z$")
    texts = [text.get_text() for text in ax.texts]
    for line in ("log", "v3 = log v2", "= 1.313", "× v1 = × 2.718", "∂z/∂θ = 0.458"):
        assert line in texts
    assert ax.get_title() == "$z$"
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert {"input", "constant", "operation", "output", "adjoint", "value used again"} <= set(
        labels
    )
    forward = tw.plot.graph(tw.computation_graph(z, 1.0))
    assert "adjoint" not in [t.get_text() for t in forward.get_legend().get_texts()]


def test_names_are_not_mathematics_nor_graphviz(engine):
    graph = tw.computation_graph(lambda w: w['a"; evil -> $x$'] * 2, {'a"; evil -> $x$': 1.0})
    ax = tw.plot.graph(graph)
    ax.figure.draw_without_rendering()
    assert r'a"; evil -> \$x\$' in [text.get_text() for text in ax.texts]


def test_a_small_place_makes_small_text():
    figure, axes = tw.plot.grid(1, 2)
    tw.plot.graph(tw.computation_graph(z, 1.0), ax=axes[0, 0])
    tw.plot.graph(tw.computation_graph(z, 1.0, reverse=True), ax=axes[0, 1])
    assert all(text.get_fontsize() < 9 for text in axes[0, 1].texts)
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    "mischief",
    ["sys.exit(1)", "import time; time.sleep(30)", "print('nothing of use'); sys.exit()",
     "print('node n0 x y z'); sys.exit()", "sys.stdout.buffer.write(bytes([255])); sys.exit()"],
)  # fmt: skip
def test_a_dot_that_fails_is_done_without(mischief, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    expected = boxes(tw.plot.graph(tw.computation_graph(z, 1.0)))
    monkeypatch.undo()
    install_dot(tmp_path, monkeypatch, mischief)
    monkeypatch.setattr(layered, "_SECONDS", 0.5)
    found = boxes(tw.plot.graph(tw.computation_graph(z, 1.0)))
    for name, box in expected.items():
        np.testing.assert_allclose(found[name].bounds, box.bounds)


def test_without_either_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(errors.MissingExtra, match=r"igraph: pip install 'thalweg\[graph\]'"):
        tw.plot.graph(tw.computation_graph(z, 1.0))
