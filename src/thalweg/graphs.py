"""Computation graphs: what a function computes, and its reverse pass, read from its jaxpr.

The forward pass has a node for each input, constant and operation, with its value. The reverse pass adds a
node for each step of the chain rule: going back over an operation u = op(…, v, …) multiplies ∂z/∂u by the
local derivative ∂u/∂v, and contributions over several operations are added (Griewank & Walther, *Evaluating
Derivatives*, 2008, chapter 3). Every number in the graph is computed by JAX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import xarray as xr

from thalweg import backend as _backend  # noqa: F401
from thalweg import results
from thalweg.errors import InputError, whole_number
from thalweg.operations import number, words_of
from thalweg.params import path_name

MOST = 100  # operations; a larger graph cannot be read as a picture

# Calls whose insides are drawn. A function with a derivative rule of its own (custom_jvp, custom_vjp)
# is one operation, as it is for JAX: the rule, not its insides, makes the reverse pass.
_INLINED = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_lin"}
)

# Their derivative is zero wherever it exists, so the reverse pass ends at them.
_FLAT = frozenset({"stop_gradient", "sign", "floor", "ceil", "round"})


@dataclass
class Node:
    """One node, while a graph is built."""

    kind: str
    operation: str
    name: str
    value: Any
    text: str = ""  # the expression, with {0}, {1}, … for the operands
    operands: tuple[int, ...] = ()
    back: tuple[str, ...] = ()  # the local derivative in words, one per operand
    call: Callable[..., Any] | None = None
    active: bool = False  # depends on an input, and can be differentiated
    local: float = float("nan")  # the local derivative, where operand and result are scalars
    of: int = -1  # for an adjoint: the forward node that it belongs to

    @property
    def is_constant(self) -> bool:
        return self.kind == "constant"


def computation_graph(
    f: Callable[..., Any], *args: Any, reverse: bool = False, most: int = MOST
) -> xr.Dataset:
    """The graph of what f computes at a point: its operations, in order, with their values.

    Calls inside f are followed, but for functions with a derivative rule of their own (`jax.nn.relu`),
    which are one operation. What does not depend on an input is a constant, and appears once.

    Args:
        f: a function that JAX can trace.
        args: arrays, numbers or pytrees of them: where it is evaluated.
        reverse: add the reverse pass, for an f of one scalar: for every node v that its result z
            depends on, the steps of the chain rule that make ∂z/∂v, with the local derivatives.
        most: the largest number of operations.

    Returns:
        A dataset with the dimensions `node`, in the order of computation, and `edge`; see
        docs/results.md. `thalweg.plot.graph` draws it.

    Raises:
        InputError: more than `most` operations; with `reverse`, more than one number as the result,
            or an operation that JAX cannot differentiate in reverse.
    """
    if not callable(f):
        raise InputError(f"a function was expected, {type(f).__name__} given.")
    try:
        program, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    except TypeError as error:
        raise InputError(f"this function cannot be traced: {error}") from error
    inputs = _input_names(f, args)
    graph = _Graph(whole_number("most", most, 1), _prefix(inputs))
    leaves = jax.tree_util.tree_leaves(args)
    ids = [graph.input(name, jnp.asarray(v)) for name, v in zip(inputs, leaves, strict=True)]
    outputs = list(graph.follow(program.jaxpr, program.consts, ids))
    graph.finish(outputs, _output_names(f, shape, inputs))
    if reverse:
        if len(outputs) != 1 or np.shape(graph.nodes[outputs[0]].value) != ():
            raise InputError(
                "the reverse pass is that of a function of one number; this one returns "
                f"{len(outputs)} arrays of shapes {[np.shape(graph.nodes[o].value) for o in outputs]}."
            )
        _Reverse(graph, outputs[0]).run()
    attrs = results.provenance("graph", {"function": _name_of(f), "reverse": reverse})
    return graph.dataset(attrs)


@dataclass
class _Graph:
    most: int
    prefix: str
    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[int, int, int, str]] = field(default_factory=list)
    _constants: dict[Any, int] = field(default_factory=dict)
    _count: int = 0

    def input(self, name: str, value: Any) -> int:
        active = bool(jnp.issubdtype(value.dtype, jnp.floating))
        return self.add(Node("input", "input", name, value, active=active))

    def constant(self, value: Any) -> int:
        """The node of this constant; equal constants share one."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            arrays = sum(1 for node in self.nodes if node.is_constant and np.ndim(node.value))
            name = number(array) if array.ndim == 0 else f"c{arrays + 1}"
            self._constants[key] = self.add(Node("constant", "constant", name, jnp.asarray(value)))
        return self._constants[key]

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def follow(self, jaxpr: Any, consts: Any, arguments: list[int]) -> Iterator[int]:
        """Add the operations of a jaxpr, and yield the nodes of its results."""
        place: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))
        place |= {v: self.constant(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}

        def of(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, jex.Literal) else place[atom]

        for equation in jaxpr.eqns:
            operands = [of(atom) for atom in equation.invars]
            place |= zip(equation.outvars, self.apply(jaxpr, equation, operands), strict=True)
        yield from map(of, jaxpr.outvars)

    def apply(self, jaxpr: Any, equation: Any, operands: list[int]) -> list[int]:
        """Add an equation's nodes, and return those of its results."""
        name = equation.primitive.name
        if name in _INLINED:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            return list(
                self.follow(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
            )
        call = _as_function(jaxpr, equation)
        nodes = [self.nodes[i] for i in operands]
        values = call(*(node.value for node in nodes))
        if all(node.is_constant for node in nodes):
            return [self.constant(value) for value in values]
        if name == "convert_element_type" and values[0].dtype == nodes[0].value.dtype:
            return operands  # it changes the weak type alone
        if self._count + len(values) > self.most:
            raise InputError(
                f"this function has more than {self.most} operations, too many for a picture; draw a "
                "part of it, fewer samples or one layer, or raise most=."
            )
        if any(jnp.iscomplexobj(value) for value in values):
            raise InputError("this function computes with complex numbers, which are not drawn.")
        words = words_of(equation)
        indices = []
        for place, value in enumerate(values):
            self._count += 1
            differentiable = jnp.issubdtype(value.dtype, jnp.floating) and name not in _FLAT
            node = Node(
                "operation",
                words.name,
                "",
                value,
                words.text,
                tuple(operands),
                words.back,
                lambda *a, place=place: call(*a)[place],
                bool(differentiable and any(n.active for n in nodes)),
            )
            indices.append(self.add(node))
        return indices

    def finish(self, outputs: list[int], names: list[str]) -> None:
        """Mark and name the outputs, remove nodes that do not lead to them, and number the rest."""
        for place, (i, name) in enumerate(zip(outputs, names, strict=True)):
            if self.nodes[i].kind != "operation":  # an input or constant, or an output already
                node = self.nodes[i]
                copy = Node(
                    "operation", "copy", name, node.value, "{0}", (i,), ("× 1",), lambda a: a,
                    node.active,
                )  # fmt: skip
                outputs[place] = i = self.add(copy)
            self.nodes[i].kind, self.nodes[i].name = "output", name
        wanted, todo = {i for i, n in enumerate(self.nodes) if n.kind == "input"}, list(outputs)
        while todo:
            i = todo.pop()
            if i not in wanted:
                wanted.add(i)
                todo += self.nodes[i].operands
        new = {old: place for place, old in enumerate(sorted(wanted))}
        self.nodes = [self.nodes[old] for old in new]
        outputs[:] = [new[i] for i in outputs]
        count = 0
        for target, node in enumerate(self.nodes):
            if node.kind == "operation":
                count += 1
                node.name = f"{self.prefix}{count}"
            node.operands = tuple(new[i] for i in node.operands)
            self.edges += [(i, target, place, "value") for place, i in enumerate(node.operands)]

    def dataset(self, attrs: dict[str, Any]) -> xr.Dataset:
        """The graph as a result."""
        per_node: dict[str, Any] = {
            name: [getattr(node, name) for node in self.nodes]
            for name in ("name", "operation", "kind", "local", "of")
        }
        per_node["expression"] = [
            node.text.format(*(self.nodes[i].name for i in node.operands)) for node in self.nodes
        ]
        arrays = [np.asarray(node.value, float) for node in self.nodes]
        per_node["value"] = [float(a) if a.ndim == 0 else np.nan for a in arrays]
        per_node["low"] = [float(a.min()) if a.size else np.nan for a in arrays]
        per_node["high"] = [float(a.max()) if a.size else np.nan for a in arrays]
        per_node["shape"] = ["×".join(map(str, a.shape)) for a in arrays]
        per_node["dtype"] = [str(node.value.dtype) for node in self.nodes]
        edges = np.array([e[:3] for e in self.edges], np.int64).reshape(-1, 3)
        per_edge = {
            name: ("edge", edges[:, i]) for i, name in enumerate(("source", "target", "operand"))
        }
        roles = np.array([e[3] for e in self.edges], str)
        data = {name: ("node", np.array(values)) for name, values in per_node.items()}
        return xr.Dataset(data | per_edge | {"role": ("edge", roles)}, attrs=attrs)


class _Reverse:
    """The chain rule from a scalar output back to the inputs, added to a graph."""

    def __init__(self, graph: _Graph, output: int) -> None:
        self.graph, self.output = graph, output
        self.last = len(graph.nodes)
        self.parts: dict[int, list[int]] = {}  # the contributions to each forward node's adjoint

    def run(self) -> None:
        nodes = self.graph.nodes
        for i in reversed(range(self.last)):
            if nodes[i].active and (
                i == self.output or i in self.parts or nodes[i].kind == "input"
            ):
                self.back_over(i, self.adjoint(i))

    def adjoint(self, i: int) -> int:
        """The node of ∂z/∂v for the forward node v = i: the sum of its contributions."""
        parts, node = self.parts.get(i, []), self.graph.nodes[i]
        kind = "gradient" if node.kind == "input" else "adjoint"
        if len(parts) == 1:
            part = self.graph.nodes[parts[0]]
            part.kind, part.name, part.of = kind, self.symbol(i), i
            return parts[0]
        values = [self.graph.nodes[p].value for p in parts]
        if i == self.output:
            operation, total = "1", jnp.ones_like(node.value)
        elif not parts:
            operation, total = "0", jnp.zeros_like(node.value)
        else:
            operation, total = "+", sum(values[1:], start=values[0])
        index = self.graph.add(Node(kind, operation, self.symbol(i), total, of=i))
        self.graph.edges += [(p, index, place, "adjoint") for place, p in enumerate(parts)]
        return index

    def back_over(self, i: int, adjoint: int) -> None:
        """Add the contributions of node i's adjoint to the adjoints of its operands, by JAX's pullback."""
        graph, node = self.graph, self.graph.nodes[i]
        places = [p for p, o in enumerate(node.operands) if graph.nodes[o].active]
        if not places:
            return
        assert node.call is not None
        values = [graph.nodes[o].value for o in node.operands]

        def of_active(*active: Any) -> Any:
            active_values = dict(zip(places, active, strict=True))
            return node.call(*(active_values.get(p, v) for p, v in enumerate(values)))  # type: ignore[misc]

        try:
            _, pullback = jax.vjp(of_active, *(values[p] for p in places))
            contributions = pullback(graph.nodes[adjoint].value)
            slopes = pullback(jnp.ones_like(node.value))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"{node.operation} cannot be differentiated in reverse: {error}"
            ) from error
        for place, value, slope in zip(places, contributions, slopes, strict=True):
            operand = node.operands[place]
            words, used = self.words(i, place)
            both_scalar = np.ndim(value) == np.ndim(node.value) == 0
            part = Node(
                "adjoint",
                words,
                f"{self.symbol(operand)} over {node.name}",
                value,
                local=float(slope) if both_scalar else float("nan"),
                of=operand,
            )
            index = graph.add(part)
            graph.edges.append((adjoint, index, 0, "adjoint"))
            graph.edges += [(source, index, n + 1, "residual") for n, source in enumerate(used)]
            self.parts.setdefault(operand, []).append(index)

    def words(self, i: int, place: int) -> tuple[str, list[int]]:
        """The local derivative in words, and the forward nodes whose values it needs."""
        node = self.graph.nodes[i]
        names = [self.graph.nodes[o].name for o in node.operands]
        back = node.back[place] if place < len(node.back) else f"× ∂{node.operation}/∂{{{place}}}"
        used = [o for p, o in enumerate(node.operands) if f"{{{p}}}" in back]
        used += [i] if "{u}" in back else []
        used = [o for o in dict.fromkeys(used) if not self.graph.nodes[o].is_constant]
        here = self.graph.nodes[node.operands[place]].value
        if np.ndim(here) == 0 < np.ndim(node.value) and node.operation not in ("sum", "broadcast"):
            back += ", summed"  # a scalar was broadcast against an array
        return back.format(*names, u=node.name), used

    def symbol(self, i: int) -> str:
        return f"∂{self.graph.nodes[self.output].name}/∂{self.graph.nodes[i].name}"


def _as_function(jaxpr: Any, equation: Any) -> Callable[..., list[Any]]:
    """An equation of a jaxpr as a function of the values of its operands."""
    # Fresh variables, because an operand may be a literal or appear twice.
    operands = [jex.Var(atom.aval) for atom in equation.invars]
    outputs = [jex.Var(v.aval) for v in equation.outvars]
    alone = jaxpr.replace(
        constvars=[],
        invars=operands,
        outvars=outputs,
        eqns=[equation.replace(invars=operands, outvars=outputs)],
        effects=equation.effects,
    )
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))


def _input_names(f: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """A name for each leaf: the argument's name, or the leaf's path in it."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    argument_names = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    names = []
    for place, arg in enumerate(args):
        argument = argument_names[place] if place < len(argument_names) else f"x{place}"
        for path, _ in jax.tree_util.tree_flatten_with_path(arg)[0]:
            entry = path_name(path) if path else argument
            names.append(f"{argument}.{entry}" if path and len(args) > 1 else entry)
    return names


def _output_names(f: Callable[..., Any], shape: Any, inputs: list[str]) -> list[str]:
    name = _name_of(f)
    name = name if name.isidentifier() and name not in inputs else "output"
    paths = jax.tree_util.tree_flatten_with_path(shape)[0]
    return [f"{name}.{path_name(path)}" if path else name for path, _ in paths]


def _name_of(f: Callable[..., Any]) -> str:
    return getattr(f, "__name__", type(f).__name__)


def _prefix(inputs: list[str]) -> str:
    """A letter to number results with, which no input's name uses with a number."""
    taken = {name[:1] for name in inputs if name[1:].isdigit()}
    return next(letter for letter in "vuhqsabdefgijklmnoprtwxyz" if letter not in taken)
