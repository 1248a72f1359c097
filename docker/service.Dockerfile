# The HTTP front and the migrations: FastAPI, SQLAlchemy, Celery's sender; no torch, no compiler, no pip.
#   docker build -f docker/service.Dockerfile -t winnow-service .
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
RUN touch README.md \
    && python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --constraint constraints.txt '.[service]'

# Winnow itself, apart from what it needs: that is large and changes seldom, so it makes a layer that stays the same.
FROM dependencies AS build
COPY jobs jobs
COPY migrations migrations
COPY service service
RUN python3 -m pip --python /opt/winnow/bin/python install --no-cache-dir --no-deps --ignore-installed --prefix /winnow .

FROM python AS runtime
# A fixed number, so that files on a shared volume belong to the same user in both images.
RUN groupadd --gid 10001 winnow \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin winnow \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=dependencies /opt/winnow /opt/winnow
COPY --from=build /winnow /opt/winnow
ENV PATH=/opt/winnow/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WINNOW_DATA_FOLDER=/data
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
# Event streams and waiting requests never end by themselves: they get two seconds when the container is stopped.
CMD ["uvicorn", "--factory", "service.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--http", "httptools", "--loop", "uvloop", \
     "--no-access-log", "--no-server-header", "--log-level", "warning", "--timeout-graceful-shutdown", "2"]
