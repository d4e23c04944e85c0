"""The layers of the lecture that Keras lacks: each random in training, and its own average or best guess in prediction.

Importing this package registers them for loading under the package name `transferapp`. What a bundle ships does without
them: see `transferapp.training.heads`.
"""

from transferapp.layers.dropconnect import DropConnect
from transferapp.layers.fractional_pooling import FractionalMaxPooling2D
from transferapp.layers.maxout import Maxout
from transferapp.layers.stochastic_depth import StochasticDepth

__all__ = ["DropConnect", "FractionalMaxPooling2D", "Maxout", "StochasticDepth"]
