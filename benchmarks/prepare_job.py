"""One job of benchmarks/prepare.py, in a process of its own that imports no more than train.py does for it.

    python -m benchmarks.prepare_job cache|beton|pil FOLDER CACHE_DIR

prints the seconds that it took, without those of starting Python.
"""

import shutil
import sys
import time
from pathlib import Path

# Imports are in the jobs, as train.py's are: the processes that decode import this file, too.


def to_cache(folder: Path, cache_dir: Path) -> float:
    from data.prepared import prepare
    from data.sources import find_source

    shutil.rmtree(cache_dir, ignore_errors=True)
    started = time.perf_counter()
    prepare(find_source("cifar10", folder), cache_dir)
    return time.perf_counter() - started


def to_beton(folder: Path, cache_dir: Path) -> float:
    """The .beton beside a cache that is in place."""
    from data.ffcv_loader import whole_beton
    from data.prepared import prepare
    from data.sources import find_source

    prepared = prepare(find_source("cifar10", folder), cache_dir)
    (prepared.folder / "images.beton").unlink(missing_ok=True)
    started = time.perf_counter()
    whole_beton(prepared)
    return time.perf_counter() - started


def pil_loop(folder: Path, cache_dir: Path) -> float:
    """One core, one loop, one array; listed and saved as in the cache, without checks and digests."""
    import numpy as np
    from PIL import Image

    from data.listing import numbered_images

    started = time.perf_counter()
    paths = numbered_images(folder / "train").values()
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    cache_dir.mkdir(parents=True, exist_ok=True)
    np.save(cache_dir / "loop.npy", images)
    return time.perf_counter() - started


JOBS = {"cache": to_cache, "beton": to_beton, "pil": pil_loop}

if __name__ == "__main__":
    print(JOBS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
