"""From a word to images: paths, data sets here and on the Hub (not asked here), the recipe's, the photographs."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError
from gallery import COUNT, EVEN, KINDS, Gallery
from PIL import Image

from ttreg_hf.images.data_sets import find_images
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.image_source import image_key, open_images
from ttreg_hf.images.photographs import photograph_paths


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every data set has the splits `validation` and `test`; `calls` tells what was asked for."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool, token: Any) -> str:
        calls.append((name, config, split, streaming, token))
        return "the stream"

    splits = {"with/train": ["test", "train"], "detection-datasets/coco": ["train", "val"]}
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda name, config, token: splits.get(name, ["validation", "test"])
    )
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_path_is_a_folder_or_file(tmp_path, hub):
    found = find_images(str(tmp_path))
    assert (found.images, found.source, found.image_column) == (tmp_path, DataSource(local=str(tmp_path)), None)
    assert str(found.source) == str(tmp_path)
    assert find_images("./nowhere").images == Path("nowhere")
    assert find_images("~/nowhere").images == Path.home() / "nowhere"
    assert hub == []


def test_a_hub_id_is_streamed(hub):
    found = find_images("org/images", image_column="picture", split="test", token="secret")
    assert hub == [("org/images", None, "test", True, "secret")]
    assert (found.images, found.image_column) == ("the stream", "picture")
    assert found.source == DataSource(repo_id="org/images", split="test")
    assert str(found.source) == "org/images (test)"


@pytest.mark.parametrize(("name", "split"), [("with/train", "train"), ("org/images", "validation")])
def test_the_split_left_open_is_train_or_the_first(hub, name, split):
    find_images(name)
    assert hub[0][:3] == (name, None, split)


def test_a_split_that_does_not_exist_is_refused(hub):
    with pytest.raises(ValueError, match="`split` is one of validation, test for org/images, got 'val'"):
        find_images("org/images", split="val")
    assert hub == []


def test_the_recipes_data_set_serves_a_known_model(hub):
    found = find_images(None, model="facebook/dinov2-large")
    assert hub == [("detection-datasets/coco", None, "val", True, None)]
    assert found.source == DataSource(repo_id="detection-datasets/coco", split="val")
    assert found.image_column == "image"


@pytest.mark.parametrize("model", [None, "org/unknown"])
def test_the_photographs_serve_where_nothing_is_known(hub, model):
    found = find_images(None, model=model)
    assert list(found.images) == list(photograph_paths())
    assert str(found.source) == "the bundled photographs"
    assert hub == []


def _keys(images: Any, **settings: Any) -> list[str]:
    opened = open_images(images, **settings)
    return [Path(image_key(image, place).split("::")[0]).name for place, image in enumerate(opened)]


IN_ORDER = [f"{place:04d}.png" for place in range(COUNT)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_data_set_gives_its_images_in_order(gallery: Gallery, kind):
    assert _keys(gallery.images(kind)) == IN_ORDER


@pytest.mark.parametrize("kind", ["parquet 3", "tars", "zip", "one parquet", "pattern"])
def test_files_of_a_data_set_are_streamed(gallery, kind):
    assert isinstance(gallery.images(kind), datasets.IterableDataset)


def test_splits_of_local_data_sets_are_found(tmp_path, gallery):
    table = gallery.images("on disk")
    datasets.DatasetDict({"test": table.take(3), "train": table.take(5)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    table.take(3).to_parquet(tmp_path / "files" / "test-00000-of-00001.parquet")
    table.take(5).to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    for folder in (tmp_path / "saved", tmp_path / "files"):
        assert str(find_images(str(folder)).source) == f"{folder} (train)"
        assert len(_keys(find_images(str(folder)).images)) == 5
        assert len(_keys(find_images(str(folder), split="test").images)) == 3
        with pytest.raises(ValueError, match=rf"`split` is one of .* for {folder}, got 'val'"):
            find_images(str(folder), split="val")


@pytest.mark.parametrize("name", ["none.parquet", "shards/*.tar", "./none/*.parquet"])
def test_files_that_do_not_exist_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="names files that exist, got "):
        find_images(name)


@pytest.mark.parametrize("kind", ["folder", "on disk", "parquet 4", "tars"])
def test_a_seed_gives_an_order_of_its_own_that_can_be_repeated(gallery, kind):
    def keys(seed: int | None) -> list[str]:
        return _keys(find_images(str(gallery.root / kind), seed=seed).images)

    orders = [keys(seed) for seed in range(4)]
    assert orders == [keys(seed) for seed in range(4)]
    assert all(sorted(order) == IN_ORDER for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert keys(None) == IN_ORDER
    source = find_images(str(gallery.root / kind), seed=3).source
    assert source.seed == 3
    assert str(source).endswith(", shuffled with seed 3")


def test_a_seed_reorders_the_files_of_a_stream_and_not_what_is_in_them(gallery):
    found = _keys(find_images(str(gallery.root / "parquet 4"), seed=2).images)
    ends = [sum(EVEN[: place + 1]) for place in range(len(EVEN))]
    for end, size in zip(ends, EVEN, strict=True):
        start = found.index(IN_ORDER[end - size])
        assert found[start : start + size] == IN_ORDER[end - size : end]


def test_a_seed_writes_nothing_beside_a_table(gallery):
    before = sorted((gallery.root / "on disk").iterdir())
    _keys(find_images(str(gallery.root / "on disk"), seed=1).images)
    assert sorted((gallery.root / "on disk").iterdir()) == before


@pytest.mark.parametrize("option", ["config", "split", "image_column"])
@pytest.mark.parametrize("source", ["folder", "folder/0000.png", "folder/*.png", None])
def test_an_option_that_does_nothing_for_pictures_is_refused(gallery, source, option):
    given = None if source is None else str(gallery.root / source)
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(ValueError, match=rf"`{name}` chooses in a data set, got 'x' for the .*\. Leave it out"):
        find_images(given, **{option: "x"})


@pytest.mark.parametrize("option", ["config", "split"])
@pytest.mark.parametrize("source", ["whole.parquet", "tars/*.tar", "on disk"])
def test_an_option_that_does_nothing_for_files_is_refused(gallery, source, option):
    with pytest.raises(ValueError, match=rf"`--{option}` chooses in a data set, got 'x' for the "):
        find_images(str(gallery.root / source), **{option: "x"})


def test_the_recipes_part_can_be_changed(hub):
    found = find_images(None, model="facebook/dinov2-large", split="train", image_column="photo")
    assert hub == [("detection-datasets/coco", None, "train", True, None)]
    assert found.image_column == "photo"


CARD = """---
configs:
- config_name: large
  data_files:
  - split: train
    path: part-0.parquet
  - split: test
    path: part-1.parquet
- config_name: small
  data_files:
  - split: val
    path: part-2.parquet
---
"""


@pytest.fixture
def copy_of_hub(gallery: Gallery, tmp_path: Path) -> Path:
    """A data set with two configurations, as it is downloaded."""
    for file in (gallery.root / "parquet 4").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "split", "count", "used"),
    [("large", None, EVEN[0], "train"), ("large", "test", EVEN[1], "test"), ("small", None, EVEN[2], "val")],
)
def test_a_configuration_is_chosen_by_its_name(copy_of_hub, config, split, count, used):
    found = find_images(str(copy_of_hub), config=config, split=split)
    assert len(_keys(found.images)) == count
    assert found.source == DataSource(local=str(copy_of_hub), config=config, split=used)


@pytest.mark.parametrize(("config", "got"), [(None, "none"), ("huge", "'huge'")])
def test_a_configuration_left_open_or_unknown_is_refused_with_the_names(copy_of_hub, config, got):
    with pytest.raises(ValueError, match=rf"`--config` is one of large, small for {copy_of_hub}, got {got}\."):
        find_images(str(copy_of_hub), config=config)


def test_a_configuration_that_serves_by_default_need_not_be_named(copy_of_hub):
    (copy_of_hub / "README.md").write_text(CARD.replace("config_name: small", "config_name: small\n  default: true"))
    assert len(_keys(find_images(str(copy_of_hub)).images)) == EVEN[2]


def test_a_configuration_of_the_hub_is_asked_for(hub):
    found = find_images("org/images", config="large")
    assert hub == [("org/images", "large", "validation", True, None)]
    assert str(found.source) == "org/images (large, validation)"


@pytest.mark.parametrize("name", ["a/b/c", "photos/*", "photos/one.jpg"])
def test_what_is_no_name_on_the_hub_is_a_path(hub, name):
    with pytest.raises(FileNotFoundError):
        open_images(find_images(name).images)
    assert hub == []


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            DatasetNotFoundError("Dataset 'org/images' is a gated dataset on the Hub."),
            FileNotFoundError,
            r"org/images is gated.*https://huggingface\.co/datasets/org/images, then `hf auth login`, or pass `--tok",
        ),
        (
            DatasetNotFoundError("Dataset 'org/images' doesn't exist on the Hub or cannot be accessed."),
            FileNotFoundError,
            r"got 'org/images', which is none you can read\. Check the name; for a private one `hf auth login`",
        ),
        (
            ConnectionError("offline"),
            ConnectionError,
            r"org/images cannot be reached \(offline\)\. Check the network, or give a folder",
        ),
    ],
    ids=["gated", "missing", "unreachable"],
)
@pytest.mark.parametrize("function", ["get_dataset_split_names", "load_dataset"])
def test_a_data_set_that_cannot_be_had_is_named_with_what_to_do(hub, monkeypatch, function, error, raised, message):
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, function, fail)
    with pytest.raises(raised, match=message):
        find_images("org/images")


def test_images_handed_over_in_python_are_published_without_the_name_of_their_folder(tmp_path):
    folder = tmp_path / "jane-doe"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    images = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert "jane-doe" in str(images.info.dataset_name)
    assert "jane" not in str(DataSource.of(images).without_local_path())
