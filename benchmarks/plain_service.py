"""A plain service for comparison: the bundle's Keras model behind FastAPI, with the same ten crops.

    python benchmarks/plain_service.py BUNDLE PORT

`serving.py` starts it and compares the two.
"""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI, File
from PIL import Image

from transferapp.bundle.format import read_bundle
from transferapp.images.views import render_batch, views_for


def create_app(path: Path) -> FastAPI:
    bundle = read_bundle(path)
    model = keras.models.load_model(bundle.file("model.keras"), compile=False)
    size, names = bundle.image_size, bundle.class_names
    model.predict(np.zeros((10, *size, 3), np.float32), verbose=0)
    turn = threading.Lock()  # `predict` is not safe to call from several threads, and each call uses every core
    app = FastAPI()

    @app.post("/predict")
    def predict(file: Annotated[bytes, File()]) -> dict[str, float]:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        crops = render_batch(image, views_for(10, image.size, size), size)
        with turn:
            scores = model.predict(crops.astype(np.float32), verbose=0).mean(axis=0)
        return {names[i]: float(scores[i]) for i in np.argsort(-scores)[:5]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
