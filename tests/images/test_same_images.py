"""Processes that see different images are told apart; nothing is decoded, and no step waits, for that."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.same_images import (
    StreamDigest,
    check_same_sources,
    check_same_streams,
    row_digest,
    source_told,
)

CPU = torch.device("cpu")
COUNT = 40
TWO = "All processes see the same images in the same order"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    whole = io.BytesIO()
    picture(seed).save(whole, "PNG")
    return whole.getvalue()


def digest(images: Any) -> StreamDigest:
    found = StreamDigest()
    for place, image in enumerate(images):
        found = found.after(place, image)
    return found


def table(order: Any) -> Dataset:
    rows = {"image": [{"bytes": png(seed), "path": None} for seed in order]}
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature()}))


def processor(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(1, 3, 2, 2)}


FORMS = {
    "bytes": lambda seed: {"bytes": png(seed), "path": None},
    "paths": lambda seed: Path(f"/photos/{seed}.png"),
    "links": lambda seed: {"bytes": None, "path": f"hf://photos/{seed}.png"},
    "PIL": picture,
    "arrays": lambda seed: np.asarray(picture(seed)),
    "float tensors": lambda seed: torch.full((3, 2, 2), float(seed)),
    "bfloat16": lambda seed: torch.full((3, 2, 2), float(seed), dtype=torch.bfloat16),
    "with null cells": lambda seed: None if seed % 5 == 4 else {"bytes": png(seed), "path": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_a_stream_is_told_in_every_form(form):
    def stream(order: Any) -> Iterator[Any]:
        return (FORMS[form](seed) for seed in order)

    same, again = digest(stream(range(20))), digest(stream(range(20)))
    assert same == again
    assert same.differs_from(again) is None
    swapped = [*range(10), 11, 10, *range(12, 20)]
    assert same.differs_from(digest(stream(swapped))) == 16
    assert same.differs_from(digest(stream(range(1, 21)))) == 1


def test_no_file_is_read_for_a_digest(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    with Image.open(tmp_path / "a.png") as image:
        assert len(row_digest(image)) == 16
        assert image.tile  # still to be read
    assert len(row_digest(Path("/no/such.png"))) == 16


def test_the_end_and_the_beginning_of_a_row_count_and_its_length():
    data = bytes(100_000)
    rows = [data, b"x" + data[1:], data[:-1] + b"x", data + b"\x00"]
    assert len({row_digest({"bytes": row, "path": None}) for row in rows}) == len(rows)
    assert row_digest({"bytes": data, "path": "a"}) == row_digest({"bytes": data, "path": "b"})


def test_a_digest_is_compared_wherever_both_have_been():
    images = [png(seed) for seed in range(COUNT)]
    short, long = digest(images[:18]), digest(images)
    assert short.differs_from(long) is None
    assert digest(images[:3]).differs_from(long) is None
    other = digest([*images[:12], png(99), *images[13:]])
    assert (short.differs_from(other), other.differs_from(long)) == (16, 16)


def test_a_stream_that_ends_earlier_differs():
    images = [png(seed) for seed in range(20)]
    whole, half = digest(images), dataclasses.replace(digest(images[:9]), length=9)
    assert whole.differs_from(half) == half.differs_from(whole) == 9
    ended = dataclasses.replace(whole, length=20)
    assert ended.differs_from(ended) is None


def test_going_through_a_stream_again_or_on_makes_one_digest():
    images = [png(seed) for seed in range(20)]
    found = digest(images[:12])
    for place, image in enumerate(images[:5]):
        assert found.after(place, image) is found
    for place, image in enumerate(images[8:], 8):
        found = found.after(place, image)
    assert found == digest(images)


def test_a_digest_is_kept_as_json():
    found = dataclasses.replace(digest([png(seed) for seed in range(9)]), length=9)
    assert StreamDigest.of_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_streams_that_differ_are_refused_with_the_process_and_the_place():
    images = [png(seed) for seed in range(9)]
    same, other = digest(images), digest(images[::-1])
    check_same_streams([same, same])
    with pytest.raises(ValueError, match=rf"{TWO}.*processes 0 and 2 differ before image 1\. Shuffle with a seed"):
        check_same_streams([same, same, other])


def source(kind: str, order: list[int], tmp_path: Path) -> Any:
    if kind == "table":
        return open_images(table(order))
    if kind == "list":
        return [png(seed) for seed in order]
    folder = tmp_path / "-".join(map(str, order[:3])) / str(len(order))
    folder.mkdir(parents=True)
    paths = [folder / f"{seed}.png" for seed in order]
    for path in paths:
        path.write_bytes(b"")
    return paths if kind == "paths" else open_images(folder)


@pytest.mark.parametrize("kind", ["table", "list", "paths", "folder"])
def test_a_source_with_a_length_is_told_by_it_and_by_its_rows(tmp_path, kind):
    order = list(range(COUNT))
    told = source_told(source(kind, order, tmp_path / "a"))
    assert told == source_told(source(kind, order, tmp_path / "b"))  # wherever it lies
    check_same_sources([told, told])
    shorter = source_told(source(kind, order[:-1], tmp_path))
    with pytest.raises(ValueError, match=rf"{TWO}.*processes 0 and 1 differ in length: 40 and 39\."):
        check_same_sources([told, shorter])
    if kind != "folder":  # which has an order of its own
        with pytest.raises(ValueError, match=r"processes 0 and 1 differ in (names|images): "):
            check_same_sources([told, source_told(source(kind, order[::-1], tmp_path))])
    with pytest.raises(ValueError, match=r"processes 0 and 1 differ in (names|images): "):
        check_same_sources([told, source_told(source(kind, [*order[1:], 99], tmp_path))])


def test_a_source_without_images_is_told_too():
    assert source_told([])["length"] == 0


class Neighbours(Processes):
    """Of a process that is asked what others have, which is told beforehand."""

    others: list[Any] = []  # noqa: RUF012  # set by tests

    def collect(self, values: list[Any]) -> list[Any]:
        return [*values, *self.others]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_process_takes_in_all_rows_of_a_stream(rank, world, workers):
    batches = ImageBatches(
        open_images(table(range(11)).to_iterable_dataset()),
        processor,
        num_images=10,
        batch_size=2,
        device=CPU,
        processes=Processes(rank, world),
        workers=workers,
    )
    found = [place for batch in batches for place in batch.places]
    assert found == list(range(rank, 10, world))
    assert batches.record.stream == digest({"bytes": png(seed), "path": None} for seed in range(10))


def test_what_a_stream_was_is_compared_at_the_end():
    processes = Neighbours(0, 2)
    batches = ImageBatches(
        open_images(table(range(8)).to_iterable_dataset()),
        processor,
        num_images=8,
        batch_size=2,
        device=CPU,
        processes=processes,
    )
    for _ in batches:
        pass
    others = dataclasses.replace(batches.record, stream=digest(png(seed) for seed in (0, 1, 2, 3, 4, 5, 7, 6)))
    Neighbours.others = [others]
    with pytest.raises(ValueError, match="processes 0 and 1 differ before image 8"):
        batches.read_by_all()


def test_a_resumed_run_on_other_images_is_refused():
    images = [{"bytes": png(seed), "path": None} for seed in range(9)]
    batches = ImageBatches(iter(()), processor, num_images=9, batch_size=2, device=CPU)
    batches.record.stream = digest(images[:4])
    batches.resume_stream(digest(images))
    assert batches.record.stream == digest(images)
    batches.resume_stream(digest(images[:2]))  # what is known already stays
    assert batches.record.stream == digest(images)
    with pytest.raises(ValueError, match="continues a run on the same images, but these differ before image 1"):
        batches.resume_stream(digest(images[::-1]))
