# The computing side: Celery's supervisor and the runner with torch, ONNX and ONNX Runtime.
#   docker build -f docker/worker.Dockerfile -t winnow-worker .
# For NVIDIA devices: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg WINOGRAD_CUDA=ON
# (torch brings its own CUDA libraries; the compiler for the Winograd kernels comes in packages and stays out of the image).
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS python
# A base without Python (plain Debian or Ubuntu) gets its distribution's; all stages below must have the same one.
# hadolint ignore=DL3008
RUN command -v python3 || { \
        apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; }

FROM python AS dependencies
# hadolint ignore=DL3008
RUN python3 -m pip --version || { \
        apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*; }
# The environment has no pip of its own; this stage's installs into it from outside.
RUN python3 -m venv --without-pip /opt/winnow
WORKDIR /build
COPY pyproject.toml constraints.txt LICENSE ./
# The plain build of torch carries gigabytes of CUDA. The CPU build has a local version (+cpu), which pip takes for newer.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN touch README.md \
    && python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --constraint constraints.txt \
        --extra-index-url "${TORCH_INDEX}" '.[worker]'

# The Winograd convolutions, compiled for all instruction sets that they know and, with WINOGRAD_CUDA=ON, for NVIDIA devices. Without a
# compiler they would be built too, but slow; WINOGRAD_CPU=ON makes that an error here.
FROM dependencies AS kernels
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG WINOGRAD_CUDA=OFF
ENV CUDACXX=/opt/cuda/nvidia/cu13/bin/nvcc \
    LIBRARY_PATH=/opt/cuda/nvidia/cu13/lib
RUN test "${WINOGRAD_CUDA}" = OFF \
    || python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --no-deps --target /opt/cuda \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
COPY winograd winograd
RUN PIP_CONSTRAINT=/build/constraints.txt python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --no-deps \
        --prefix /kernels --config-settings=cmake.define.WINOGRAD_CPU=ON \
        --config-settings=cmake.define.WINOGRAD_CUDA="${WINOGRAD_CUDA}" ./winograd \
    && PYTHONPATH="$(echo /kernels/lib/python3*/site-packages)" /opt/winnow/bin/python -c \
        "from winograd import library; print(library.info()); assert library.variants()"

# Winnow itself, apart from what it needs: that is large and changes seldom, so it makes a layer that stays the same.
FROM dependencies AS build
COPY jobs jobs
COPY workers workers
RUN python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --no-deps --ignore-installed --prefix /winnow .

FROM python AS runtime
# Delivered C source is compiled and run on all images before anybody gets it.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# A fixed number, so that files on a shared volume belong to the same user in both images.
RUN groupadd --gid 10001 winnow \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin winnow \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=dependencies /opt/winnow /opt/winnow
COPY --from=kernels /kernels /opt/winnow
COPY --from=build /winnow /opt/winnow
ENV PATH=/opt/winnow/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WINNOW_DATA_FOLDER=/data
USER 10001:10001
WORKDIR /data
# Asks this worker through the broker, as a job's message would come; its threads answer while a job runs.
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import socket, sys; from workers.celery_app import app; sys.exit(not app.control.ping([f'celery@{socket.gethostname()}'], timeout=10))"]
CMD ["celery", "--quiet", "--app", "workers.celery_app", "worker", "--pool", "threads", "--concurrency", "1", \
     "--without-mingle", "--without-gossip", "--without-heartbeat"]
