# Two images of one project, each from its own lock file:
#
#   docker build -t transferapp .                       serve (the default): HTTP only, no TensorFlow in it
#   docker build -t transferapp-fit --target fit .      every command: fit, plan, evaluate, ...
#
# docs/service.md shows how to run them; compose.yaml runs them locked down.

FROM python:3.11-slim-bookworm AS base
# First on the path even while empty: `python` means this environment in every later stage.
ENV PATH=/opt/venv/bin:$PATH
# A fixed number, so that a host can grant rights to that user without a name.
RUN groupadd --gid 10001 transferapp \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin transferapp \
 && install --directory --owner=10001 --group=10001 /models


# The project itself, built once for both images.
FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY transferapp transferapp
COPY service service
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


# Third-party packages, rebuilt only when the lock file changes. Bytecode is compiled here and never checked again
# (unchecked-hash): the finished images run as a user who may not write it, and would compile at every start.
FROM base AS serve-packages
COPY requirements/serve.txt /tmp/
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes -r /tmp/serve.txt
# The service uses only OpenVINO's CPU plug-in and the reader of its own format. Plug-ins for other devices, readers of other
# frameworks' files and the C++ headers are more than a third of the package.
RUN cd /opt/venv/lib/python3.11/site-packages/openvino \
 && rm -rf include libs/cache.json libs/libopenvino_intel_gpu_plugin.so libs/libopenvino_intel_npu_plugin.so \
 && for reader in gguf jax onnx paddle pytorch tensorflow tensorflow_lite; do \
      rm -f libs/libopenvino_${reader}_frontend.so*; \
    done \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM base AS fit-packages
COPY requirements/fit.txt /tmp/
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes -r /tmp/fit.txt
# C++ headers of TensorFlow, Arrow and OpenVINO are needed only for compiling against them.
RUN cd /opt/venv/lib/python3.11/site-packages \
 && rm -rf tensorflow/include pyarrow/include openvino/include openvino/libs/cache.json \
      openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib


FROM base AS fit
COPY --from=fit-packages /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
 && install --directory --mode=1777 /cache \
 && python -c "import transferapp.recipes.fit.fit, tensorflow"
ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TRANSFERAPP_CACHE=/tmp/transferapp
USER 10001:10001
ENTRYPOINT ["transferapp"]
CMD ["--help"]


FROM base AS serve
COPY --from=serve-packages /opt/venv /opt/venv
# The import compiles the standard library, for which the base image has no bytecode, and fails the build if the lock file
# lacks a package.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
 && python -c "import openvino, service.healthcheck, service.server, transferapp.cli.main, transferapp.cli.serve"
ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TRANSFERAPP_MODELS=/models \
    TRANSFERAPP_CACHE=/tmp/transferapp \
    TRANSFERAPP_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 CMD ["python", "-m", "service.healthcheck"]
ENTRYPOINT ["transferapp"]
CMD ["serve"]
