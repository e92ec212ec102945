"""Small pictures of a case: the slice with most foreground, labels in colour."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIDE = 96
# Distinct colours (red, green, blue) for labels 1, 2, ...; they repeat.
COLOURS = np.array(
    [(230, 60, 60), (60, 180, 75), (70, 120, 230), (245, 190, 30), (190, 80, 210), (60, 200, 200), (245, 130, 50)],
    dtype=np.float32,
)


def overlay(image: np.ndarray, labels: np.ndarray | None, spacing_mm: tuple[float, ...]) -> bytes:
    """A PNG of one slice.

    Args:
        image: values (z, y, x) or (y, x).
        labels: integers of the same shape, or None.
        spacing_mm: along (x, y, z) or (x, y).
    """
    if image.ndim == 3:
        z = len(image) // 2
        if labels is not None:
            filled = np.count_nonzero(labels.reshape(len(labels), -1), axis=1)
            z = int(filled.argmax()) if filled.any() else z
        image, labels = image[z], None if labels is None else labels[z]
    # Same scale along both axes; nearest neighbour is enough for a thumbnail. NIfTI's y runs towards the nose.
    sizes = np.array(image.shape) * np.array(spacing_mm[1::-1])
    sizes = np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0)
    rows, columns = (max(1, round(SIDE * size / sizes.max())) for size in sizes)
    pick = np.ix_(
        (np.arange(rows) * image.shape[0] // rows)[::-1]
        if len(spacing_mm) == 3
        else np.arange(rows) * image.shape[0] // rows,
        np.arange(columns) * image.shape[1] // columns,
    )
    grey = np.nan_to_num(image[pick].astype(np.float32), posinf=0, neginf=0)
    low, high = np.percentile(grey, (1, 99))
    grey = np.clip((grey - low) / max(float(high - low), 1e-12), 0, 1) * 255
    picture = np.repeat(grey[..., None], 3, axis=2)
    if labels is not None:
        small = labels[pick]
        inside = small > 0
        picture[inside] = 0.55 * picture[inside] + 0.45 * COLOURS[(small[inside].astype(int) - 1) % len(COLOURS)]
    return png(picture.astype(np.uint8))


def png(picture: np.ndarray) -> bytes:
    """`picture`, uint8 (rows, columns, 3), as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns, _ = picture.shape
    lines = b"".join(b"\0" + line.tobytes() for line in picture)  # 0: no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
