"""Whether all processes see the same images in the same order, without comparing pixels or waiting at every step.

A row is told by its size and by its first and last bytes, as it is stored. A stream has a running digest, kept at
places that are powers of two, so that processes, and a resumed run, can be compared wherever both have been. A source
with a length is told by that, by its names, and by rows spread over it.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

_BYTES = 4096  # at either end of a row
_ROWS = 32  # of a source with a length


@dataclass(frozen=True)
class StreamDigest:
    """What the first images of a stream are. Never changed, because one thread reads and another one saves.

    Args:
        place: how many have been taken in.
        value: digest of all of them, in order.
        earlier: the values at places that are powers of two.
        length: of the stream, if its end was seen.
    """

    place: int = 0
    value: str = ""
    earlier: Mapping[int, str] = dataclasses.field(default_factory=dict)
    length: int | None = None

    def after(self, place: int, image: Any) -> "StreamDigest":
        """With one more undecoded image; one that was taken in before, or does not come next, changes nothing."""
        if place != self.place:
            return self
        value = hashlib.blake2b(self.value.encode() + row_digest(image), digest_size=16).hexdigest()
        is_kept = (place + 1) & place == 0
        earlier = {**self.earlier, place + 1: value} if is_kept else self.earlier
        return StreamDigest(place + 1, value, earlier, self.length)

    @classmethod
    def of_dict(cls, given: Mapping[str, Any]) -> "StreamDigest":
        """What `dataclasses.asdict` made of one, by way of JSON, whose keys are strings."""
        earlier = {int(place): value for place, value in given["earlier"].items()}
        return cls(given["place"], given["value"], earlier, given["length"])

    def differs_from(self, other: "StreamDigest") -> int | None:
        """The first place where both are known and not equal, or one has ended; `None` if there is none."""
        mine, theirs = ({**digest.earlier, digest.place: digest.value} for digest in (self, other))
        different = {place for place in mine.keys() & theirs.keys() if mine[place] != theirs[place]}
        furthest = max(self.place, other.place)
        ends = {length for length in (self.length, other.length) if length is not None and length < furthest}
        return min(different | ends, default=None)


def check_same_streams(digests: Sequence[StreamDigest]) -> None:
    """Refuse streams that differ between processes.

    Raises:
        ValueError: it says where.
    """
    for rank, digest in enumerate(digests):
        place = digests[0].differs_from(digest)
        if place is not None:
            raise ValueError(_message(f"processes 0 and {rank} differ before image {place}"))


def check_same_sources(told: Sequence[Mapping[str, Any]]) -> None:
    """Refuse sources with a length that differ between processes; `told` is what `source_told` gives on each.

    Raises:
        ValueError: it says in what.
    """
    for rank, other in enumerate(told):
        different = [name for name, value in told[0].items() if other.get(name) != value]
        if different:
            values = f"{told[0][different[0]]} and {other.get(different[0])}"
            raise ValueError(_message(f"processes 0 and {rank} differ in {different[0]}: {values}"))


def source_told(source: Any) -> dict[str, Any]:
    """What tells a source with a length: how many images, a digest of names where it holds paths, and of some rows."""
    folder = getattr(source, "folder", None)
    paths: Iterable[Any] = source if folder is not None or isinstance(source, list) else ()
    names = [
        path.name if folder is None else str(path.relative_to(folder)) for path in map(Path, filter(_is_path, paths))
    ]
    places = sorted({int(place) for place in np.linspace(0, len(source) - 1, _ROWS)}) if len(source) else []
    rows = b"".join(row_digest(source[place]) for place in places)
    return {"length": len(source), "names": _hex("\n".join(names).encode()), "images": _hex(rows)}


def row_digest(image: Any) -> bytes:
    """Digest of an image as it is stored: undecoded where it is. Nothing is decoded for this."""
    told = hashlib.blake2b(digest_size=16)
    for part in _told(image):
        told.update(part if isinstance(part, bytes) else repr(part).encode())
    return told.digest()


def _told(image: Any) -> Iterator[Any]:
    """What tells an image from others: numbers, names and bytes."""
    if isinstance(image, dict):
        data = image.get("bytes")
        yield from _told(image.get("path") if data is None else data)
    elif isinstance(image, bytes):
        yield from (len(image), image[:_BYTES], image[-_BYTES:])
    elif _is_path(image):
        yield Path(image).name
    elif isinstance(image, Image.Image):
        yield from (image.size, image.mode, Path(getattr(image, "filename", "")).name)
        if not getattr(image, "tile", None):  # it has been read
            yield image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
    elif isinstance(image, Tensor):
        yield from (tuple(image.shape), _some_of(image.detach()).cpu().double().numpy().tobytes())
    elif isinstance(image, np.ndarray):
        yield from (image.shape, _some_of(image).tobytes())
    else:
        yield type(image).__name__


def _some_of(values: Any) -> Any:
    """Values spread over an array or tensor."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // _BYTES)]


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, Path))


def _hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _message(difference: str) -> str:
    return (
        f"All processes see the same images in the same order, and share them by their place, but {difference}. "
        "Shuffle with a seed, and do not split the data set yourself."
    )
