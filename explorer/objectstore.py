"""The client of object stores: s3fs, with errors that say what to do.

Credentials, region and endpoint are botocore's: the AWS_* variables, profiles, instance roles.
Everything goes through this one client, tables and Ray Train's checkpoints included, so that no
second one reads them differently.
"""

from __future__ import annotations

from typing import Any

import fsspec
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from upath import UPath

from search_spaces.errors import InputError, RunError

# three attempts of five seconds: a store that is away is said soon, a short gap is bridged
_RETRIES = {"mode": "standard", "total_max_attempts": 3}
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class ObjectStore(s3fs.S3FileSystem):  # type: ignore[misc]  # untyped
    """S3 whose errors, where Python has none for them, are a user's."""

    async def set_session(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, and look at the errors of every request of the client, listings included."""
        client = await super().set_session(*args, **kwargs)
        client.meta.events.register("after-call-error.s3", _explain, unique_id="explorer")
        return client


# what upath finds for s3://
fsspec.register_implementation("s3", ObjectStore, clobber=True)


def _explain(exception: Exception, **_: object) -> None:
    if isinstance(exception, NoCredentialsError | PartialCredentialsError):
        raise InputError(f"object store: {exception}; set {_CREDENTIALS}") from exception
    if isinstance(exception, BotoCoreError):
        raise RunError(
            f"object store: {exception}; check AWS_ENDPOINT_URL and the network, then run or "
            f"resume again"
        ) from exception


def folder_of(uri: str) -> UPath:
    """The folder that an s3:// URI names."""
    return UPath(
        uri,
        use_listings_cache=False,  # other processes write there too
        config_kwargs={"retries": _RETRIES},
    )


def require_access(folder: UPath) -> None:
    """Ask for the folder's first object, so that what is wrong is said before work begins.

    Raises:
        InputError: no such bucket, or no access to it.
        RunError: the store does not answer, or fails.
    """
    bucket, key, _ = folder.fs.split_path(folder.path)
    try:
        folder.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except (FileNotFoundError, ParamValidationError) as error:
        raise InputError(f"{folder}: no bucket {bucket!r} ({error}); create it") from error
    except PermissionError as error:
        raise InputError(f"{folder}: no access ({error}); check {_CREDENTIALS}") from error
    except OSError as error:
        raise RunError(f"{folder}: the object store fails ({error}); try again later") from error
