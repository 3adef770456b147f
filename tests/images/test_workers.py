"""Workers that decode are kept from pass to pass, and end with whoever held them."""

import gc
import multiprocessing
import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.decoding import DecodedImages
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.workers import DecodingWorkers

NUM_IMAGES = 24


class Told:
    """A processor that tells which process it runs in, and which image it got."""

    def __call__(self, images: Image.Image, return_tensors: str) -> dict[str, Any]:
        pixels = torch.empty(1, 3, 2, 2, dtype=torch.float64)
        pixels[:, 0], pixels[:, 1:] = int(np.asarray(images)[0, 0, 0]), os.getpid()
        return {"pixel_values": pixels}


def _batches(workers=1, decoders=None, source=None, processor=None):
    images = [Image.new("RGB", (4, 4), (place, 0, 0)) for place in range(NUM_IMAGES)]
    return ImageBatches(
        open_images(source or images),
        processor or Told(),
        num_images=NUM_IMAGES,
        batch_size=2,
        device=torch.device("cpu"),
        workers=workers,
        decoders=decoders,
    )


def _told(batches):
    """The images that came, in order, and the processes that decoded them."""
    pixels = torch.cat([batch.pixel_values for batch in batches])
    return pixels[:, 0, 0, 0].int().tolist(), set(pixels[:, 1, 0, 0].int().tolist())


def test_passes_one_after_the_other_have_the_same_workers():
    batches = _batches(workers=2)
    seen, first = _told(batches)
    assert seen == list(range(NUM_IMAGES))
    assert len(first - {os.getpid()}) == 2
    for again in (batches, batches.where(lambda place: place % 2 == 0), batches.up_to(20), batches.of_size(3)):
        places = [place for place in range(again.num_images) if again.keep is None or again.keep(place)]
        assert _told(again) == (places, first)
    assert _told(batches.without_workers())[1] == {os.getpid()}


@pytest.mark.parametrize("taken", [1, 3])
def test_a_pass_that_ends_early_leaves_nothing_to_the_next(taken):
    batches = _batches()
    seen = [each for each, _ in zip(iter(batches), range(taken), strict=False)]
    _, workers = _told(seen)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]
    assert _told(batches) == (list(range(NUM_IMAGES)), workers)


def test_passes_at_the_same_time_have_workers_of_their_own():
    batches = _batches()
    pairs = list(zip(batches, batches.of_size(2), strict=True))
    first, second = (_told([pair[index] for pair in pairs]) for index in (0, 1))
    assert first[0] == second[0] == list(range(NUM_IMAGES))
    assert not first[1] & second[1]
    assert _told(batches)[1] <= first[1] | second[1]


def test_workers_of_a_pass_that_failed_are_not_used_again():
    def source():
        for place in range(NUM_IMAGES):
            if place == 9 and fails:
                raise RuntimeError("the network is gone")
            yield Image.new("RGB", (4, 4), (place, 0, 0))

    class Source:
        def __iter__(self):
            return source()

    fails = False
    batches = _batches(source=Source())
    _, before = _told(batches)
    fails = True
    with pytest.raises(RuntimeError, match="the network is gone"):
        _told(batches)
    fails = False
    seen, after = _told(batches)
    assert seen == list(range(NUM_IMAGES))
    assert not before & after


def test_others_share_workers_only_where_images_are_decoded_alike():
    decoders, processor = DecodingWorkers(), Told()
    first, second = (_batches(decoders=decoders, processor=processor) for _ in range(2))
    assert _told(first)[1] == _told(second)[1]
    assert not _told(first)[1] & _told(_batches(decoders=decoders))[1]
    assert not DecodedImages(processor, 3).do_the_same(DecodedImages(processor, 1))


def test_workers_end_with_whoever_held_them():
    before = set(multiprocessing.active_children())
    batches = _batches(workers=2)
    _told(batches)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    del batches
    gc.collect()
    for worker in started:
        worker.join(timeout=30)
        assert not worker.is_alive()
