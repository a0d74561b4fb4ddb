"""Update rules: `torch.optim`'s, with its fields, defaults and arithmetic; two for least squares; and
any from optax. `Optimizer` is for rules of one's own."""

from thalweg.optimizers.adam import Adam, Adamax, AdamW, NAdam, RAdam
from thalweg.optimizers.adaptive import Adadelta, Adagrad, RMSprop, Rprop
from thalweg.optimizers.base import Optimizer, hyper, switch
from thalweg.optimizers.external import Optax, optax
from thalweg.optimizers.lbfgs import LBFGS
from thalweg.optimizers.least_squares import GaussNewton, LevenbergMarquardt
from thalweg.optimizers.names import by_name
from thalweg.optimizers.sgd import ASGD, SGD

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GaussNewton",
    "LevenbergMarquardt",
    "NAdam",
    "Optax",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "by_name",
    "hyper",
    "optax",
    "switch",
]
