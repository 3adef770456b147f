"""What a process found out while it went through its images, and what all of them found out together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ttreg_hf.images.bad_image import BadImage
from ttreg_hf.images.same_images import StreamDigest, check_same_streams

_MOST_SHOWN = 5


@dataclass
class ReadRecord:
    """What was read.

    Args:
        end: one more than the last place that was read.
        bad_images: by place.
        stream: what the images of a stream were, whichever process's they are.
    """

    end: int = 0
    bad_images: dict[int, BadImage] = field(default_factory=dict)
    stream: StreamDigest = field(default_factory=StreamDigest)

    @classmethod
    def of_all(cls, records: Sequence["ReadRecord"]) -> "ReadRecord":
        """Those of all processes as one; the stream, which is the same in all, is left out.

        Raises:
            ValueError: they saw different streams.
        """
        check_same_streams([record.stream for record in records])
        bad_images = {place: bad for record in records for place, bad in record.bad_images.items()}
        return cls(max(record.end for record in records), dict(sorted(bad_images.items())))

    def check_bad_images(self, most_bad: int, num_images: int) -> None:
        """Refuse more unreadable images than are allowed.

        Args:
            most_bad: that are allowed.
            num_images: of all, for the message.

        Raises:
            ValueError: it names some of them.
        """
        if len(self.bad_images) > most_bad:
            shown = "; ".join(f"{bad.key} ({bad.reason})" for _, bad in sorted(self.bad_images.items())[:_MOST_SHOWN])
            raise ValueError(
                f"At most {most_bad} of {num_images} images may be unreadable, got {len(self.bad_images)}: {shown}. "
                "Repair or remove them, or allow more with `max_bad_share` (`--max-bad-images`)."
            )
