"""transferapp: a folder of images in, a measured, explained and served image classifier out.

The public names are imported when they are first used, so `import transferapp` itself imports nothing heavy::

    import transferapp

    result = transferapp.fit(transferapp.make_config({"data": "images/"}))
    predictor = transferapp.Predictor.load(result.path)
    print(predictor.predict("image.jpg").scores)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transferapp.bundle.predictor import Predictor as Predictor
    from transferapp.config import FitConfig as FitConfig
    from transferapp.config import make_config as make_config
    from transferapp.errors import TransferAppError as TransferAppError
    from transferapp.recipes.audit import audit as audit
    from transferapp.recipes.ensemble import ensemble as ensemble
    from transferapp.recipes.evaluate import evaluate as evaluate
    from transferapp.recipes.export import export as export
    from transferapp.recipes.fit.fit import fit as fit
    from transferapp.recipes.fit.fit import plan as plan
    from transferapp.recipes.search.search import search as search
    from transferapp.recipes.update import update as update

_MODULES = {
    "fit": "transferapp.recipes.fit.fit",
    "plan": "transferapp.recipes.fit.fit",
    "evaluate": "transferapp.recipes.evaluate",
    "search": "transferapp.recipes.search.search",
    "ensemble": "transferapp.recipes.ensemble",
    "export": "transferapp.recipes.export",
    "audit": "transferapp.recipes.audit",
    "update": "transferapp.recipes.update",
    "Predictor": "transferapp.bundle.predictor",
    "FitConfig": "transferapp.config",
    "make_config": "transferapp.config",
    "TransferAppError": "transferapp.errors",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
