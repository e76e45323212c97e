"""Pictures that cost what photographs cost: to decode, to crop, to compress."""

import io

import numpy as np
from PIL import Image


def photograph(seed: int) -> bytes:
    """A JPEG of 500 × 375 with the detail of a photograph: coarse colours, and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375))
    grainy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 3), dtype=np.int16)
    data = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()
