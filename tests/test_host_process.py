"""Importing the package leaves the process that imports it as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, logging, os, pkgutil, signal, sys, warnings

# What these change when they are imported is their own affair.
import keras, numpy, PIL.Image, PIL.ImageCms, scipy.special, tensorflow, threadpoolctl

def state():
    return {
        **{f"environment variable {name}": value for name, value in os.environ.items()},
        **{f"entry of sys.modules {name}": None for name, module in sys.modules.items() if module is None},
        "warning filters": list(warnings.filters),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "root logger": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "excepthook": sys.excepthook,
    }

before = state()
import transferapp
for module in pkgutil.walk_packages(transferapp.__path__, "transferapp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from transferapp.backbones.engine import import_openvino
import_openvino()
after = state()
for name in before.keys() | after.keys():
    if (name in before, before.get(name)) != (name in after, after.get(name)):
        print(f"{name} was {before.get(name, 'missing')} and is {after.get(name, 'missing')}")
"""


def test_importing_every_module_changes_nothing_in_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
