"""Write a submission for Kaggle's "cifar-10": `python submit.py runs/NAME --images DIR --out submission.csv`."""

import argparse
from pathlib import Path
from tempfile import TemporaryFile

import pandas as pd

from data.decode import decode_stream
from data.errors import InputError
from data.files import write_atomically
from data.labels import label_table
from data.listing import numbered_images
from training.cli import TTA, TTA_HELP, OneLineParser, one_line_errors, tell


def main() -> None:
    parser = OneLineParser(prog="submit.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or its best.safetensors")
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of images named by number, such as 1.png"
    )
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--tta", choices=TTA, default="none", help=f"predict by the mean over {TTA_HELP}")
    with one_line_errors():
        submit(parser.parse_args())


def submit(arguments: argparse.Namespace) -> None:
    if arguments.out.exists() and not arguments.out.is_file():
        kind = "a folder" if arguments.out.is_dir() else "no regular file"
        raise InputError(f"--out {arguments.out}: is {kind}; expected a file to write")
    check_writable(arguments.out)
    images = numbered_images(arguments.images)
    known = check_against_sample(arguments.images, list(images))
    labels = predict(arguments.run, list(images.values()), arguments.tta, known)
    table = pd.DataFrame({"id": list(images), "label": labels})
    write_atomically(arguments.out, table.to_csv(index=False, lineterminator="\n").encode())
    tell(f"{arguments.out}: {len(table)} predictions")


def check_writable(path: Path) -> None:
    """OSError, before all images are predicted, where no file can be made in the folder of `path`, or above it."""
    above = path.absolute().parents
    try:
        with TemporaryFile(dir=next(folder for folder in above if folder.exists())):
            pass
    except OSError as error:
        error.filename = str(path)
        raise


def check_against_sample(folder: Path, ids: list[int]) -> set[str]:
    """Compare the ids with sampleSubmission.csv, where one lies in the folder or beside it; returns its labels.

    Raises:
        InputError: an image is missing or too many.
    """
    for sample in (folder / "sampleSubmission.csv", folder.resolve().parent / "sampleSubmission.csv"):
        if sample.is_file():
            labels, found = label_table(sample), set(ids)
            if missing := labels.keys() - found:
                number = min(missing)
                raise InputError(f"{folder}: no image for id {number} of {sample} ({len(missing)} missing in all)")
            if extra := found - labels.keys():
                raise InputError(f"{folder}: image {min(extra)} is not in {sample} ({len(extra)} such in all)")
            return {label.name for label in labels.values()}
    return set()


def predict(run: Path, paths: list[str], tta: str, known: set[str]) -> list[str]:
    """The class names predicted for image files, in their order. Only a few batches are in memory at a time.

    Raises:
        InputError: the run does not tell the classes `known` apart.
    """
    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    import torch
    from tqdm import tqdm

    from training.inference import EVALUATION_BATCH, open_predictor

    predictor, about, _ = open_predictor(run)
    classes, labels = about["classes"], []
    if unknown := sorted(known - set(classes)):
        raise InputError(f"{run}: trained on other classes than sampleSubmission.csv's, which has {unknown[0]!r}")
    with tqdm(total=len(paths), desc="predicting", unit="image", disable=None) as bar:
        for pixels in decode_stream(paths, EVALUATION_BATCH):
            images = torch.from_numpy(pixels).to(predictor.device).permute(0, 3, 1, 2)
            labels += [classes[index] for index in predictor.logits(images, tta).argmax(1).tolist()]
            bar.update(len(pixels))
    return labels


if __name__ == "__main__":
    main()
