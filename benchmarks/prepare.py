"""Images a second from PNG files to the cache, to the .beton and to submission.csv; peak memory of all processes.

The files are copies of 10,000 of the data set's images, numbered from 1, in a temporary folder in Kaggle's layout,
which is removed in the end. Beside them: a loop of PIL over one core, into one array. Submissions are made by an
untrained ResNet-18 with the imagenet stem; their time is that of the whole command.
"""

import shutil
import tempfile
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import HAS_FFCV, Contender, Row, base_config, interleave, make_parser, run
from benchmarks.processes import python, run_command
from data.spec import SPECS
from training.checkpoint import take_weights
from training.config import Config
from training.parts import initial_model, open_prepared

JOBS = {"PNG to cache": "cache", "cache to .beton": "beton", "PNG to array, PIL on one core": "pil"}
"""Jobs of benchmarks/prepare_job.py. The .beton is written from the cache that the job before has left."""


def copy_images(images: list[Path], count: int, folder: Path) -> None:
    """`count` image files as folder/train/<number>.png, each a copy, with folder/trainLabels.csv."""
    (folder / "train").mkdir(parents=True)
    for number, image in enumerate(islice(cycle(images), count), start=1):
        shutil.copyfile(image, folder / "train" / f"{number}.png")
    labels = islice(cycle(SPECS["cifar10"].classes), count)
    rows = (f"{number},{label}\n" for number, label in enumerate(labels, start=1))
    (folder / "trainLabels.csv").write_text("id,label\n" + "".join(rows))


def measure(command: list[str], count: int, whole_command: bool) -> dict[str, float]:
    """Run twice, for time and for memory. The seconds are those of the command, or those that it prints last."""
    finished = run_command(command)
    seconds = finished.seconds if whole_command else float(finished.printed.splitlines()[-1])
    peak_mib = run_command(command, watch_memory=True).peak_mib
    return {"images/s": count / seconds, "seconds": seconds, "peak memory MiB": peak_mib}


def contenders_of(folder: Path, count: int, weights: Path) -> list[Contender]:
    contenders = []
    for title, job in JOBS.items():
        if job == "beton" and not HAS_FFCV:
            continue
        command = python("-m", "benchmarks.prepare_job", job, folder, folder / "cache")
        contenders.append(Contender({"job": title, "files": count}, partial(measure, command, count, False)))
    command = python("submit.py", weights, "--images", folder / "train", "--out", folder / "submission.csv")
    submit = Contender({"job": "PNG to submission.csv", "files": count}, partial(measure, command, count, True))
    return [*contenders, submit]


def untrained_weights(config: Config, path: Path) -> Path:
    config = replace(config, stem="imagenet")
    classes = SPECS["cifar10"].classes
    about: dict[str, Any] = {"config": asdict(config), "data": "", "classes": classes, "precision": "bf16"}
    take_weights(path, initial_model(config, len(classes)), about | {"mean": [0.5] * 3, "std": [0.25] * 3})()
    return path


def image_files(arguments: Namespace, folder: Path) -> list[Path]:
    """Files to copy: the data set's last 10,000 images as PNG, whatever form they come in."""
    folder.mkdir()
    images = open_prepared(base_config(arguments)).images[-10_000:]
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for pixels, path in zip(images, paths, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def benchmark(arguments: Namespace) -> list[Row]:
    counts = arguments.files or ([200] if arguments.quick else [50_000, 300_000] if arguments.full else [50_000])
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as name:
        folder = Path(name)
        images = image_files(arguments, folder / "drawn")
        weights = untrained_weights(base_config(arguments), folder / "untrained.safetensors")
        for count in counts:
            copies = folder / str(count)
            copy_images(images, count, copies)
            rows += interleave(contenders_of(copies, count, weights), arguments.repeats, warmup=0)
            shutil.rmtree(copies)
    return rows


def main() -> None:
    parser = make_parser("prepare", __doc__)
    parser.add_argument("--files", type=int, nargs="+", help="default: 50000, with --full also 300000")
    parser.add_argument("--work-dir", help="where the temporary folder is made; default: the system's")
    run("prepare", parser, benchmark)


if __name__ == "__main__":
    main()
