"""Layers of the lecture that Keras lacks. In prediction each is an ordinary function of its input, without randomness.

Importing this package registers them for loading under the package name `transferapp`. Bundles do without them: see
`transferapp.training.heads`.
"""

from transferapp.training.layers.dropconnect import DropConnect
from transferapp.training.layers.dropout import Dropout
from transferapp.training.layers.fractional_pooling import FractionalMaxPooling2D
from transferapp.training.layers.maxout import Maxout
from transferapp.training.layers.stochastic_depth import StochasticDepth

__all__ = ["DropConnect", "Dropout", "FractionalMaxPooling2D", "Maxout", "StochasticDepth"]
