# Two images from one file:
#
#   docker build --target gateway -t mochi-server-gateway .    # HTTP only, no torch
#   docker build --target worker  -t mochi-server-worker .     # torch and the model, needs a GPU
#
# It needs BuildKit (`docker buildx`) or podman; for podman, BUILDAH_FORMAT=docker keeps the health
# checks. Both images run as 10001:10001 and write only to /data and /tmp, so the root may be
# read-only.
#
# A mirror of PyPI, with its password and its certificate authority, is a secret of the build, so
# that no image keeps it. pip.conf may say `cert = /run/secrets/ca.pem`:
#
#   docker build --secret id=pip.conf,src=pip.conf --secret id=ca.pem,src=ca.pem --target gateway .
#
# A tag can be moved. To pin a base for good, add its digest, which
# `docker buildx imagetools inspect IMAGE` prints:
#
#   docker build --build-arg PYTHON_IMAGE=python:3.11.15-slim-trixie@sha256:... --target gateway .
ARG PYTHON_IMAGE=python:3.11.15-slim-trixie
# The small flavour: torch's wheels carry the CUDA libraries. The image adds the check that the
# driver is new enough. Any image with glibc and apt will do, with or without Python 3.11 or later.
ARG WORKER_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
# `mock` leaves torch out: docker/compose.mock.yaml.
ARG WORKER_EXTRA=worker
# Of the labels and of `mochi-server --version`, as `git` is not asked here: docs/deploy.md.
# SOURCE is the URL of your repository. Empty is "not told".
ARG VERSION=0+unknown
ARG REVISION=
ARG CREATED=
ARG SOURCE=


# ---- what goes into both images, smallest changes last: a change of a source makes one new layer,
# ---- the one with the wheel
FROM ${PYTHON_IMAGE} AS pins
WORKDIR /pins
COPY pyproject.toml constraints.txt docker/image/requirements.py docker/image/sbom.py ./
ARG WORKER_EXTRA
RUN python3 requirements.py mcp otel >gateway.txt \
    && python3 requirements.py otel provenance "${WORKER_EXTRA}" >worker.txt \
    && grep -E '^(torch|triton|cuda-|nvidia-)' constraints.txt >torch.txt


FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
ARG VERSION
ARG REVISION
RUN printf '{"version": "%s", "commit": "%s"}' "$VERSION" "$REVISION" >models/version/record.json
ARG PIP_INDEX_URL
# Both names: pip reads the first one for its builds until 25.2, and the second from 25.3 on.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .


# ---- gateway
FROM ${PYTHON_IMAGE} AS gateway-dependencies
RUN groupadd --gid 10001 mochi \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp mochi \
    && install --directory --owner=mochi --group=mochi --mode=0750 /data /data/outputs
ENV PATH=/opt/venv/bin:$PATH
ARG PIP_INDEX_URL
RUN --mount=type=bind,from=pins,source=/pins/gateway.txt,target=/pins/gateway.txt \
    --mount=type=bind,from=pins,source=/pins/constraints.txt,target=/pins/constraints.txt \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /opt/venv \
    && pip install --no-cache-dir -c /pins/constraints.txt -r /pins/gateway.txt


FROM gateway-dependencies AS gateway-sbom
RUN --mount=type=bind,from=pins,source=/pins,target=/pins \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /cyclonedx \
    && /cyclonedx/bin/pip install --no-cache-dir -c /pins/constraints.txt cyclonedx-bom \
    && /cyclonedx/bin/python /pins/sbom.py /opt/venv >/sbom.cdx.json


FROM gateway-dependencies AS gateway
COPY --from=gateway-sbom /sbom.cdx.json /usr/share/doc/mochi-server/
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MOCHI_HOST=0.0.0.0 \
    MOCHI_PORT=8000 \
    MOCHI_DATA_DIR=/data
ARG PYTHON_IMAGE
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
# Of all that is inside: our code, Python packages and what they bundle (the SBOM has each), and
# the base.
LABEL org.opencontainers.image.title="mochi-server gateway" \
      org.opencontainers.image.description="The Mochi 1 text-to-video API, self-hosted: HTTP" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-2-Clause AND BSD-3-Clause AND GPL-2.0-or-later AND GPL-3.0-or-later AND ISC AND LGPL-2.1-or-later AND MIT AND MIT-0 AND MPL-2.0 AND PSF-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
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
FROM ${WORKER_IMAGE} AS worker-dependencies
# The CUDA image has no Python. Triton, which compiles the model on the GPU, builds its launchers
# with gcc and Python's headers; g++ brings both compilers that PyTorch may call. Pulls trust the
# CAs of the system.
# DL3008 wants package versions, but Ubuntu keeps one build of each: a pinned one is soon gone.
ARG WORKER_EXTRA
# hadolint ignore=DL3008
RUN set -- \
    && if ! command -v python3; then set -- python3 python3-dev python3-venv; fi \
    && if [ "${WORKER_EXTRA}" != mock ] && ! command -v g++; then set -- "$@" g++; fi \
    && if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then set -- "$@" ca-certificates; fi \
    && if [ "$#" -gt 0 ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends "$@" \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN groupadd --gid 10001 mochi \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp mochi \
    && install --directory --owner=mochi --group=mochi --mode=0750 \
        /data /data/outputs /data/weights
ENV PATH=/opt/venv/bin:$PATH
ARG PIP_INDEX_URL
# Where the worker will run without a GPU, the index of torch's CPU wheels saves 3 GB here.
ARG PIP_EXTRA_INDEX_URL
# torch, with CUDA, is nearly all of the image, and changes the least.
RUN --mount=type=bind,from=pins,source=/pins/torch.txt,target=/pins/torch.txt \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /opt/venv \
    && if [ "${WORKER_EXTRA}" != mock ]; then \
        pip install --no-cache-dir -c /pins/torch.txt torch; \
    fi
RUN --mount=type=bind,from=pins,source=/pins/worker.txt,target=/pins/worker.txt \
    --mount=type=bind,from=pins,source=/pins/constraints.txt,target=/pins/constraints.txt \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    pip install --no-cache-dir -c /pins/constraints.txt -r /pins/worker.txt


FROM worker-dependencies AS worker-sbom
RUN --mount=type=bind,from=pins,source=/pins,target=/pins \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /cyclonedx \
    && /cyclonedx/bin/pip install --no-cache-dir -c /pins/constraints.txt cyclonedx-bom \
    && /cyclonedx/bin/python /pins/sbom.py /opt/venv >/sbom.cdx.json


FROM worker-dependencies AS worker
COPY --from=worker-sbom /sbom.cdx.json /usr/share/doc/mochi-server/
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MOCHI_DATA_DIR=/data \
    MOCHI_ALIVE_FILE=/tmp/alive
ARG WORKER_IMAGE
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
# Of all that is inside: our code, Python packages and what they bundle (the SBOM has each), and
# the base.
LABEL org.opencontainers.image.title="mochi-server worker" \
      org.opencontainers.image.description="The Mochi 1 text-to-video API, self-hosted: the model" \
      org.opencontainers.image.licenses="0BSD AND Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND CC0-1.0 AND CNRI-Python AND GPL-2.0-or-later AND GPL-3.0-or-later AND ISC AND LGPL-2.1-or-later AND LicenseRef-NVIDIA-Proprietary AND MIT AND MIT-0 AND MIT-CMU AND MPL-2.0 AND PSF-2.0 AND Zlib" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${WORKER_IMAGE}"
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
