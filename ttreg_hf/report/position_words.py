"""What is known of outliers at the same places in every image, in words."""

from ttreg_hf.measuring.position_report import TABLE, Place, PositionReport, PositionSource
from ttreg_hf.pictures.numbers import counted

_MOST_PLACES = 8
_HALF = 0.5


def position_words(positions: PositionReport | None) -> list[str]:
    """Where they are, what makes them, and what enlarges them; nothing where no place stands out."""
    if positions is None or not positions.places:
        return []
    places, grid = positions.places, positions.maps[0].grid
    lines = [
        f"Outliers lie at the same {counted(len(places), 'place')} in every image (row, column of {grid[0]} x "
        f"{grid[1]}): {_listed(places)}."
    ]
    several = len(positions.sources) > 1
    for source in positions.sources:
        whose = f"Source of {_listed(source.places)}" if several else "Their source"
        lines.append(f"{whose}: {source_words(source)}.")
    if positions.amplifier is not None:
        lines.append(f"Enlarged most by {source_words(positions.amplifier)}.")
    return lines


def source_words(source: PositionSource) -> str:
    """Such as `the position table, channel 143 carries 82 %`."""
    if source.stage == TABLE:
        return f"the position table, channel {source.channel} carries {source.channel_share:.0%}"
    if source.mlp_share is None:
        return f"{'the ' if source.stage == 'embeddings' else ''}{source.stage}, {source.growth:.1f} times"
    part = "its MLP" if source.mlp_share >= _HALF else "its attention"
    neuron = "" if source.neuron is None else f", neuron {source.neuron} {source.neuron_share:.0%}"
    return f"{source.stage}, {source.growth:.1f} times, by {part} (MLP {source.mlp_share:.0%}{neuron})"


def _listed(places: tuple[Place, ...]) -> str:
    named = ", ".join(f"({row}, {column})" for row, column in places[:_MOST_PLACES])
    more = len(places) - _MOST_PLACES
    return named if more <= 0 else f"{named} and {more} more"
