"""What Amazon's tools read from the environment and ~/.aws. TensorStore itself reads neither endpoint nor region."""

import configparser
import contextlib
import os

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first one that is set counts


def endpoint() -> str | None:
    """Returns the address of another S3 server than Amazon's; None for Amazon's."""
    return next(filter(None, map(os.environ.get, ENDPOINTS)), None)


def region() -> str | None:
    """Returns the region of the buckets, if the environment says it."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def credentials() -> dict[str, str]:
    """Returns where the key is, as TensorStore's `aws_credentials`; empty if it must look in all places.

    It logs an error for each place in which it finds none.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {"type": "environment"}
    keys = os.path.expanduser(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    config = os.path.expanduser(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
    profile, parser = os.environ.get("AWS_PROFILE") or "default", configparser.RawConfigParser(strict=False)
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        parser.read(keys, encoding="utf-8")
    if not parser.has_option(profile, "aws_access_key_id"):
        return {}
    config = config if os.path.isfile(config) else os.devnull
    return {"type": "profile", "profile": profile, "credentials_file": keys, "config_file": config}
