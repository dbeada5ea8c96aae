# An image with SGR, Detectron2 and their requirements. See docs/docker.md.
#
#   docker build -t sgr .                                            for GPUs and CPUs
#   docker build -t sgr:cpu --build-arg TORCH_INDEX=ADDRESS .        for CPUs only, much smaller

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# An index with other builds of torch and torchvision, such as PyTorch's own for CPUs. PyPI's builds
# bring CUDA's libraries.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/sgr
COPY constraints.txt ./
RUN /opt/sgr/bin/pip install --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
COPY . ./
RUN /opt/sgr/bin/pip install --constraint constraints.txt ".[pretrained,export]"
RUN /opt/sgr/bin/python tools/install_detectron2.py --constraint constraints.txt
RUN cd / && /opt/sgr/bin/sgr-train --help > /dev/null

FROM python:${PYTHON}-slim
COPY --from=build /opt/sgr /opt/sgr
ENV PATH=/opt/sgr/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home sgr && mkdir /work && chown sgr /work
USER sgr
WORKDIR /work
CMD ["sgr-train", "--help"]
