"""Keras optimizers whose step on a table costs what the batch costs."""

from tfrec_efficient.optimizers.adagrad import Adagrad as Adagrad
from tfrec_efficient.optimizers.adam import Adam as Adam
from tfrec_efficient.optimizers.ftrl import FTRL as FTRL
from tfrec_efficient.optimizers.loss_scale_optimizer import LossScaleOptimizer as LossScaleOptimizer
from tfrec_efficient.optimizers.rowwise_adagrad import RowwiseAdagrad as RowwiseAdagrad
from tfrec_efficient.optimizers.sgd import SGD as SGD
