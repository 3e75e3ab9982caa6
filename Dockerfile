# Two images from one file:
#
#   docker build --target gateway -t mochi-server-gateway .    # HTTP only, no torch
#   docker build --target worker  -t mochi-server-worker .     # torch and the model, needs a GPU
#
# Both run as 10001:10001 and write only to /data and /tmp, so the root may be read-only.
# A tag can be moved. To pin a base for good, add its digest, which
# `docker buildx imagetools inspect IMAGE` prints:
#
#   docker build --build-arg PYTHON_IMAGE=python:3.11.15-slim-trixie@sha256:... --target gateway .
ARG PYTHON_IMAGE=python:3.11.15-slim-trixie
# The small flavour: torch's wheels carry the CUDA libraries. The image adds the check that the
# driver is new enough. Any image with glibc and either Python 3.11 or apt will do.
ARG WORKER_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
# Of the labels and of `mochi-server --version`, as `git` is not asked here:
# --build-arg VERSION=0.2.0 --build-arg REVISION="$(git rev-parse HEAD)"
ARG VERSION=0+unknown
ARG REVISION=


# ---- what both images install
FROM scratch AS pins
COPY pyproject.toml hatch_build.py constraints.txt /
COPY docker/grafana/dashboards/mochi.json /docker/grafana/dashboards/
COPY docker/nginx.conf /docker/
COPY docker/prometheus/rules.yaml /docker/prometheus/
COPY docker/systemd /docker/systemd
# Hatchling asks it for the version.
COPY models/version /models/version

FROM pins AS sources
COPY README.md LICENSE mochi_server.py /
COPY models /models
COPY worker /worker
COPY server /server


# ---- gateway
FROM ${PYTHON_IMAGE} AS gateway-build
WORKDIR /src
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# First the dependencies, around empty packages: this layer is rebuilt only when the pins change.
COPY --from=pins / .
RUN mkdir worker server \
    && touch README.md LICENSE mochi_server.py worker/__init__.py server/__init__.py \
    && pip install --no-cache-dir -c constraints.txt '.[mcp,otel]'
COPY --from=sources / .
ARG VERSION
ARG REVISION
RUN printf '{"version": "%s", "commit": "%s"}' "$VERSION" "$REVISION" >models/version/record.json \
    && pip install --no-cache-dir --no-deps --force-reinstall .


FROM ${PYTHON_IMAGE} AS gateway
RUN groupadd --gid 10001 mochi \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp mochi \
    && install --directory --owner=mochi --group=mochi --mode=0750 /data /data/outputs
COPY --from=gateway-build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MOCHI_HOST=0.0.0.0 \
    MOCHI_PORT=8000 \
    MOCHI_DATA_DIR=/data
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="mochi-server gateway" \
      org.opencontainers.image.description="The Mochi 1 text-to-video API, self-hosted: HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: a gateway must not be restarted because the broker is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os, ssl; a = ('127.0.0.1', int(os.environ['MOCHI_PORT'])); c = h.HTTPSConnection(*a, timeout=4, context=ssl._create_unverified_context()) if os.environ.get('MOCHI_TLS_CERT') else h.HTTPConnection(*a, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["mochi-server"]
CMD ["gateway"]


# ---- worker
FROM ${WORKER_IMAGE} AS worker-base
# The CUDA image has no Python; a Python image, as docker/compose.mock.yaml gives, has its own.
# Triton, which compiles the model on the GPU, builds its launchers with gcc and Python's headers;
# g++ brings both compilers that PyTorch may call. Pulls trust the CAs of the system.
# DL3008 wants package versions, but Ubuntu keeps one build of each: a pinned one is soon gone.
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends \
            ca-certificates g++ python3 python3-dev python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi


FROM worker-base AS worker-build
WORKDIR /src
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Where the worker will run without a GPU, the index of torch's CPU wheels saves 3 GB here.
ARG PIP_EXTRA_INDEX_URL
# `mock` leaves torch out: docker/compose.mock.yaml.
ARG WORKER_EXTRA=worker
COPY --from=pins / .
RUN mkdir worker server \
    && touch README.md LICENSE mochi_server.py worker/__init__.py server/__init__.py \
    && pip install --no-cache-dir -c constraints.txt ".[otel,${WORKER_EXTRA}]"
COPY --from=sources / .
ARG VERSION
ARG REVISION
RUN printf '{"version": "%s", "commit": "%s"}' "$VERSION" "$REVISION" >models/version/record.json \
    && pip install --no-cache-dir --no-deps --force-reinstall .


FROM worker-base AS worker
RUN groupadd --gid 10001 mochi \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp mochi \
    && install --directory --owner=mochi --group=mochi --mode=0750 \
        /data /data/outputs /data/weights
COPY --from=worker-build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MOCHI_DATA_DIR=/data \
    MOCHI_ALIVE_FILE=/tmp/alive
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="mochi-server worker" \
      org.opencontainers.image.description="The Mochi 1 text-to-video API, self-hosted: the model" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
# The heartbeat touches the file: neither Python is started nor the broker needed. The long start is
# the loading of the weights.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60m --retries=3 \
    CMD ["sh", "-c", "test -n \"$(find /tmp/alive -mmin -1)\""]
ENTRYPOINT ["mochi-server"]
CMD ["worker"]
