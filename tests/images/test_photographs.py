"""The bundled photographs: there, small, real, and each one attributed."""

from pathlib import Path

import numpy as np

from ttreg_hf.images.photographs import load_photographs, photograph_paths

ALLOWED_LICENCES = {"public domain", "CC0 1.0"}
SIZE_LIMIT_BYTES = 500_000


def _attributed_licences() -> dict[str, str]:
    """File name -> licence, read from the table of ATTRIBUTION.md."""
    text = (photograph_paths()[0].parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[-1].strip() for row in rows}


def test_photograph_paths_are_sorted_existing_jpegs():
    paths = photograph_paths()
    assert paths == sorted(paths)
    assert 6 <= len(paths) <= 8
    assert all(isinstance(path, Path) and path.is_file() and path.suffix == ".jpg" for path in paths)


def test_photographs_stay_small():
    assert sum(path.stat().st_size for path in photograph_paths()) < SIZE_LIMIT_BYTES


def test_loaded_photographs_are_square_rgb_with_content():
    images = load_photographs()
    assert len(images) == len(photograph_paths())
    for image in images:
        assert image.mode == "RGB"
        assert image.width == image.height
        assert 224 <= image.width <= 448
        assert np.asarray(image).std() > 10  # not a blank picture


def test_loaded_photographs_differ():
    assert len({image.resize((32, 32)).tobytes() for image in load_photographs()}) == len(photograph_paths())


def test_every_photograph_is_attributed_and_free():
    licences = _attributed_licences()
    assert set(licences) == {path.name for path in photograph_paths()}
    assert set(licences.values()) <= ALLOWED_LICENCES


def test_photographs_carry_no_metadata():
    for image in load_photographs():
        assert not image.getexif()
