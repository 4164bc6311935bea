"""Whether a model's file is what was written, and whether this user wrote it.

Every checkpoint carries a SHA-256 over all that it holds, tensors and facts in an order of their own: a damaged file
is told apart. With it, where a run was told something that is not followed from a stranger's file (a path, a download,
several processes), goes an HMAC of that digest with a key of the user's own, 32 random bytes in `FLOWDIFF_CACHE` (or
~/.cache/flowdiff). Only where it is right are such stored values the user's own, and followed; on another machine, or
without the key, they are asked for again.
"""

import hashlib
import hmac
import os
import secrets
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.files import cache_folder

DIGEST, SIGNATURE = "sha256", "signature"  # entries beside the others
KEY_BYTES = 32


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over nested mappings, lists, plain values and tensors but `DIGEST` and `SIGNATURE`, as hexadecimals.

    Keys are taken in their order as text, and lists and tuples are the same, so that it survives JSON and pickle.
    """
    found = hashlib.sha256()
    _add(found, {key: value for key, value in content.items() if key not in (DIGEST, SIGNATURE)})
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        _head(found, b"T", f"{value.dtype}{tuple(value.shape)}".encode())
        if value.layout is torch.strided and not value.is_quantized and value.numel():  # others are not read back
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        _head(found, b"M", str(len(value)).encode())
        for key in sorted(value, key=lambda key: (str(key), isinstance(key, str))):
            _add(found, key)
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        _head(found, b"L", str(len(value)).encode())
        for each in value:
            _add(found, each)
    elif isinstance(value, float):
        _head(found, b"F", struct.pack("<d", value))
    else:
        _head(found, type(value).__name__.encode(), str(value).encode("utf-8", "surrogatepass"))


def _head(found: Any, kind: bytes, data: bytes) -> None:
    """Kind, length and data: no two values are written alike."""
    found.update(b"%s %d " % (kind, len(data)))
    found.update(data)


def add_seal(content: Mapping[str, Any], key: bytes | None) -> dict[str, Any]:
    """The content with its digest, and with the signature of that by a key."""
    digest = digest_of(content)
    signature = {} if key is None else {SIGNATURE: _signature(key, digest)}
    return {**{k: v for k, v in content.items() if k != SIGNATURE}, DIGEST: digest, **signature}


def check(content: Mapping[str, Any]) -> bool:
    """Whether the content has a digest. Where it has a wrong one the file is damaged.

    Raises:
        FlowdiffError: it has one, and it is wrong.
    """
    if DIGEST not in content:
        return False
    if content[DIGEST] != digest_of(content):
        raise FlowdiffError("damaged: its contents are not what was written (its SHA-256 is another)")
    return True


def is_own(content: Mapping[str, Any]) -> bool:
    """Whether this user wrote it: to be asked after `check`."""
    digest, signature, key = content.get(DIGEST), content.get(SIGNATURE), own_key(make=False)
    if key is None or not isinstance(digest, str) or not isinstance(signature, str) or not signature.isascii():
        return False
    return hmac.compare_digest(signature, _signature(key, digest))


def _signature(key: bytes, digest: str) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


def own_key(make: bool) -> bytes | None:
    """The user's key; None where there is none, or none can be read or made.

    Args:
        make: make one if there is none.
    """
    path = cache_folder() / "key"
    try:
        key = path.read_bytes()
    except OSError:
        key = b""
    if len(key) == KEY_BYTES:
        return key
    if not make:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key.")  # readable by the user alone
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            if not key:
                os.link(temporary, path)  # not over the key of a process that was faster
            else:
                os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        pass
    except OSError:
        return None
    return own_key(make=False)
