"""Outliers at the same places in every image, in words."""

from ttreg_hf.measuring.position_report import FixedPosition, PositionMap, PositionReport, PositionSource
from ttreg_hf.report.position_words import position_words


def _report(*sources: PositionSource) -> PositionReport:
    fixed = tuple(FixedPosition(row, 2, 4, ()) for row in (1, 3))
    return PositionReport((PositionMap((16, 16), 20, (), (), fixed),), None, sources)


def test_each_of_several_sources_names_its_places():
    by_mlp = PositionSource("block 3", ((1, 2),), 1.12, mlp_share=0.65, neuron=1379, neuron_share=1.0)
    by_attention = PositionSource("block 5", ((3, 2),), 4.0, mlp_share=0.16)
    assert position_words(_report(by_mlp, by_attention)) == [
        "Outliers lie at the same 2 places in every image (row, column of 16 x 16): (1, 2), (3, 2).",
        "Source of (1, 2): block 3, 1.1 times, by its MLP (MLP 65%, neuron 1379 100%).",
        "Source of (3, 2): block 5, 4.0 times, by its attention (MLP 16%).",
    ]


def test_one_source_is_that_of_all_places():
    table = PositionSource("position table", ((1, 2), (3, 2)), 9.0, channel=58, channel_share=0.82)
    assert position_words(_report(table))[1:] == ["Their source: the position table, channel 58 carries 82%."]


def test_nothing_is_said_where_no_place_stands_out():
    assert position_words(None) == position_words(PositionReport((), None, ())) == []
