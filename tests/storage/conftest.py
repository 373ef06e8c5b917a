"""A folder on each kind of object storage."""

from collections.abc import Iterator

import pytest

from tests.training.conftest import tiny_config  # noqa: F401

from . import servers
from .servers import BUCKET


# Of the session, not of the package: a worker that steals tests comes back here, and clients keep the first address.
@pytest.fixture(scope="session")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def s3_port(environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with servers.s3(tmp_path_factory.mktemp("s3"), environment) as port:
        yield port


@pytest.fixture(scope="session")
def gcs_port(environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with servers.gcs(tmp_path_factory.mktemp("gcs"), environment) as port:
        yield port


@pytest.fixture(params=["s3", "gs"])
def url(request: pytest.FixtureRequest) -> str:
    """A folder of its own on each kind of object storage."""
    request.getfixturevalue({"s3": "s3_port", "gs": "gcs_port"}[request.param])
    return f"{request.param}://{BUCKET}/{request.node.name.translate(str.maketrans('[]', '--'))}"


@pytest.fixture
def s3_url(s3_port: int, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name.translate(str.maketrans('[]', '--'))}"
