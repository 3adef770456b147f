"""A folder is looked at as a whole: what it clearly is, what is left out, and when it is refused."""

import zipfile
from pathlib import Path

import datasets
import pytest
from gallery import COUNT, Gallery

from ttreg_hf.evaluation.labelled_sources import find_labelled
from ttreg_hf.images.data_sets import find_images
from ttreg_hf.images.decoder import IMAGE_SUFFIXES
from ttreg_hf.images.folder import Folder
from ttreg_hf.images.image_source import image_key, open_images

HIDDEN = (
    "._0000.png",
    ".0000.png",
    "__MACOSX/0000.png",
    "__MACOSX/._0000.png",
    ".ipynb_checkpoints/0000-checkpoint.png",
    ".thumbnails/large/0000.png",
    "@eaDir/0000.png",
    "$RECYCLE.BIN/0000.png",
    "deep/.cache/huggingface/0000.parquet",
)
NO_PICTURES = (
    *("paper.pdf", "features.h5", "features.hdf", "clip.mp4", "clip.mpg", "clip.mpeg", "figure.eps", "old.wmf"),
    *("labels.csv", "metadata.jsonl", "Thumbs.db", "weather.grib", "notes"),
)


def fill(folder: Path, names: tuple[str, ...], data: bytes = b"junk") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def png(gallery: Gallery) -> bytes:
    return (gallery.root / "folder" / "0000.png").read_bytes()


@pytest.fixture
def pictures(tmp_path: Path, png: bytes) -> Path:
    """Two, with all that lies beside pictures."""
    fill(tmp_path, ("a.png", "below/b.PNG", *HIDDEN), png)
    fill(tmp_path, (*NO_PICTURES, "metadata.parquet"), b"junk" * 100_000)
    return tmp_path


def names(images: object) -> list[str]:
    return [Path(image_key(image, place)).name for place, image in enumerate(open_images(images))]


def test_only_pictures_that_people_see_are_images(pictures):
    assert names(find_images(str(pictures)).images) == ["a.png", "b.PNG"]
    assert names(pictures) == ["a.png", "b.PNG"]


@pytest.mark.parametrize("suffix", [".pdf", ".h5", ".hdf", ".mpg", ".mpeg", ".eps", ".ps", ".grib", ".bufr", ".wmf"])
def test_what_pillow_only_names_or_cannot_read_alone_is_no_image(suffix):
    assert suffix not in IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"])
def test_pictures_are_images(suffix):
    assert suffix in IMAGE_SUFFIXES


def test_a_folder_in_a_hidden_place_is_read_where_it_is_named(tmp_path, png):
    fill(tmp_path, (".photos/a.png",), png)
    assert names(find_images(str(tmp_path / ".photos")).images) == ["a.png"]


def test_a_folder_without_images_tells_what_it_holds(tmp_path, png):
    fill(tmp_path, ("one.pdf", "two.pdf", "x.h5"))
    fill(tmp_path, HIDDEN[:2], png)
    with pytest.raises(FileNotFoundError, match=r"holds no image, but 2 \.pdf, 1 \.h5, 2 hidden\. Give a folder"):
        open_images(tmp_path)


@pytest.mark.parametrize("kind", ["parquet 4", "tars"])
def test_a_few_pictures_do_not_hide_a_data_set(gallery, tmp_path, kind):
    """Nor do other files, however many, and a folder that is called as a split."""
    for file in (gallery.root / kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fill(tmp_path, ("assets/test/banner.png", "a.jpg"))
    fill(tmp_path, tuple(f"{number}.json" for number in range(20)), b"{}")
    found = find_images(str(tmp_path))
    assert isinstance(found.images, datasets.IterableDataset)
    assert len(list(open_images(found.images))) == COUNT
    assert found.note == "2 pictures beside them not used"


def test_no_file_is_lost_to_a_split_that_names_only_some(gallery, tmp_path):
    """By the rules of `datasets`, `test/` would be all there is."""
    first, *others = sorted((gallery.root / "parquet 4").iterdir())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / first.name).write_bytes(first.read_bytes())
    for file in others:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(list(open_images(find_images(str(tmp_path)).images))) == COUNT


def test_pictures_with_a_small_archive_beside_them_are_pictures(gallery, tmp_path):
    for file in (gallery.root / "folder").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fill(tmp_path, ("labels.zip",))
    found = find_images(str(tmp_path))
    assert len(names(found.images)) == COUNT
    assert found.note == "1 .zip beside them not used"


@pytest.mark.parametrize("other", ["parquet 4", "tars", "zip", "both"])
def test_a_folder_that_may_be_meant_in_two_ways_is_refused(gallery, tmp_path, other):
    kinds = ["parquet 4", "tars"] if other == "both" else ["folder", other]
    for kind in kinds:
        for file in (gallery.root / kind).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"holds pictures, or the files of one data set, but .* holds (4|23|3|1) "):
        find_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"or a pattern such as '.*/\*\.\w+'"):
        find_labelled(str(tmp_path))


def test_a_pattern_says_which_are_meant(gallery, tmp_path):
    for kind in ("folder", "parquet 4"):
        for file in (gallery.root / kind).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(names(find_images(str(tmp_path / "*.png")).images)) == COUNT
    assert len(list(open_images(find_images(str(tmp_path / "*.parquet")).images))) == COUNT
    with pytest.raises(ValueError, match=r"names files of one kind, got \.parquet, \.png of "):
        find_images(str(tmp_path / "*"))


def test_an_archive_of_macos_holds_only_its_pictures(gallery, tmp_path, png):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("a.png", "b/c.png"):
            archive.writestr(name, png)
        for name in ("__MACOSX/._a.png", "._a.png", "paper.pdf", "x.h5"):
            archive.writestr(name, b"junk")
    for given in (tmp_path, tmp_path / "images.zip"):
        found = [image["path"] for image in open_images(find_images(str(given)).images)]
        assert [path.split("::")[0] for path in found] == ["zip://a.png", "zip://b/c.png"]


def test_labels_are_those_of_folders_with_pictures(tmp_path, png):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            fill(tmp_path, (f"{split}/{label}/0.png", f"{split}/{label}/1.png"), png)
            fill(tmp_path, (f"{split}/{label}/._0.png", f"{split}/{label}/paper.pdf"))
    data, source = find_labelled(str(tmp_path), split="test")
    assert [row["label"] for row in data] == [0, 0, 1, 1]
    assert data.features["label"].names == ["cat", "dog"]
    assert str(source) == f"{tmp_path} (test)"


def test_what_lies_there_is_told():
    seen = Folder.look_into(Path(__file__).parent)
    assert seen.kind() is None
    assert seen.described().startswith(f"{seen.others['.py']} .py")
