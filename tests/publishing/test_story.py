"""The whole story: a streamed data set, a calibration, a published checkpoint, and strangers who load it by name."""

import io
import json

import numpy as np
import pytest
import torch
from local_hub import LocalHub
from PIL import Image

from ttreg_hf.planted import synthetic_images

NUM_IMAGES = 24
MEAN, STD = 0.5, 1 / 6  # 8 bits hold values from -3 to 3

PUBLISH = f"""
import contextlib, io, json, pathlib
import numpy as np, torch
from PIL import Image
from datasets import load_dataset
from huggingface_hub import ModelCard
from transformers import AutoModel, BitImageProcessorPil, PreTrainedModel
from ttreg_hf.cli import main
from ttreg_hf.planted import planted_model

torch.set_num_threads(1)
processor = BitImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=[{MEAN}] * 3, image_std=[{STD}] * 3)
images = [row["image"].convert("RGB") for row in load_dataset("org/photographs", split="train", streaming=True)]
pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
planted = planted_model("dinov2", neurons_per_layer={{2: 2}}, images=pixel_values)
planted.model.push_to_hub("org/planted")
processor.push_to_hub("org/planted")
ModelCard("---\\nlicense: mit\\n---\\n").push_to_hub("org/planted")

def ttreg(*arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*arguments, "--json"])
    if code:
        raise SystemExit(f"ttreg {{' '.join(arguments)}} ended with {{code}}")
    return json.loads(printed.getvalue())

found = ttreg("calibrate", "org/planted", "--dataset", "org/photographs", "--num-images", "{NUM_IMAGES}",
              "--top-k", "2", "--last-layer", "2", "--output", "found")
ttreg("apply", "org/planted", "--calibration", "found", "--output", "checkpoint")
first = ttreg("push", "checkpoint", "org/planted-ttreg", "--tag", "v1", "--private")

patched = AutoModel.from_pretrained("checkpoint")
direct = patched.push_to_hub("org/direct")
PreTrainedModel.push_to_hub(patched, "org/stock")  # as where ttreg_hf is not installed
stock = processor.push_to_hub("org/stock")
with torch.no_grad():
    torch.save(patched(pixel_values).last_hidden_state, "features.pt")
    torch.save(planted.model(pixel_values).last_hidden_state, "base_features.pt")
torch.save(pixel_values, "pixel_values.pt")
truth = sorted([neuron.layer, neuron.neuron] for neuron in planted.register_neurons)
neurons = sorted(patched.config.register_neurons)
report = dict(truth=truth, neurons=neurons, found=found, first=first, direct=direct.oid, stock=stock.oid)
pathlib.Path("report.json").write_text(json.dumps(report))
"""

LOAD = """
import json, pathlib, sys
if {hide_ttreg}:
    sys.modules["ttreg_hf"] = None
else:
    import ttreg_hf
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

torch.set_num_threads(1)
flag = {flag}
shared = pathlib.Path({shared!r})
pixel_values = torch.load(shared / "pixel_values.pt")
report = {{}}
for repo, revision in {repositories}:
    try:
        AutoModel.from_pretrained(repo, revision=revision)
    except ValueError as error:
        report["refusal"] = str(error)
    model = AutoModel.from_pretrained(repo, revision=revision, **flag)
    with torch.no_grad():
        features = model(pixel_values).last_hidden_state
        with model.disable_test_time_registers():
            base_features = model(pixel_values).last_hidden_state
    report[repo] = dict(
        difference=float((features - torch.load(shared / "features.pt")).abs().max()),
        base_difference=float((base_features - torch.load(shared / "base_features.pt")).abs().max()),
        module=type(model).__module__,
        processor=AutoImageProcessor.from_pretrained(repo, revision=revision).image_std,
    )
image = Image.open(shared / "0.png")
piped = pipeline("image-feature-extraction", model="org/planted-ttreg", revision={revision!r}, **flag)(image)
report["pipeline"] = float((torch.tensor(piped)[0] - features[0]).abs().max())
if not {hide_ttreg}:
    own = ttreg_hf.from_pretrained("org/planted-ttreg", revision={revision!r})
    with torch.no_grad():
        report["own"] = float((own(pixel_values).last_hidden_state - features).abs().max())
pathlib.Path("report.json").write_text(json.dumps(report))
"""


def png(image_CHW: torch.Tensor) -> bytes:
    values = ((image_CHW * STD + MEAN) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.asarray(values)).save(file, "PNG")
    return file.getvalue()


def run(hub: LocalHub, source: str, folder, **options):
    hub.run_python(source, folder, **options)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_from_a_streamed_data_set_to_strangers_who_load_the_checkpoint_by_name(local_hub, tmp_path):
    hub, publisher = local_hub, tmp_path / "publisher"
    pictures = {f"train/{index:02}.png": png(image) for index, image in enumerate(synthetic_images(NUM_IMAGES))}
    hub.add_repository("org/photographs", pictures, repo_type="dataset")

    told = run(hub, PUBLISH, publisher, token=hub.token)
    (publisher / "0.png").write_bytes(pictures["train/00.png"])
    assert told["neurons"] == told["truth"]
    assert told["first"]["changed"]

    history = [commit.title for commit in hub.commits("org/planted-ttreg")]
    assert history == ["Publish planted-ttreg with test-time registers", "initial commit"]
    assert hub.refs("org/planted-ttreg")["refs/tags/v1"] == told["first"]["commit"]
    files = hub.files("org/planted-ttreg", "v1")
    assert {
        "README.md",
        "calibration.json",
        "calibration.safetensors",
        "config.json",
        "pictures/cat.png",
        "pictures/coffee.png",
        "pictures/rocket.png",
        "expected_outputs.json",
        "model.safetensors",
        "families.py",
        "modeling_ttreg.py",
        "preprocessor_config.json",
        "registers.py",
    } == files.keys() - {".gitattributes"}
    card = files["README.md"].decode()
    for words in (
        "base_model: org/planted\n",
        "base_model_relation: finetune",
        "- org/photographs",
        '"org/planted-ttreg", "v1"',
        "trust_remote_code=True",
        "`import ttreg_hf`",
        "2 register neurons in 1 layer",
        "Verdict: **fixed**",
    ):
        assert words in card
    for repo in ("org/planted-ttreg", "org/direct", "org/stock"):
        assert not [path for path, content in hub.files(repo).items() if str(tmp_path).encode() in content]

    repositories = [["org/planted-ttreg", told["first"]["commit"]], ["org/direct", told["direct"]]]
    repositories.append(["org/stock", told["stock"]])
    fill = {"shared": str(publisher), "repositories": repositories, "revision": told["first"]["commit"]}
    strangers = tmp_path / "strangers"
    without = LOAD.format(hide_ttreg=True, flag={"trust_remote_code": True}, **fill)
    seen = run(hub, without, strangers, token=hub.token)
    assert "trust_remote_code=True" in seen["refusal"]
    assert seen["pipeline"] < 1e-6
    for repo, _ in repositories:
        assert seen[repo]["difference"] < 1e-6
        assert seen[repo]["base_difference"] < 1e-6
        assert seen[repo]["module"].startswith("transformers_modules.")
        assert seen[repo]["processor"] == pytest.approx([STD] * 3)

    requests = hub.requests
    with_ttreg = LOAD.format(hide_ttreg=False, flag={}, **fill)
    seen = run(hub, with_ttreg, strangers, offline=True)  # and from the cache
    assert hub.requests == requests
    assert "refusal" not in seen
    assert max(seen["pipeline"], seen["own"]) < 1e-6
    for repo, _ in repositories:
        assert seen[repo]["difference"] < 1e-6
        assert seen[repo]["module"] == "ttreg_hf.modeling.modeling_ttreg"
    assert hub.unknown_requests == []
