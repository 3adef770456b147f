"""Checkpoint folders: what is written, what is recorded, and which files may be published."""

import copy
import json
import os
import re
import subprocess

import pytest
import torch
from families import CASES, FAMILIES, NEURONS, NUM_PATCHES, PATCH_SIZE, Case
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from ttreg_hf import add_test_time_registers, calibrate
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import LOCAL_FOLDER, DataSource
from ttreg_hf.loading import is_hub_id
from ttreg_hf.publishing import fresh_interpreter, output_check
from ttreg_hf.publishing.base_weights import checksum_fields, read_checksum, weights_checksum
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.checkpoint_config import read_config
from ttreg_hf.publishing.output_check import check_outputs, expected_outputs, read_expected_outputs
from ttreg_hf.publishing.privacy import without_local_names
from ttreg_hf.publishing.probe import load_like_a_stranger, outputs_on_probe, probe_inputs
from ttreg_hf.publishing.published_files import checkpoint_files, is_published, is_written_by_us, other_files
from ttreg_hf.publishing.published_model import from_pretrained

CODE = {"families.py", "modeling_ttreg.py", "registers.py"}


@pytest.fixture
def folder(planted, tmp_path):
    neurons = [[neuron.layer, neuron.neuron] for neuron in planted.register_neurons]
    return save_checkpoint(add_test_time_registers(planted.model, neurons), tmp_path / "checkpoint")


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_folder_is_complete(planted, result, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    patched = add_test_time_registers(planted.model, result.register_neurons)
    folder = save_checkpoint(patched, tmp_path / "checkpoint", calibration=result, pictures=[tmp_path / "cat.png"])
    expected = {"README.md", "calibration.json", "calibration.safetensors", "config.json", "expected_outputs.json"}
    assert checkpoint_files(folder).keys() == expected | CODE | {"model.safetensors", "pictures/cat.png"}
    assert "(pictures/cat.png)" in (folder / "README.md").read_text(encoding="utf-8")


def test_no_local_path_is_written(planted, result, tmp_path):
    planted.model.save_pretrained(tmp_path / "base")
    base = type(planted.model).from_pretrained(tmp_path / "base")
    images = NamedImages(planted.sample, DataSource(local=str(tmp_path / "secret")))
    found = calibrate(str(tmp_path / "base"), images, config=result.config)
    patched = add_test_time_registers(base, found.register_neurons)
    assert patched.config.base_model_name_or_path == str(tmp_path / "base")
    folder = save_checkpoint(patched, tmp_path / "checkpoint", calibration=found)
    for path in checkpoint_files(folder).values():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    provenance = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["provenance"]
    assert (provenance["model"], provenance["source"]["local"]) == (LOCAL_FOLDER, LOCAL_FOLDER)
    assert patched.config.base_model_name_or_path == str(tmp_path / "base")  # the model itself is as it was


def test_names_on_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "vit").mkdir(parents=True)
    assert is_hub_id("org/vit")
    for name in ("models/vit", "vit", "/org/vit", "./vit", "~/vit", "a/b/c", "", None, "org/..", "C:\\vit"):
        assert not is_hub_id(name), name
    assert without_local_names({"base_model_name_or_path": "org/vit", "base_model_revision": "ab"}) == {
        "base_model_name_or_path": "org/vit",
        "base_model_revision": "ab",
    }


def test_stock_model_is_no_checkpoint(planted, tmp_path):
    with pytest.raises(TypeError, match="patched model, got Dinov2Model"):
        save_checkpoint(planted.model, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_fresh_interpreter_finds_the_recorded_outputs_of_a_backbone_in_bfloat16(tmp_path):
    case = Case(FAMILIES[0], FAMILIES[0].heads[-1])
    assert case.is_backbone
    patched = add_test_time_registers(case.stock_model().bfloat16(), [[1, 5]])
    folder = save_checkpoint(patched, tmp_path / "checkpoint")
    assert check_outputs(folder) < 1e-4
    assert next(patched.parameters()).dtype == torch.bfloat16


def test_recording_leaves_the_model_as_it_was(planted):
    patched = add_test_time_registers(planted.model, [[2, 3]]).train()
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in patched.state_dict().items()}
    assert expected_outputs(patched) == expected_outputs(patched)
    assert patched.training
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in patched.state_dict().items()} == before


def test_recorded_outputs_depend_on_the_register_neurons(planted):
    neurons = [[neuron.layer, neuron.neuron] for neuron in planted.register_neurons]
    patched, other = (add_test_time_registers(planted.model, chosen) for chosen in (neurons, neurons[:1]))
    states = [torch.tensor(outputs_on_probe(model)["last_hidden_state"]) for model in (patched, other)]
    assert (states[0] - states[1]).abs().max() > 0.01 * states[0].abs().max()


def test_a_checkpoint_of_every_family_and_head_gives_what_was_recorded(case, tmp_path):
    patched = add_test_time_registers(case.stock_model(), NEURONS)
    folder = save_checkpoint(patched, tmp_path / "checkpoint")
    recorded = read_expected_outputs(folder)
    loaded = load_like_a_stranger(str(folder))
    assert type(loaded).__name__ == type(patched).__name__
    found, other = outputs_on_probe(loaded), outputs_on_probe(case.stock_model())
    assert recorded.keys() == found.keys() == other.keys() != set()
    for name, values in recorded.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=1e-4, atol=1e-5)
        assert name == "text_embeds" or other[name] != values


@pytest.mark.usefixtures("forked_interpreters")
def test_a_fresh_interpreter_finds_the_recorded_outputs_of_a_head_that_no_auto_class_loads(tmp_path):
    case = next(case for case in CASES if case.stock_class.__name__ == "CLIPVisionModelWithProjection")
    folder = save_checkpoint(add_test_time_registers(case.stock_model(), NEURONS), tmp_path / "checkpoint")
    assert check_outputs(folder) < 1e-4


def test_probe_images_have_the_models_size():
    given = probe_inputs(Case(FAMILIES[0], FAMILIES[0].heads[0]).stock_model())["pixel_values"]
    assert given.shape[2] * given.shape[3] == NUM_PATCHES * PATCH_SIZE**2
    assert torch.isfinite(given).all()


def test_flattened_probe_images_are_as_many_patches_as_the_model_was_trained_with_and_one_is_padded():
    case = next(case for case in CASES if case.stock_class.__name__ == "Siglip2VisionModel")
    given = probe_inputs(case.stock_model())
    assert given["pixel_values"].shape == (2, NUM_PATCHES, 3 * PATCH_SIZE**2)
    assert given["spatial_shapes"].tolist() == [[2, 4], [4, 4]]
    assert given["pixel_attention_mask"].sum(1).tolist() == [8, 16]


def test_outputs_that_are_not_finite_are_refused(planted, tmp_path):
    broken = add_test_time_registers(copy.deepcopy(planted.model), [[2, 3]])
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="finite outputs"):
        save_checkpoint(broken, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_the_fresh_interpreter_gets_neither_token_nor_network(folder, monkeypatch):
    given = {}

    def run(command, *, env, **options):
        given.update(env)
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: no network")

    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "SSH_AUTH_SOCK", "HF_ENDPOINT", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setattr(fresh_interpreter.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="without ttreg_hf, but there it ends with: ImportError: no network"):
        check_outputs(folder)
    assert "a secret" not in given.values()
    assert given["HF_HUB_OFFLINE"] == "1"
    assert given["HF_HOME"] == given["HOME"] != os.environ.get("HOME")


def test_the_fresh_interpreter_has_a_time_limit(folder, monkeypatch):
    monkeypatch.setattr(output_check.probe, "__file__", str(folder / "slow.txt"))
    (folder / "slow.txt").write_text("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match=r"must load and run in a fresh interpreter within 0\.005 minutes, but did"):
        check_outputs(folder, time_limit=0.3)


CHANGES = {
    "registers.py": lambda text: f"{text}\nraise SystemExit('ran')\n",
    "families.py": lambda text: text.replace("\n", "\r\n", 1),
    "modeling_ttreg.py": None,
}


@pytest.mark.parametrize("name", CHANGES)
def test_code_that_is_not_the_installed_one_is_not_run_unasked(folder, name):
    change = CHANGES[name]
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_text(encoding="utf-8")).encode())
    with pytest.raises(
        ValueError, match=rf"only the installed code is run, but {name} of .* differs .*`--trust-remote"
    ):
        check_outputs(folder)


@pytest.mark.usefixtures("forked_interpreters")
def test_code_that_is_not_the_installed_one_runs_where_it_is_trusted(folder):
    (folder / "registers.py").write_text("raise ImportError('it ran')")
    with pytest.raises(RuntimeError, match="there it ends with: ImportError: it ran"):
        check_outputs(folder, trust_remote_code=True)


@pytest.mark.parametrize("reference", ["evil.Dinov2TTRegModel", "../evil.Dinov2TTRegModel"])
def test_code_under_another_name_is_not_run(folder, reference):
    (folder / "evil.py").write_text("raise ImportError('it ran')")
    rewrite(folder / "config.json", auto_map={"AutoModel": reference})
    with pytest.raises(ValueError, match="`auto_map` names files of ttreg_hf in its own folder"):
        check_outputs(folder)


@pytest.mark.usefixtures("forked_interpreters")
@pytest.mark.parametrize("name", ["config.json", "expected_outputs.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"format": 1, "outputs": {"a": 3}}'])
def test_damaged_files_are_named(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=rf"{folder}.* `ttreg apply") as told:
        check_outputs(folder)
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("forked_interpreters")
def test_changed_folder_is_found_out(folder):
    rewrite(folder / "config.json", register_neurons=[[1, 1]])
    with pytest.raises(RuntimeError, match="must give the outputs that were recorded"):
        check_outputs(folder)
    rewrite(folder / "expected_outputs.json", format=9)
    with pytest.raises(ValueError, match="has format 9, this version reads 1"):
        check_outputs(folder)
    (folder / "expected_outputs.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds expected_outputs\.json"):
        check_outputs(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "pytorch_model.bin", "model.pkl", "setup.py", "pictures/registers.py", "handler.py"),
        *(
            "client_secret.json",
            "TODO.md",
            "notes/README.md",
            "secret.safetensors",
            "photo.png",
            "model.safetensors.bak",
        ),
        *("license.pem", "pictures/licence.txt", "sub/config.json", "license.py"),
    ],
)
def test_what_this_tool_does_not_make_is_not_published_and_is_named(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert other_files(folder) == [name]
    assert name not in checkpoint_files(folder)


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.md", "license.txt", "NOTICE", "COPYING", "USE_POLICY.md"])
def test_licences_are_published(name):
    assert is_published(name)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    os.symlink(tmp_path / "secret.json", folder / "vocab.json")
    with pytest.raises(ValueError, match=r"vocab\.json links to .*secret\.json"):
        checkpoint_files(folder)
    (folder / "vocab.json").unlink()
    (tmp_path / "private").mkdir()
    os.symlink(tmp_path / "private", folder / "pictures")
    with pytest.raises(ValueError, match=r"pictures links to .*private"):
        checkpoint_files(folder)


def test_weights_in_several_files_lie_in_the_folder(planted, tmp_path):
    patched = add_test_time_registers(planted.model, [[2, 3]])
    folder = save_checkpoint(patched, tmp_path / "checkpoint", max_shard_size="500KB")
    assert sum(is_written_by_us(name) and "-of-" in name for name in checkpoint_files(folder)) > 1
    rewrite(folder / "model.safetensors.index.json", weight_map={"x": "../../secret.safetensors"})
    with pytest.raises(ValueError, match=r"got '\.\./\.\./secret\.safetensors', which is none"):
        checkpoint_files(folder)


def test_hidden_files_are_left_out(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token.txt").write_text("secret")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / ".env").write_text("secret")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    assert checkpoint_files(folder).keys() == CODE | {
        "README.md",
        "config.json",
        "expected_outputs.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": ["y"]}}'])
def test_a_damaged_list_of_shards_is_named(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json .*Save the checkpoint again"):
        checkpoint_files(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_test_time_registers": 10**9}, "`num_test_time_registers` is from 0 to 1024, got 1000000000"),
        ({"num_test_time_registers": -1}, "`num_test_time_registers` is from 0 to 1024, got -1"),
        ({"shift_scale": float("inf")}, "`shift_scale` is a finite number, got inf"),
        ({"shift_scale": float("nan")}, "`shift_scale` is a finite number, got nan"),
        ({"architectures": ["A; import os"]}, "`architectures` of .* are names of classes"),
        ({"architectures": "Dinov2TTRegModel"}, "`architectures` of .* are names of classes"),
        ({"auto_map": ["modeling_ttreg"]}, "`auto_map` names files of ttreg_hf"),
    ],
)
def test_configs_that_no_model_has_are_refused(folder, fields, message):
    rewrite(folder / "config.json", **fields)
    with pytest.raises((ValueError, StrictDataclassError)) as told:
        read_config(folder)
    assert re.search(message, str(told.value.__cause__ or told.value))


@pytest.mark.parametrize("reference", ["../evil.Model", "evil.Model", "org/other--modeling_ttreg.Model", "/evil.M"])
def test_config_that_names_code_elsewhere_is_refused(folder, reference):
    rewrite(folder / "config.json", auto_map={"AutoModel": reference})
    with pytest.raises(ValueError, match="`auto_map` names files of ttreg_hf in its own folder, got"):
        read_config(folder)


def test_folders_that_are_no_patched_checkpoint_are_refused(planted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        read_config(tmp_path)
    planted.model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="must hold a patched model, got one of type 'dinov2'"):
        read_config(tmp_path / "base")
    with pytest.raises(ValueError, match="must hold a patched model, got one of type 'dinov2'"):
        from_pretrained(tmp_path / "base")


def test_pushing_again_takes_away_its_own_files_only():
    ours = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", *CODE]
    assert all(map(is_written_by_us, [*ours, "base_weights.json", "calibration.json"]))
    assert not any(map(is_written_by_us, ["README.md", "notes.md", "demo.py", "pictures/cat.png", ".gitattributes"]))


def test_checksum_survives_saving_and_tells_other_weights(planted, folder, tmp_path):
    loaded = from_pretrained(folder)
    checksum = weights_checksum(loaded)
    assert checksum == weights_checksum(planted.model)
    (tmp_path / "base_weights.json").write_text(json.dumps(checksum_fields(loaded)))
    assert read_checksum(tmp_path / "base_weights.json") == checksum
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] += 1e-3
    assert weights_checksum(loaded) != checksum
    assert weights_checksum(from_pretrained(folder, dtype="bfloat16")) != checksum
    rewrite(tmp_path / "base_weights.json", format=2)
    with pytest.raises(ValueError, match="must have format 1"):
        read_checksum(tmp_path / "base_weights.json")
