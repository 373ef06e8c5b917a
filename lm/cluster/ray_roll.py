"""Gives the replicas of a model on Ray a checkpoint, waits until they serve it, and takes it back if they refuse it.

Ray calls a deployment healthy whatever its replicas did with a new `user_config`. So each replica is asked, through
Ray's proxy, which checkpoint it was given last and whether it refused that one.
"""

import json
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from lm.cluster import ray_serve
from lm.cluster.actions import Write
from lm.cluster.manifests import Manifest, to_yaml
from lm.cluster.ray_serve import Replicas
from lm.errors import InputError

REPLICA = "/replica"  # the route of lm/serving/ray_serve.py that says what a replica serves
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")  # states of an application that has no replica, or lost one
_STALE = 30.0  # seconds in which Ray may still say what it said before, and a proxy may still begin
_AGAIN = 20  # requests for each replica, until those that did not answer are given up
_SILENT = 20.0  # seconds without an answer
_SAID = 20.0  # seconds between two lines that say that it goes on
_PAUSE = 1.0  # seconds between two looks


class Dashboard:
    """The dashboard of a Ray cluster, which knows its applications."""

    def __init__(self, address: str):
        """Takes http://HEAD:8265; empty is the Ray of this machine."""
        self._address = address or ray_serve.HERE
        self._said = f"--address={address}" if address else f"Ray's dashboard, {ray_serve.HERE},"
        self._hint = "give that of a running Ray" if address else "start one with serve, or give --address"

    def application(self) -> Manifest:
        """Returns what Ray says of our application; nothing if there is none.

        Raises:
            InputError: nothing answers, or it is no dashboard of Ray.
        """
        if not re.match(r"https?://[^/]", self._address):
            raise InputError(f"{self._said} is no address of a dashboard; accepted: http://HOST:8265.")
        url = f"{self._address.rstrip('/')}/api/serve/applications/"
        try:
            return json.loads(_fetch(url, _token(self._address)))["applications"].get(ray_serve.NAME, {})
        except urllib.error.HTTPError as error:
            why = "it wants the token of its cluster; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            why = why if error.code in (401, 403) else self._hint
            raise InputError(f"{self._said} answers {error.code} {error.reason}: {why}.") from None
        except OSError as error:
            raise InputError(f"{self._said} does not answer ({_reason(error)}); {self._hint}.") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{self._said} is no dashboard of Ray; accepted: http://HOST:8265.") from None


class Refused(Exception):
    """Ray or a replica says why a checkpoint is not served."""


def deploy(wanted: Replicas, file: str, address: str, *, is_roll: bool = False) -> None:
    """Gives a cluster the config, and returns once every replica serves its checkpoint.

    Args:
        wanted: what to serve.
        file: for the config; empty: none is kept.
        address: the dashboard; empty is that of this machine.
        is_roll: whether something has to be served already.

    Raises:
        InputError: the checkpoint is refused, and Ray has the config before it again; or Ray or its proxy do not
            answer, and nothing was changed.
    """
    dashboard, replicas = Dashboard(address), Proxy(wanted, address)
    before = dashboard.application()
    if is_roll and not before:
        raise InputError("nothing is served there yet; start it with serve in place of roll.")
    is_served = before.get("status") == "RUNNING" and bool(_replicas(before))
    if is_served:
        replicas.ask()  # before anything changes: whoever cannot be asked could refuse it unseen
    made = ray_serve.config(wanted)
    _send(made, file, address)
    try:
        steps = _wait(dashboard, replicas, made, before.get("status", ""), is_served)
    except Refused as refused:
        kept = ""
        if old := before.get("deployed_app_config"):
            _send({**made, "applications": [old]}, "", address)
            kept = " Ray has the config before it again."
        raise InputError(f"{refused}{kept}") from None
    what = ", ".join(f"{name} at step {step}" for name, step in steps.items()) or wanted.checkpoint
    print(f"serving {what} on {replicas.url}", flush=True)


class Proxy:
    """Ray's HTTP server, which passes a request to one of the replicas."""

    def __init__(self, wanted: Replicas, address: str):
        self.url = url(wanted, address)
        key = os.environ.get("LM_API_KEYS", "").partition(",")[0].strip()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self) -> Manifest:
        """Returns what one replica says of itself.

        Raises:
            InputError: none answers.
        """
        try:
            return json.loads(_fetch(self.url + REPLICA, self._headers))
        except urllib.error.HTTPError as error:
            why = "set LM_API_KEYS as the replicas have it" if error.code == 401 else "serve it anew with this version"
            raise InputError(f"{self.url} answers {error.code} when asked for its checkpoint; {why}.") from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.url} does not answer ({_reason(error)}), so its replicas could refuse a checkpoint unseen; "
                "give the --host and --port that serve had, from a machine that reaches them."
            ) from None


def url(wanted: Replicas, address: str) -> str:
    """Returns where Ray's proxy listens, as this machine sees it."""
    head = urllib.parse.urlsplit(address).hostname or "127.0.0.1"
    host = wanted.host if wanted.host not in ("0.0.0.0", "::") else head
    return f"http://{f'[{host}]' if ':' in host else host}:{wanted.port}"


def _wait(dashboard: Dashboard, replicas: Proxy, made: Manifest, before: str, is_served: bool) -> Mapping[str, int]:
    """Waits until all replicas serve the checkpoint of a config; returns the step of each model.

    Args:
        dashboard, replicas: what is asked.
        made: the config that was sent.
        before: the state of the application before it.
        is_served: whether replicas ran before, and so have to be asked.

    Raises:
        Refused: Ray or a replica refuses it.
    """
    checkpoint = made["applications"][0]["deployments"][0]["user_config"]["checkpoint"]
    begun, said = time.monotonic(), Said(f"waiting until the replicas serve {checkpoint}")
    unheard = 0.0
    while True:
        said.again()
        application = dashboard.application()
        status, seconds = application.get("status", ""), time.monotonic() - begun
        if (why := reason(application)) and (status != before or seconds > _STALE):
            raise Refused(f"{checkpoint} is not served: {why}.")
        running = _replicas(application)
        if status == "RUNNING" and {each["state"] for each in running} <= {"RUNNING"}:
            try:
                if (steps := _served(replicas.ask, checkpoint, len(running))) is not None:
                    return steps
                unheard = 0.0
            except InputError:  # the proxy begins, or it listens where this machine does not reach it
                unheard = unheard or seconds
                if seconds - unheard > _STALE:
                    if is_served:
                        raise
                    return {}
        time.sleep(_PAUSE)


def _served(ask: Callable[[], Manifest], checkpoint: str, count: int) -> Mapping[str, int] | None:
    """Asks until each of so many replicas has answered; returns the step of each model, or None if one is not ready.

    Raises:
        Refused: a replica refuses it.
    """
    found: dict[str, Mapping[str, int]] = {}
    for _ in range(_AGAIN * count):  # the proxy chooses who answers
        said = ask()
        if said["checkpoint"] != checkpoint:
            return None
        if said["refusal"]:
            kept = ", ".join(f"{name} keeps step {step}" for name, step in said["steps"].items())
            raise Refused(f"{said['refusal']} {kept}.")
        found[said["replica"]] = said["steps"]
        if len(found) >= count:
            break
    return next(iter(found.values()), {})


def _replicas(application: Manifest) -> list[Manifest]:
    return application.get("deployments", {}).get(ray_serve.DEPLOYMENT, {}).get("replicas", [])


def reason(application: Manifest) -> str:
    """Returns why Ray gave an application up: in the last words of its traceback; empty: it did not."""
    if application.get("status") not in _FAILED:
        return ""
    deployments = application.get("deployments", {}).values()
    said = [application.get("message", ""), *(each.get("message", "") for each in deployments)]
    lines = [line.strip() for line in "\n".join(said).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return f"Ray says {application['status']}: {(errors or lines or ['no reason'])[-1].rstrip('.')}"


def _send(made: Manifest, file: str, address: str) -> None:
    """Sends a config.

    Raises:
        InputError: Ray does not take it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = file or f"{folder}/{ray_serve.FILE}"
        Write(path, to_yaml([made]).encode()).carry_out()
        command = ray_serve.ask("deploy", address, path)
        done = command.output()
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise InputError(f"Ray does not take the config: {(lines or ['serve deploy failed'])[-1]}")


class Said:
    """Says what is waited for, at once and from time to time."""

    def __init__(self, what: str):
        self._what, self._begun = what, time.monotonic()
        self._last = self._begun
        print(what, file=sys.stderr, flush=True)

    def again(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SAID:
            self._last = now
            print(f"{self._what}: {now - self._begun:.0f} s so far", file=sys.stderr, flush=True)


def _fetch(url: str, headers: Mapping[str, str]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=_SILENT) as answer:
        return answer.read()


def _reason(error: Exception) -> str:
    """Returns the operating system's words for an error."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(inner, "strerror", None) or str(inner)


def _token(address: str) -> Mapping[str, str]:
    """Returns the header with Ray's token, where its command line would send one."""
    if ray_serve.authentication(address) != "token":
        return {}
    if not (token := os.environ.get("RAY_AUTH_TOKEN", "")):
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
        token = path.read_text().strip() if path.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}
