"""Properties of what takes a user's text, and of what cuts the images into batches, over random examples.

What tests/test_sampling.py holds of a single split, order or share is not repeated here.
"""

import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.errors import InputError
from data.labels import label_table
from data.sampling import epoch_batches, micro_batches, split
from training import config as configuration
from training.config import Config, flag, parse_config, recorded_config

T = TypeVar("T")

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
many = settings(few, max_examples=300)

KINDS = get_type_hints(Config)
NAMES = [field.name for field in fields(Config) if field.name != "recipe"]
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@contextmanager
def file_of(content: bytes, name: str = "mine.yaml") -> Iterator[Path]:
    """A file for one example; pytest's tmp_path is the same for all examples of a test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def result_or_refusal(action: Callable[[], T]) -> T | InputError:
    """Any other exception is a failure of the test."""
    try:
        return action()
    except InputError as error:
        return error


def one_line(error: InputError) -> bool:
    return len(str(error).splitlines()) == 1


# Config -----------------------------------------------------------------------------------------------------


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Values that the field may have as far as it goes alone."""
    kind = KINDS[name]
    low, high, _ = configuration._RANGES.get(name, (0, 0, ""))
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(int(low), 10**9 if math.isinf(high) else int(high) - 1)
    if kind is float:
        return st.floats(low, min(high, 1e300), exclude_max=True, allow_subnormal=False)
    if name == "name":
        return st.text("aZ0-_", max_size=8)
    if kind is str:
        return PRINTABLE
    assert kind == list[float]
    return st.sets(st.floats(0.01, 1000), max_size=5).map(sorted)


CHOSEN = st.fixed_dictionaries({}, optional={name: values_of(name) for name in NAMES})


def valid_config(chosen: dict[str, Any]) -> Config:
    if chosen.get("data_dir") and chosen.get("dataset") == "shapes":
        chosen = chosen | {"dataset": "folder"}
    try:
        return Config(**chosen)
    except InputError:  # two fields that do not go together
        assume(False)
        raise


def as_flag(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{flag(name)}={text}"


@few
@given(CHOSEN)
def test_a_config_survives_flags_and_its_own_recipe(chosen: dict[str, Any]) -> None:
    config = valid_config(chosen)
    values = {name: value for name, value in asdict(config).items() if name != "recipe"}
    assert parse_config([as_flag(*item) for item in values.items()]) == config
    with file_of(yaml.safe_dump(values, sort_keys=False).encode()) as path:
        assert parse_config(["--recipe", str(path)]) == replace(config, recipe="mine")


@few
@given(name=st.sampled_from(NAMES), text=PRINTABLE | st.text("-+019.eE_[]{}:, tfnu", min_size=1, max_size=8))
def test_any_text_for_a_flag_gives_a_config_or_an_input_error(name: str, text: str) -> None:
    found = result_or_refusal(lambda: parse_config([f"{flag(name)}={text}"]))
    assert isinstance(found, Config) or flag(name) in str(found)


YAML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | PRINTABLE | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=4,
)


def parse_recipe(content: bytes) -> None:
    with file_of(content) as path:
        found = result_or_refusal(lambda: parse_config(["--recipe", str(path)]))
        assert isinstance(found, Config) or one_line(found)


@few
@given(st.dictionaries(st.sampled_from(NAMES), YAML_VALUES, max_size=3))
def test_any_values_in_a_recipe_give_a_config_or_an_input_error(values: dict[str, Any]) -> None:
    parse_recipe(yaml.safe_dump(values).encode())


@few
@given(st.binary(max_size=40) | st.text("lr:0 -[]{}&*!|>?'\"#\n\t\ufeff.", max_size=20).map(str.encode))
def test_any_recipe_gives_a_config_or_an_input_error(content: bytes) -> None:
    parse_recipe(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_left_out_of_a_recipe_is_refused(name: str) -> None:
    with file_of(f"{name}:\n".encode()) as path, pytest.raises(InputError, match=flag(name)):
        parse_config(["--recipe", str(path)])


def test_a_recipe_that_holds_itself_is_refused() -> None:
    with file_of(b"a: &a [*a]\n") as path, pytest.raises(InputError, match="mine.yaml"):
        parse_config(["--recipe", str(path)])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@many
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON_VALUES, max_size=3))
def test_any_recorded_config_gives_a_config_or_an_input_error(values: dict[str, Any]) -> None:
    found = result_or_refusal(lambda: recorded_config(values, Path("best.safetensors")))
    assert isinstance(found, Config | InputError)


def test_a_recorded_name_that_is_no_text_is_refused() -> None:
    assert isinstance(result_or_refusal(lambda: recorded_config({"name": []}, Path("a.safetensors"))), InputError)


def test_values_of_another_version_are_refused_with_their_file() -> None:
    refusal = result_or_refusal(lambda: recorded_config({"flip": True}, Path("a.safetensors")))
    assert str(refusal).startswith("a.safetensors: recorded by another version of train.py (--flip True: expected")


# Tables of labels -------------------------------------------------------------------------------------------

IDS = st.integers(0, 10**18 - 1)
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12).filter(
    lambda label: label == label.strip()
)


@many
@given(
    table=st.dictionaries(IDS, LABELS, min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
    final_end=st.booleans(),
)
def test_any_table_that_csv_writes_is_read_back(
    table: dict[int, str], quoting: int, end: str, mark: str, final_end: bool
) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerow(["id", "label"])
    writer.writerows(table.items())
    text = written.getvalue() if final_end else written.getvalue().removesuffix(end)
    with file_of((mark + text).encode(), "labels.csv") as path:
        found = [(number, label.name) for number, label in label_table(path).items()]
        assert found == list(table.items())


@many
@given(
    st.binary(max_size=60)
    | st.text('idlabe,;"\r\n019 ²\ufeff\u2028', max_size=40).map(str.encode)
    | st.text('ab,;"\r\n019 ²\x85', max_size=30).map(lambda rows: f"id,label\n1,a\n{rows}".encode())
)
def test_any_bytes_give_a_table_or_an_input_error_of_one_line(content: bytes) -> None:
    with file_of(content, "labels.csv") as path:
        found = result_or_refusal(lambda: label_table(path))
        if isinstance(found, InputError):
            assert str(found).startswith(str(path))
            assert one_line(found)
        else:
            assert len(found) > 0
            assert all(label.name for label in found.values())


# Split, order and shares ------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**63 - 1)
CLASS_SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=5)


def shuffled(values: Tensor, seed: int) -> Tensor:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]


def labels_of(class_sizes: list[int], order: int) -> Tensor:
    return shuffled(torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes)), order)


@few
@given(class_sizes=CLASS_SIZES, order=st.integers(0, 9), fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_a_split_parts_all_ids_class_by_class(
    class_sizes: list[int], order: int, fraction: float, seed: int
) -> None:
    labels = labels_of(class_sizes, order)
    train, held_out = split(labels, fraction, seed)
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(len(labels)))
    for label, size in enumerate(class_sizes):
        count = int((labels[held_out] == label).sum())
        assert 1 <= count < size
        assert abs(count - fraction * size) <= 1
        # A class is split by its own ids alone: as if the others were one class, or a hundred.
        others = torch.where(labels == label, 0, 1 + torch.arange(len(labels)) % 2)
        if (torch.bincount(others) != 1).all():
            again = split(others, fraction, seed)[1]
            assert torch.equal(again[others[again] == 0], held_out[labels[held_out] == label])


@few
@given(class_sizes=CLASS_SIZES, seed=SEEDS, fractions=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
def test_a_larger_validation_set_holds_the_smaller_one(
    class_sizes: list[int], seed: int, fractions: tuple[float, float]
) -> None:
    labels = labels_of(class_sizes, 0)
    small, large = (set(split(labels, fraction, seed)[1].tolist()) for fraction in sorted(fractions))
    assert small <= large


@few
@given(class_sizes=CLASS_SIZES, seed=SEEDS, epoch=st.integers(0, 1000), state=st.integers(0, 1000))
def test_nothing_but_seed_and_epoch_chooses(class_sizes: list[int], seed: int, epoch: int, state: int) -> None:
    """Not torch's generator, nor the order in which the ids come, nor what was drawn before."""
    labels = labels_of(class_sizes, 0)
    train, held_out = split(labels, 0.2, seed)
    batches = epoch_batches(train, 2, seed, epoch)
    torch.manual_seed(state)
    epoch_batches(train, 3, seed + 1 - 2 * (seed > 0), epoch + 1)
    again = split(labels, 0.2, seed)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], held_out)
    assert torch.equal(epoch_batches(shuffled(train, state), 2, seed, epoch), batches)


@few
@given(
    count=st.integers(4, 300),
    share=st.integers(1, 5),
    world_size=st.integers(1, 6),
    accumulation=st.integers(1, 4),
    seed=SEEDS,
    epoch=st.integers(0, 1000),
    done=st.integers(0, 5),
)
def test_all_processes_together_train_on_each_id_once_and_on_no_validation_image(
    count: int, share: int, world_size: int, accumulation: int, seed: int, epoch: int, done: int
) -> None:
    """Also from the middle of an epoch on, where a stopped run resumes."""
    train, held_out = split(torch.arange(count) % 2, 0.2, seed)
    batches = epoch_batches(train, share * world_size * accumulation, seed, epoch)
    done = min(done, len(batches))
    parts = [micro_batches(batches[done:], rank, world_size, accumulation) for rank in range(world_size)]
    for part in parts:
        assert part.shape == (len(batches) - done, accumulation, share)
    assert torch.equal(torch.stack(parts, dim=2).flatten(1), batches[done:])
    seen = torch.cat([batches[:done].flatten(), *(part.flatten() for part in parts)]).tolist()
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(train.tolist())
    assert not set(seen) & set(held_out.tolist())
