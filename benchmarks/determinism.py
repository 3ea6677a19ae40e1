"""What `--deterministic` costs: the same steps with and without it."""

from argparse import Namespace
from itertools import product

from benchmarks.common import Row, base_config, make_parser, run
from benchmarks.loops import open_loop
from benchmarks.processes import in_turn


def add_ratio(rows: list[Row]) -> None:
    """To each row, which follows the one without determinism: its rate over that one's, by round."""
    for without, with_it in zip(rows[::2], rows[1::2], strict=True):
        if without.failed or with_it.failed:
            continue
        rates = zip(with_it.measured["images/s"], without.measured["images/s"], strict=True)
        with_it.measured["of the rate without"] = [one / other for one, other in rates]


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu = arguments.device == "cuda"
    steps = 1 if arguments.quick else 400 if on_gpu else 4
    stems = ("cifar", "imagenet") if on_gpu or arguments.full else ("imagenet",)
    openings = []
    for stem, deterministic in product(stems, (False, True)):
        config = base_config(arguments, batch_size=128, stem=stem, deterministic=deterministic)
        case = {"network": config.model, "stem": stem, "batch": 128, "deterministic": deterministic}
        openings.append((case, (open_loop, "ours", config)))
    rows = in_turn(openings, steps, arguments.repeats)
    add_ratio(rows)
    return rows


def main() -> None:
    run("determinism", make_parser("determinism", __doc__), benchmark)


if __name__ == "__main__":
    main()
