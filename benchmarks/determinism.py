"""What `--deterministic` costs: the same steps with and without it."""

from argparse import Namespace
from contextlib import ExitStack
from functools import partial
from itertools import product

from benchmarks.common import Contender, Row, base_config, interleave, make_parser, run
from benchmarks.loops import open_loop
from benchmarks.processes import in_own_process


def add_ratio(rows: list[Row]) -> None:
    """To each row, which follows the one without determinism: its rate over that one's, by round."""
    for without, with_it in zip(rows[::2], rows[1::2], strict=True):
        rates = zip(with_it.measured["images/s"], without.measured["images/s"], strict=True)
        with_it.measured["of the rate without"] = [one / other for one, other in rates]


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu = arguments.device == "cuda"
    steps = 1 if arguments.quick else 100 if on_gpu else 4
    stems = ("cifar", "imagenet") if on_gpu or arguments.full else ("imagenet",)
    with ExitStack() as stack:
        contenders = []
        for stem, deterministic in product(stems, (False, True)):
            config = base_config(arguments, batch_size=128, stem=stem, deterministic=deterministic)
            measure = stack.enter_context(in_own_process(open_loop, "ours", config))
            case = {"network": config.model, "stem": stem, "batch": 128, "deterministic": deterministic}
            contenders.append(Contender(case, partial(measure, steps)))
        rows = interleave(contenders, arguments.repeats)
    add_ratio(rows)
    return rows


def main() -> None:
    run("determinism", make_parser("determinism", __doc__), benchmark)


if __name__ == "__main__":
    main()
