"""Libraries kept from printing what nobody asked for, beside the errors they raise: a refusal is one line, ours."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator

from nibabel import imageglobals

# What silences the libraries belongs to the whole process.
_QUIET = threading.Lock()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep off stderr what ITK and the libraries of the formats print there beside the error that they raise.

    libpng, libtiff and MetaIO write to file descriptor 2 of this process, which is turned away for the time being.
    """
    with _QUIET, open(os.devnull, "wb") as nowhere:
        try:
            kept = os.dup(2)
        except OSError:  # a process may have no stderr
            yield
            return
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """nibabel logs every header that it mends, to stderr."""
    with _QUIET:
        before, imageglobals.logger.disabled = imageglobals.logger.disabled, True
        try:
            yield
        finally:
            imageglobals.logger.disabled = before


@contextlib.contextmanager
def quiet_predictor() -> Iterator[None]:
    """Without CUDA, nnU-Net's predictor says on stdout that it changes an option, whatever its value was."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
