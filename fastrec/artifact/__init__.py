"""A compressed model as a folder: graphs as data, tensors once, digests of everything; nothing in it is code.

`Contents` says what is kept, `payload` and `write` put it onto the disk in one step, `read` gives it back, `check` looks
whether a folder is whole and safe.
"""

from __future__ import annotations

from .checking import check
from .contents import Contents, Loaded
from .graphs import path_of
from .manifest import Manifest, Modules
from .plain_form import PlainForm, read_plain
from .reading import read
from .tensors import digest_of
from .writing import Payload, payload, write

__all__ = [
    "Contents", "Loaded", "Manifest", "Modules", "Payload", "PlainForm", "check", "digest_of", "path_of", "payload", "read", "read_plain", "write",
]  # fmt: skip
