"""The documents of tests/data."""

import pytest

from tests.data.conftest import make_documents


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(400)
