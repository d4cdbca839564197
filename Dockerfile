# syntax=docker/dockerfile:1
# Two images: `runtime` serves bundles on a processor, without PyTorch; `train` has everything, with CUDA.
#
#   docker build --target runtime --tag kiara-runtime .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v ./bundles:/bundles:ro kiara-runtime

ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/kiara
COPY constraints.txt LICENSE ./
COPY runtime runtime
RUN /opt/kiara/bin/pip install --constraint constraints.txt "./runtime[server,tokenizers]"

FROM python:${PYTHON} AS runtime
ENV PATH=/opt/kiara/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin kiara
COPY --from=build /opt/kiara /opt/kiara
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kiara-run"]
CMD ["serve", "/bundles", "--host", "0.0.0.0"]

# PyTorch's wheels bring CUDA; the machine needs NVIDIA's driver and container toolkit only.
FROM python:${PYTHON} AS train
WORKDIR /source
ENV PATH=/opt/kiara/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/home/kiara
# For training.compile; its version is Debian's.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/kiara && useradd --uid 10001 --create-home kiara
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY configs configs
COPY runtime runtime
COPY export export
COPY kiara kiara
RUN /opt/kiara/bin/pip install --constraint constraints.txt "./runtime[server,tokenizers]" ".[data,tensorboard]"
WORKDIR /home/kiara
USER 10001
ENTRYPOINT ["kiara"]
CMD ["--help"]
