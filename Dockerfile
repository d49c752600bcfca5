# The image of every pod (k8s/): this repository at /app, its packages at /opt/venv. Settings and data come in as volumes.
#
#     docker build -t registry.example.com/bm3_dgl:cpu .
#     docker build -t registry.example.com/bm3_dgl:gpu --build-arg DEVICE=gpu .
#
# The GPU image has torch as constraints.txt names it, which brings CUDA 12.1 along (5 GB); the node brings the driver. DGL is
# the CPU build in both, since only the head runs on a GPU (train.device). No GPU was at hand: that image has never been run.
FROM python:3.11-slim-bookworm AS packages
ARG DEVICE=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /app
# What the packages depend on and no more, so that a change of the program does not install them anew.
COPY constraints.txt setup.py pyproject.toml ./
COPY bm3_dgl/__init__.py bm3_dgl/
# For the CPU, the same torch from an index of builds without CUDA; pip then finds its requirement met.
RUN case "$DEVICE" in \
      cpu) /opt/venv/bin/pip install --no-deps --index-url "$TORCH_CPU_INDEX" "$(grep '^torch==' constraints.txt)+cpu" ;; \
      gpu) ;; \
      *) echo "DEVICE=$DEVICE: expected cpu or gpu" >&2; exit 1 ;; \
    esac
RUN /opt/venv/bin/pip install --constraint constraints.txt --editable .

FROM python:3.11-slim-bookworm
# DGL's library wants the system's libgomp.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bm3
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    DGLBACKEND=pytorch \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
COPY setup.py constraints.txt LICENSE ./
COPY configs configs
COPY launch launch
COPY bm3_dgl bm3_dgl
# A number, so that the kubelet can tell that it is not root.
USER 1000:1000
CMD ["python", "launch/train.py", "--help"]
